"""Sources that are damaged or hostile: one error each that says what to do, and no target that could be loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moejax
from tests.convert.checkpoint_files import INDEX, write_index
from tests.messages import error_line, refuses, says
from tests.moejax.cli.conftest import Call
from tests.moejax.conversion_folders import config_of, tensors_in, weights_of, write_hf

CONFIG = config_of(num_hidden_layers=1, num_local_experts=3)
WEIGHTS = weights_of(CONFIG)
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it for itself; here it is taken back afterwards


def truncate(hf: Path) -> None:
    file = hf / SHARDS[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def leave_the_folder(hf: Path) -> None:
    outside = hf.parent / "outside.safetensors"
    outside.write_bytes((hf / SHARDS[0]).read_bytes())
    index = json.loads((hf / INDEX).read_text())["weight_map"]
    write_index(hf, {name: "../outside.safetensors" if file == SHARDS[0] else file for name, file in index.items()})


def lose_a_shard(hf: Path) -> None:
    (hf / SHARDS[1]).unlink()


def double_a_key(hf: Path) -> None:
    text = (hf / INDEX).read_text()
    (hf / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{EXPERT}": "{SHARDS[0]}", '))


def double_a_header_key(hf: Path) -> None:
    file = hf / SHARDS[0]
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length]
    doubled = b"{" + header[1 : header.index(b"}}") + 2].partition(b', "')[0] + b", " + header[1:]
    file.write_bytes(len(doubled).to_bytes(8, "little") + doubled + raw[8 + length :])


def lose_a_tensor(hf: Path) -> None:
    write_hf(hf, CONFIG, {name: values for name, values in WEIGHTS.items() if name != EXPERT}, files=2)


def add_a_tensor(hf: Path) -> None:
    write_hf(hf, CONFIG, WEIGHTS | {"model.layers.0.self_attn.q_proj.bias": np.zeros(3, np.float32)}, files=2)


def wrong_shape(hf: Path) -> None:
    write_hf(hf, CONFIG, WEIGHTS | {EXPERT: WEIGHTS[EXPERT].T.copy()}, files=2)


def unknown_feature(hf: Path) -> None:
    (hf / "config.json").write_text(json.dumps(CONFIG | {"rope_scaling": {"type": "yarn"}}))


DAMAGES: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (truncate, ("truncated",)),
    (leave_the_folder, ("'../outside.safetensors'",)),
    (lose_a_shard, ("2 files", "1", "'model-00002-of-00002.safetensors'")),
    (double_a_key, ("JSON", f"'{EXPERT}'", "twice", "its maker")),
    (double_a_header_key, ("twice", "its maker")),
    (lose_a_tensor, (f"'{EXPERT}'", "config.json")),
    (add_a_tensor, ("holds 'model.layers.0.self_attn.q_proj.bias'",)),
    (wrong_shape, (f"'{EXPERT}'", "got [32, 24]", "expected [24, 32]")),
    (unknown_feature, ("rope_scaling", "'yarn'")),
]


@pytest.mark.parametrize(("damage", "facts"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damage_is_told_before_anything_is_written(
    call: Call, tmp_path: Path, damage: Callable[[Path], None], facts: tuple[str, ...]
) -> None:
    hf = write_hf(tmp_path / "hf", CONFIG, WEIGHTS, files=2)
    damage(hf)
    outcome = call("convert", hf, tmp_path / "target")
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)
    assert not (tmp_path / "target").exists()


def test_nan_is_refused_unless_allowed(call: Call, tmp_path: Path) -> None:
    values = WEIGHTS[EXPERT].copy()
    values[3, 5] = np.nan
    hf = write_hf(tmp_path / "hf", CONFIG, WEIGHTS | {EXPERT: values})
    target = tmp_path / "target"
    outcome = call("convert", hf, target)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, hf / "model.safetensors", f"'{EXPERT}'", "1", "NaN", "768", "101", "--allow-nan")
    with refuses(ValueError, "unfinished"):
        moejax.load(target)
    assert call("convert", hf, target, "--allow-nan").status == 0
    assert (
        json.loads((target / "manifest.json").read_text())["arrays"]["layers.0.moe.experts.1.gate"]["finite"] is False
    )
    moejax.load(target)
    # On the way back it is a value like any other of a source: to be allowed again.
    assert "--allow-nan" in call("convert", target, tmp_path / "back").err
    assert call("convert", target, tmp_path / "back", "--allow-nan").status == 0
    assert tensors_in(tmp_path / "back")[EXPERT].tobytes() == values.tobytes()


def test_a_value_that_the_dtype_cannot_hold(call: Call, tmp_path: Path) -> None:
    values = WEIGHTS[EXPERT].copy()
    values[0, 0] = 1e6
    hf = write_hf(tmp_path / "hf", CONFIG, WEIGHTS | {EXPERT: values})
    outcome = call("convert", hf, tmp_path / "target", "--dtype", "float16")
    assert outcome.status == 2
    says(outcome.err, "768", "float16", "0", "bfloat16")


def test_a_source_that_is_truncated_while_it_is_read(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf", CONFIG, WEIGHTS, files=2)

    def cut(phase: str, done: int, total: int) -> None:
        for name in SHARDS:
            with (hf / name).open("r+b") as file:
                file.truncate(5000)

    with refuses(ValueError, "truncated"):
        moejax.convert(hf, tmp_path / "target", workers=1, on_progress=cut)
    with refuses(ValueError, "unfinished"):
        moejax.load(tmp_path / "target")
