"""From a folder to a model on the device: what is read, and every way in which a checkpoint can be unusable."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import moejax
from moejax.families.table import parameters_of
from tests.convert.checkpoint_files import INDEX, SINGLE, write_index, write_sharded, write_single
from tests.messages import refuses, says
from tests.moejax.loading_folder import CONFIG, GATE, LAYER, W1, Tensors, refusal, small_tensors, write


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return small_tensors()


# --- what is read ---

PATHS = {
    "model.embed_tokens.weight": "embed.table",
    "model.norm.weight": "final_norm.scale",
    "lm_head.weight": "head.table",
    f"{LAYER}.input_layernorm.weight": "layers.0.attention_norm.scale",
    f"{LAYER}.post_attention_layernorm.weight": "layers.0.moe_norm.scale",
    f"{LAYER}.self_attn.q_proj.weight": "layers.0.attention.q",
    f"{LAYER}.self_attn.k_proj.weight": "layers.0.attention.k",
    f"{LAYER}.self_attn.v_proj.weight": "layers.0.attention.v",
    f"{LAYER}.self_attn.o_proj.weight": "layers.0.attention.o",
    GATE: "layers.0.moe.router",
}
EXPERT_PATHS = {
    f"{LAYER}.block_sparse_moe.experts.{expert}.{theirs}.weight": (expert, ours)
    for expert in range(3)
    for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
}


@pytest.mark.parametrize("backend", ["blocked", "dense", "ragged"])
def test_every_tensor_lands_in_its_place(tmp_path: Path, tensors: Tensors, backend: str) -> None:
    """Each value of the file, unchanged, whichever way the backend lays out experts."""
    model = moejax.load(write(tmp_path, tensors), dtype="float32", expert_backend=backend)
    params = model.structure.unpack(model.params)
    assert set(tensors) == {*PATHS, *EXPERT_PATHS}
    for name, path in PATHS.items():
        np.testing.assert_array_equal(params[path], tensors[name])
    for name, (expert, matrix) in EXPERT_PATHS.items():
        np.testing.assert_array_equal(params[f"layers.0.moe.experts.{expert}.{matrix}"], tensors[name])
    assert sum(array.size for array in params.values()) == sum(array.size for array in tensors.values())


def test_transformers_folders_single_and_sharded(tmp_path: Path) -> None:
    """The same model, saved by transformers as one file and as many."""
    from scripts.make_golden import save_folder
    from tests.hf_models import build

    hf = build("eight_queries_per_key_sharded", tmp_path / "sharded")
    save_folder(hf, tmp_path / "single")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert len(list((tmp_path / "single").glob("*.safetensors"))) == 1
    sharded, single = (moejax.load(tmp_path / name, dtype="float32") for name in ("sharded", "single"))
    assert sharded.config == single.config
    assert sharded.params.keys() == single.params.keys()
    values, others = (one.structure.unpack(one.params) for one in (single, sharded))
    for path, array in values.items():
        np.testing.assert_array_equal(others[path], array)
    assert single.ignored == sharded.ignored == {}


def test_arrays_do_not_depend_on_the_files(tmp_path: Path, tensors: Tensors) -> None:
    """An array that aliased a mapped file would change, or crash, with it."""
    model = moejax.load(write(tmp_path, tensors), dtype="float32")
    size = (tmp_path / SINGLE).stat().st_size
    with (tmp_path / SINGLE).open("r+b") as file:
        file.write(b"\xff" * size)
        file.truncate(0)
    (tmp_path / SINGLE).unlink()
    values = model.structure.unpack(model.params)
    for name, path in PATHS.items():
        np.testing.assert_array_equal(values[path], tensors[name])


def test_parameters_are_on_the_first_device(tmp_path: Path, tensors: Tensors) -> None:
    for array in jax.tree.leaves(moejax.load(write(tmp_path, tensors)).params):
        assert isinstance(array, jax.Array) and array.devices() == {jax.devices()[0]}


def test_a_path_may_be_a_string(tmp_path: Path, tensors: Tensors) -> None:
    assert moejax.load(str(write(tmp_path, tensors))).config.vocab_size == 40


def test_demo_is_a_name() -> None:
    model = moejax.load("demo")
    assert model.tokenizer is not None and model.no_tokenizer_reason is None
    assert model.dtype == "bfloat16" and model.max_seq_len == model.config.max_position_embeddings
    assert model.ignored == {} and len(model.eos_token_ids) == 1
    assert size_of(model) == parameters_of(model.config).total


def size_of(model: moejax.Model) -> int:
    return sum(array.size for array in model.structure.unpack(model.params).values())


# --- dtypes ---


@pytest.mark.parametrize(
    ("word", "dtype"),
    [("bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("float16", "float16"), ("fp16", "float16")]
    + [("f16", "float16"), ("float32", "float32"), ("f32", "float32"), ("fp32", "float32"), ("auto", "float32")],
)
def test_every_word_for_a_dtype(tmp_path: Path, tensors: Tensors, word: str, dtype: str) -> None:
    """All weights have it, rounded from the file's float32 to nearest."""
    model = moejax.load(write(tmp_path, tensors), dtype=word)
    assert model.dtype == dtype
    values = model.structure.unpack(model.params)
    for name, path in PATHS.items():
        assert values[path].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(values[path]), tensors[name].astype(jnp.dtype(dtype)))


def test_the_default_is_bfloat16(tmp_path: Path, tensors: Tensors) -> None:
    assert moejax.load(write(tmp_path, tensors)).dtype == "bfloat16"


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_auto_is_the_dtype_of_most_bytes(tmp_path: Path, tensors: Tensors, stored: type) -> None:
    mixed = {name: array if "norm" in name else array.astype(stored) for name, array in tensors.items()}
    model = moejax.load(write(tmp_path, mixed), dtype="auto")
    assert model.dtype == np.dtype(stored).name
    np.testing.assert_array_equal(np.asarray(model.params["embed.table"].numbers()), mixed["model.embed_tokens.weight"])


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32"])
def test_16_bit_files_in_any_dtype(tmp_path: Path, tensors: Tensors, stored: type, target: str) -> None:
    short = {name: array.astype(stored) for name, array in tensors.items()}
    model = moejax.load(write(tmp_path, short), dtype=target)
    params = model.structure.unpack(model.params)
    for name, path in PATHS.items():
        expected = short[name].astype(np.float32).astype(jnp.dtype(target))
        np.testing.assert_array_equal(np.asarray(params[path]), expected)


@pytest.mark.parametrize(("word", "near"), [("bfloat", True), ("int8", False), ("", False)])
def test_an_unknown_dtype_is_told_before_the_folder_is_opened(word: str, near: bool) -> None:
    with refuses(ValueError, "dtype", "bfloat16", "float16", "float32", "auto", repr(word)) as caught:
        moejax.load("there/is/no/such/folder", dtype=word)
    assert ("'bfloat16'" in str(caught.value)) == near


def test_a_value_too_large_for_float16(tmp_path: Path, tensors: Tensors) -> None:
    large = tensors[W1].copy()
    large[2, 3] = 1e5
    folder = write(tmp_path, {**tensors, W1: large})
    message = refusal(folder, dtype="float16")
    says(message, repr(W1), "1", "768", "float16", "bfloat16")
    moejax.load(folder, dtype="bfloat16")


def test_weights_of_integers(tmp_path: Path, tensors: Tensors) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: array.astype(np.int8) for name, array in tensors.items()}, tmp_path / SINGLE)
    says(refusal(tmp_path), "I8", "BF16, F16, F32")


# --- the wrong tensors ---


@pytest.mark.parametrize("name", [W1, GATE, "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor(tmp_path: Path, tensors: Tensors, name: str) -> None:
    message = refusal(write(tmp_path, {key: array for key, array in tensors.items() if key != name}))
    says(message, f"FOLDER lacks {name!r}", "config.json")


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.self_attn.q_proj.bias",
        f"{LAYER}.block_sparse_moe.experts.3.w1.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.00.input_layernorm.weight",
    ],
)
def test_a_tensor_that_nothing_uses(tmp_path: Path, tensors: Tensors, name: str) -> None:
    message = refusal(write(tmp_path, {**tensors, name: np.ones(3, np.float32)}))
    says(message, f"FOLDER holds {name!r}", "config.json")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (W1, (32, 24), [24, 32]),  # transposed
        (GATE, (4, 32), [3, 32]),
        ("model.embed_tokens.weight", (41, 32), [40, 32]),
        ("model.norm.weight", (32, 1), [32]),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_a_tensor_of_another_shape(
    tmp_path: Path, tensors: Tensors, backend: str, name: str, shape: tuple[int, ...], expected: list[int]
) -> None:
    folder = write(tmp_path, {**tensors, name: np.ones(shape, np.float32)})
    message = refusal(folder, expert_backend=backend)
    says(message, repr(name), f"got {list(shape)}", f"expected {expected}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [W1, "model.norm.weight"])
def test_a_tensor_with_nan(tmp_path: Path, tensors: Tensors, name: str, dtype: str, value: float) -> None:
    broken = tensors[name].copy()
    broken.reshape(-1)[5] = value
    message = refusal(write(tmp_path, {**tensors, name: broken}), dtype=dtype)
    says(message, repr(name), "1", "NaN", broken.size, "5")


def test_rotary_frequencies_are_ignored_and_listed(tmp_path: Path, tensors: Tensors) -> None:
    name = f"{LAYER}.self_attn.rotary_emb.inv_freq"
    model = moejax.load(write(tmp_path, {**tensors, name: np.full(4, np.nan, np.float32)}))
    assert list(model.ignored) == [name]
    says(model.ignored[name], "rope_theta")


# --- tied embeddings ---


def test_a_tied_model_has_no_head(tmp_path: Path, tensors: Tensors) -> None:
    tied = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    model = moejax.load(write(tmp_path, tied, tie_word_embeddings=True), dtype="float32")
    assert "head.table" not in model.params and model.ignored == {}
    assert size_of(model) == parameters_of(model.config).total
    # With the embedding as a head of its own, the same model.
    (tmp_path / "untied").mkdir()
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    untied = moejax.load(write(tmp_path / "untied", tied | head), dtype="float32")
    np.testing.assert_array_equal(moejax.logits(model, [[1, 2, 3]])[0], moejax.logits(untied, [[1, 2, 3]])[0])


def test_a_head_that_is_equal_to_the_embedding_it_is_tied_to_is_ignored_and_listed(
    tmp_path: Path, tensors: Tensors
) -> None:
    """Some files hold it although config.json says that the embedding is the head."""
    tensors = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    model = moejax.load(write(tmp_path, tensors, tie_word_embeddings=True))
    assert list(model.ignored) == ["lm_head.weight"]
    says(model.ignored["lm_head.weight"], "tied")
    assert "head.table" not in model.params


# --- damaged folders ---


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01])
def test_a_truncated_file(tmp_path: Path, tensors: Tensors, kept: float) -> None:
    data = (write(tmp_path, tensors) / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[: int(len(data) * kept)])
    message = refusal(tmp_path)
    says(message, f"FOLDER/{SINGLE}", f"{int(len(data) * kept)} bytes")
    assert message.endswith("download it again")


def halves(tensors: Tensors) -> dict[str, Tensors]:
    names = sorted(tensors)
    return {
        "model-00001-of-00002.safetensors": {name: tensors[name] for name in names[::2]},
        "model-00002-of-00002.safetensors": {name: tensors[name] for name in names[1::2]},
    }


def test_an_index_with_a_missing_shard(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_sharded(tmp_path, halves(tensors))
    moejax.load(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    says(refusal(tmp_path), f"FOLDER/{INDEX}", "2", "1", "'model-00002-of-00002.safetensors'")


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/outside.safetensors", "sub/inside.safetensors"])
def test_an_index_that_leaves_the_folder(tmp_path: Path, tensors: Tensors, place: str) -> None:
    """Also where there is such a file."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_single(tmp_path, tensors).joinpath(SINGLE).rename(tmp_path / "outside.safetensors")
    write_index(folder, dict.fromkeys(tensors, place))
    says(refusal(folder), repr(place), "leaves")


def test_a_config_of_another_family(tmp_path: Path, tensors: Tensors) -> None:
    message = refusal(write(tmp_path, tensors, model_type="qwen2_moe"))
    says(message, "FOLDER/config.json", "model_type", "'qwen2_moe'", "'mixtral'")


def test_no_config(tmp_path: Path, tensors: Tensors) -> None:
    message = refusal(write_single(tmp_path, tensors))
    says(message, "FOLDER/config.json", "no such file")


def test_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    says(refusal(tmp_path), "pickle", "safetensors")
