from pathlib import Path

from moejax.compiling.gpu import THUNKS, dumped
from tests.messages import refuses


def test_thunks_are_those_after_the_passes_where_these_changed_something(tmp_path: Path) -> None:
    with refuses(ValueError, *THUNKS):
        dumped(tmp_path, *THUNKS)
    (tmp_path / "module_1.jit_layer.thunk_sequence.txt").write_text("before")
    assert dumped(tmp_path, *THUNKS) == "before"
    (tmp_path / "module_1.jit_layer.thunk_sequence_after_thunk_passes.txt").write_text("after")
    assert dumped(tmp_path, *THUNKS) == "after"
    (tmp_path / "module_2.jit_layer.thunk_sequence_after_thunk_passes.txt").write_text("another")
    with refuses(ValueError, "one program"):
        dumped(tmp_path, *THUNKS)
