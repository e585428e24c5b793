"""`moejax decode --save-expert-load`: the bundled load recorded again, and files that cannot be written."""

import shlex
from pathlib import Path

from moejax.checkpoint import DEMO_FOLDER
from moejax.planning.expert_load import read_expert_load
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

# A choice between experts that is nearly a tie, or between tokens, may fall otherwise on another processor, and another
# token changes what follows it.
SAME_ROWS = 0.98


def test_the_bundled_load_is_what_its_command_records(call: Call, tmp_path: Path) -> None:
    readme = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8")
    (command,) = (block for block in readme.split("```") if "--save-expert-load" in block)
    program, *words = shlex.split(command.removeprefix("bash").replace("\\\n", " "))
    assert program == "moejax"
    path = tmp_path / "expert_load.json"
    outcome = call(*(str(path) if word == path.name else word for word in words))
    assert outcome.status == 0, outcome.err
    says(outcome.err.splitlines()[-1], path)
    recorded, shipped = read_expert_load(path), read_expert_load("demo")
    assert (recorded.model, recorded.num_layers, recorded.num_experts) == ("demo", 4, 8)
    same = sum(
        min(pair) for layers in zip(recorded.counts, shipped.counts, strict=True) for pair in zip(*layers, strict=True)
    )
    assert same >= SAME_ROWS * sum(map(sum, shipped.counts))
    assert same >= SAME_ROWS * sum(map(sum, recorded.counts))


def test_a_stream_is_recorded_too(call: Call, tiny_folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    flags = ("--dtype", "float32", "-n", "5", "--ignore-eos", "--quiet", "--save-expert-load", path)
    outcome = call("decode", tiny_folder, "--token-ids", "1 2 3", *flags)
    assert (outcome.status, outcome.err) == (0, "")
    load = read_expert_load(path)
    assert load.tokens == 3 + 5 - 1  # the last token is never fed
    assert load.model == str(tiny_folder)


def test_a_file_that_cannot_be_written_is_told_before_anything_else(call: Call, tmp_path: Path) -> None:
    taken = tmp_path / "load.json"
    taken.write_text("mine")
    for path, facts in ((taken, ("exists", "remove it")), (tmp_path / "no" / "f", ("no folder", tmp_path / "no"))):
        outcome = call("decode", "no-such-checkpoint", "--prompt", "x", "--save-expert-load", path)
        assert (outcome.status, outcome.out) == (2, "")
        error_line(outcome.err, path, *facts)
    assert taken.read_text() == "mine"
