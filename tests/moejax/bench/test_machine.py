"""What stands beside every number, and which meshes can be timed."""

import pytest

from moejax.bench.machine import check_timed, describe_run, machine_line, visible_devices


def test_the_machine_is_described() -> None:
    run = describe_run(["bench"])
    assert run["machine"]["cores"] >= 1 and run["machine"]["memory_gb"] > 0
    assert f"{run['machine']['cores']} cores" in machine_line(run["machine"])
    assert {"python", "jax", "numpy"} <= run["versions"].keys()


def test_devices_are_asked_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    platform, count = visible_devices()
    assert platform == "cpu" and count >= 1
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    with pytest.raises(ValueError, match="JAX cannot start: .*no_such_platform"):
        visible_devices()
    check_timed({"data=1": 1})  # which needs no devices to be asked for
