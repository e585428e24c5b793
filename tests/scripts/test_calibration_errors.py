"""The check of a calibration: a model timed beside it, and what is printed."""

from collections.abc import Sequence

import pytest

from moejax.planning.compare import compare_meshes
from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware
from moejax.planning.workload import Workload
from scripts import calibration_errors


class TwiceAsSlow:
    """As the roofline of a CPU says."""

    def __init__(self, model: None, workload: Workload) -> None:
        self._size, self._context, self._measured = workload.batch_size, workload.context, False

    def measure(self) -> None:
        self._measured = True
        (row,) = compare_meshes("186m", 1, "cpu", batch_size=self._size, context=self._context)
        assert row.decode and row.prefill
        self.decode_seconds, self.prefill_seconds = 2 * row.decode.seconds, 2 * row.prefill.seconds


def test_errors_are_of_what_is_timed_beside_the_calibration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrate(*, beside: Sequence[TwiceAsSlow]) -> Hardware:
        for one in beside:
            one.measure()
        return load_hardware("cpu")

    monkeypatch.setattr(calibration_errors, "calibrate", calibrate)
    monkeypatch.setattr(calibration_errors, "random_model", lambda *_: None)
    monkeypatch.setattr(calibration_errors, "ModelTimes", TwiceAsSlow)
    calibration_errors.main(["--batch-size", "1,4"])
    _, *rows = capsys.readouterr().out.splitlines()
    cells = [row.split(" | ") for row in rows]
    assert [(row[0], row[3], row[6]) for row in cells] == [("1", "-50%", "-50%"), ("4", "-50%", "-50%")]
    assert all(float(row[1]) < float(row[2]) for row in cells)
