"""Mistral's own layout (params.json, consolidated.safetensors): the same model as in transformers' layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moejax
from moejax._convert import SafetensorsFolder
from moejax.checkpoint import open_checkpoint
from moejax.cli.app import run
from tests.convert.checkpoint_files import write_sharded, write_single
from tests.hf_models import build, read_back
from tests.messages import refuses, says
from tests.moejax.conversion_folders import Tensors, assert_same_tensors, config_of, tensors_in, weights_of, write_hf

CONFIG = config_of(num_hidden_layers=2, num_local_experts=3, rope_theta=1e4)
WEIGHTS = weights_of(CONFIG)
HEADS, KV_HEADS, HEAD_DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], 8
PARAMS = {
    "dim": CONFIG["hidden_size"],
    "n_layers": 2,
    "head_dim": HEAD_DIM,
    "hidden_dim": CONFIG["intermediate_size"],
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "norm_eps": CONFIG["rms_norm_eps"],
    "vocab_size": CONFIG["vocab_size"],
    "rope_theta": 1e4,
    "max_batch_size": 0,
    "moe": {"num_experts": 3, "num_experts_per_tok": CONFIG["num_experts_per_tok"]},
}
PROMPT = list(range(1, 20))
V3 = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows as mistral-inference has them: of a head, what is turned together stands side by side."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def released(weights: Tensors, heads: int = HEADS, kv_heads: int = KV_HEADS) -> Tensors:
    """The same weights in Mistral's layout."""
    names = {
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        **{f"self_attn.{x}_proj": f"attention.w{x}" for x in "qkvo"},
        "block_sparse_moe": "feed_forward",
    }
    out: Tensors = {}
    for name, values in weights.items():
        heads_of = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[name.removeprefix("model.")] = values if heads_of is None else paired(values, heads_of)
    return out


def write_release(folder: Path, tensors: Tensors, params: dict[str, Any] | None = None, *, files: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS if params is None else params))
    if files == 1:
        (write_single(folder, tensors) / "model.safetensors").rename(folder / "consolidated.safetensors")
        return folder
    names = list(tensors)
    shards = {f"consolidated-{n}.safetensors": {name: tensors[name] for name in names[n::files]} for n in range(files)}
    index = write_sharded(folder, shards) / "model.safetensors.index.json"
    index.rename(folder / "consolidated.safetensors.index.json")
    return folder


def logits(folder: Path, **options: Any) -> np.ndarray:
    return np.asarray(moejax.logits(moejax.load(folder, dtype="float32", **options), [PROMPT])[0])


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("release") / "hf", CONFIG, WEIGHTS)


@pytest.fixture(scope="module")
def release(hf: Path) -> Path:
    return write_release(hf.with_name("release"), released(WEIGHTS))


def test_pairs_that_are_turned_as_mistral_does_give_the_scores_of_transformers() -> None:
    """Rotary embeddings by complex numbers of neighbours, against halves, of one head at two positions."""
    rng = np.random.default_rng(0)
    queries, keys = rng.standard_normal((2, HEAD_DIM, 5))
    x, y = rng.standard_normal((2, 5))
    frequencies = 1e4 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)

    def halves(values: np.ndarray, position: int) -> np.ndarray:
        cos, sin = (np.tile(f(position * frequencies), 2) for f in (np.cos, np.sin))
        rotated = np.concatenate([-values[HEAD_DIM // 2 :], values[: HEAD_DIM // 2]])
        return values * cos + rotated * sin

    def neighbours(values: np.ndarray, position: int) -> np.ndarray:
        turned = (values[::2] + 1j * values[1::2]) * np.exp(1j * position * frequencies)
        return np.stack([turned.real, turned.imag], -1).reshape(-1)

    wanted = halves(queries @ x, 7) @ halves(keys @ y, 3)
    found = neighbours(paired(queries, 1) @ x, 7) @ neighbours(paired(keys, 1) @ y, 3)
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("files", [1, 3])
def test_it_is_the_same_model(hf: Path, tmp_path: Path, files: int) -> None:
    folder = write_release(tmp_path / "release", released(WEIGHTS), files=files)
    opened = open_checkpoint(folder)
    assert_same_tensors({name: opened.tensors.read(name) for name in opened.tensors.tensors}, WEIGHTS)
    assert logits(folder).tobytes() == logits(hf).tobytes()


def test_every_device_reads_its_part(hf: Path, release: Path) -> None:
    wanted = logits(hf)
    for mesh in ("tensor=2", "expert=3", "data=2,tensor=2"):
        assert np.abs(logits(release, mesh=mesh) - wanted).max() < 1e-4


@given(
    rows=st.tuples(st.integers(0, 32), st.integers(0, 32)), columns=st.tuples(st.integers(0, 32), st.integers(0, 32))
)
def test_any_part_of_paired_rows(release: Path, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    opened = open_checkpoint(release).tensors
    part = slice(*sorted(rows)), slice(*sorted(columns))
    wanted = WEIGHTS["model.layers.1.self_attn.q_proj.weight"][part]
    out = np.empty(wanted.shape, np.float32)
    opened.read_into("model.layers.1.self_attn.q_proj.weight", out, part)
    assert np.array_equal(out, wanted)


def test_it_converts_and_comes_back_for_transformers(tmp_path: Path) -> None:
    model = build("eight_queries_per_key_sharded", tmp_path / "hf")
    sizes, weights = model.config, tensors_in(tmp_path / "hf")
    params = {
        **PARAMS,
        "dim": sizes.hidden_size,
        "n_layers": sizes.num_hidden_layers,
        "head_dim": sizes.head_dim,
        "hidden_dim": sizes.intermediate_size,
        "n_heads": sizes.num_attention_heads,
        "n_kv_heads": sizes.num_key_value_heads,
        "norm_eps": sizes.rms_norm_eps,
        "vocab_size": sizes.vocab_size,
        "rope_theta": json.loads((tmp_path / "hf" / "config.json").read_text())["rope_parameters"]["rope_theta"],
        "moe": {"num_experts": sizes.num_local_experts, "num_experts_per_tok": sizes.num_experts_per_tok},
    }
    theirs = released(weights, sizes.num_attention_heads, sizes.num_key_value_heads)
    release = write_release(tmp_path / "release", theirs, params)
    shutil.copyfile(V3, release / "tokenizer.model.v3")
    moejax.convert(release, tmp_path / "orbax")
    moejax.convert(tmp_path / "orbax", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.model.v3").read_bytes() == V3.read_bytes()
    assert_same_tensors(tensors_in(tmp_path / "back"), weights)
    ids = torch.arange(1, 20).reshape(1, -1)
    with torch.no_grad():
        wanted, found = (any_model(ids).logits for any_model in (model, read_back(tmp_path / "back", torch.float32)))
    assert torch.equal(wanted, found)
    assert logits(tmp_path / "orbax").tobytes() == logits(release).tobytes()


def test_info_and_convert_name_it(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(release)]) == 0
    says(capsys.readouterr().out, "consolidated.safetensors")
    moejax.convert(release, tmp_path / "orbax", dtype="bfloat16")
    assert json.loads((tmp_path / "orbax" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_as_a_reference_it_has_to_be_converted(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(release), "--reference", str(release), "--quiet"]) == 2
    commands = f"moejax convert {release} {release}-orbax && moejax convert {release}-orbax {release}-hf"
    says(capsys.readouterr().err, release, "Mistral", commands)


def test_of_two_layouts_in_a_folder_transformers_is_read(hf: Path, tmp_path: Path) -> None:
    """As the Hub has them side by side."""
    folder = write_hf(tmp_path, CONFIG, WEIGHTS)
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"?")
    assert logits(folder).tobytes() == logits(hf).tobytes()
    assert isinstance(open_checkpoint(folder).tensors, SafetensorsFolder)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"rope_theta": None}, "rope_theta", 1e6),
        ({"max_seq_len": 99}, "max_position_embeddings", 99),
        ({"sliding_window": "4096"}, "sliding_window", 4096),
        ({"sliding_window": 64}, "sliding_window", 64),
        ({}, "max_position_embeddings", 32768),
        ({"tied_embeddings": True}, "tie_embeddings", True),
    ],
    ids=str,
)
def test_what_params_say(tmp_path: Path, changes: dict[str, Any], field: str, value: Any) -> None:
    tensors = released(WEIGHTS)
    if "tied_embeddings" in changes:
        del tensors["output.weight"]
    opened = open_checkpoint(write_release(tmp_path, tensors, PARAMS | changes))
    assert getattr(opened.config, field) == value


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"moe": None}, ("moe", "Mixtral")),
        ({"moe": {"num_experts": 3}}, ("num_experts_per_tok",)),
        ({"n_layers": None}, ("n_layers",)),
        ({"n_layers": 10**9}, ("n_layers", "1000")),
        ({"n_kv_heads": 3}, ("n_heads", "n_kv_heads", "4 and 3")),
        ({"head_dim": 7}, ("head_dim", "7")),
        ({"model_type": "mamba"}, ("model_type", "'mamba'")),
        ({"yarn": {"factor": 4}, "quantization": {"x": 1}}, ("yarn", "quantization")),
        ({"moe": PARAMS["moe"] | {"num_shared_experts": 1}}, ("moe.num_shared_experts=1",)),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, Any], facts: tuple[str, ...]) -> None:
    folder = write_release(tmp_path, released(WEIGHTS), PARAMS | changes)
    with refuses(moejax.CheckpointError, folder / "params.json", *facts):
        moejax.load(folder)
