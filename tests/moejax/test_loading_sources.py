"""What names a model: folders, names, limits, and the files beside the weights."""

import json
from pathlib import Path
from typing import Any

import pytest

import moejax
from moejax import loading
from moejax._convert import CheckpointError, SafetensorsFolder
from moejax._sharding import DeviceMemory
from moejax.checkpoint import open_checkpoint
from moejax.weights.weight import Weight
from tests.convert.checkpoint_files import SINGLE
from tests.messages import refuses, says
from tests.moejax.loading_folder import Tensors, refusal, small_tensors, write


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return small_tensors()


# --- sources that are no folder ---


def message_of(source: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        moejax.load(source)
    return str(caught.value)


def test_a_name_of_the_hub_is_looked_for_there() -> None:
    says(message_of("org/no-such-model"), "no folder org/no-such-model", "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    "source", ["nowhere", "./org/name", "/no/such", "a/b/c", "~/nothing-here", "org/", "a b/c d", "x/$(date)"]
)
def test_a_folder_that_is_not_there(source: str) -> None:
    says(message_of(source), source, "'demo'", "'random:NAME'")


@pytest.mark.parametrize("source", ["a\0b", "~no-such-user/x"], ids=repr)
def test_what_names_nothing(source: str) -> None:
    says(message_of(source), "source", repr(source))


def test_a_file_instead_of_its_folder(tmp_path: Path, tensors: Tensors) -> None:
    file = write(tmp_path, tensors) / SINGLE
    says(message_of(file), file, "config.json")


def test_what_is_no_checkpoint_is_named_with_what_to_do(tmp_path: Path, tensors: Tensors) -> None:
    for name, facts in {
        "adapter": ("LoRA adapter", "peft"),
        "gguf": ("GGUF", "hf download ORG/NAME"),
        "above": ("FOLDER/it", "give that folder"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        if name == "above":
            (folder / "it").mkdir()
            write(folder / "it", tensors)
        else:
            (folder / {"adapter": "adapter_config.json", "gguf": "m.Q4_K_M.gguf"}[name]).write_text("{}")
        says(refusal(folder), *facts)
        with pytest.raises(ValueError) as caught:
            moejax.convert(folder, tmp_path / "target")
        says(str(caught.value).replace(str(folder), "FOLDER"), *facts)
    says(message_of(tmp_path / "gguf" / "m.Q4_K_M.gguf"), "m.Q4_K_M.gguf", "GGUF", "hf download")
    (tmp_path / "gguf" / "blob").write_bytes(b"GGUF")
    says(message_of(tmp_path / "gguf" / "blob"), "blob", "GGUF", "hf download")
    assert not (tmp_path / "target").exists()


def test_a_whole_file_beside_an_index_is_read_and_told(tmp_path: Path, tensors: Tensors) -> None:
    folder = write(tmp_path, tensors)
    names = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (remark,) = open_checkpoint(folder).remarks
    says(remark, "model.safetensors", "model.safetensors.index.json")


def test_a_configuration_of_a_far_larger_model_is_told_before_its_tensors_are_named(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(weight: Weight) -> None:
        raise AssertionError("tensors were named")

    monkeypatch.setattr(Weight, "tensors", name)
    folder = write(tmp_path, tensors, num_hidden_layers=1000, num_local_experts=30)
    says(refusal(folder), "FOLDER", f"{len(tensors)} tensors", "1000 layers", "30 experts", "97003")


@pytest.mark.parametrize(
    ("quantised", "facts"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ("gptq, 4 bits",)),
        ({"quantization_config": {"quant_method": "fp8"}}, ("fp8",)),
        ({"quantization": {"group_size": 64, "bits": 4}}, ("MLX, 4 bits",)),
    ],
    ids=str,
)
def test_a_quantised_folder_is_named_as_what_it_is(
    tmp_path: Path, tensors: Tensors, quantised: dict[str, Any], facts: tuple[str, ...]
) -> None:
    folder = write(tmp_path, tensors, **quantised, _name_or_path="org/whole")
    says(refusal(folder), "FOLDER/config.json", "quantised", *facts, "hf download org/whole")


def test_random_weights_of_an_unknown_name() -> None:
    says(message_of("random:mixtral-8x7"), "'mixtral-8x7b'")


@pytest.mark.parametrize("source", [None, 5, True, b"demo", ["demo"]])
def test_a_source_that_is_no_name(source: Any) -> None:
    for read in (moejax.load, open_checkpoint):
        with refuses(ValueError, repr(source), "'demo'"):
            read(source)


@pytest.mark.parametrize("source", ["demo", "org/name", "random:mixtral-8x7b"])
def test_a_revision_that_is_no_name(source: str) -> None:
    with refuses(ValueError, "revision", 5):
        moejax.load(source, revision=5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("keyword", "near"), [("backend", "expert_backend"), ("max_model_len", "max_seq_len"), ("quux", "max_seq_len")]
)
def test_an_option_that_there_is_not(keyword: str, near: str) -> None:
    with refuses(ValueError, "load", repr(keyword), near):
        moejax.load("demo", **{keyword: 1})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", ["1", 1.5, None, True])
def test_a_seed_that_is_no_number(seed: Any) -> None:
    with refuses(ValueError, "seed", repr(seed)):
        moejax.load("random:mixtral-8x7b", seed=seed)


# --- limits ---


@pytest.mark.parametrize(("given", "limit"), [(None, 64), (64, 64), (2, 2), (33, 33)])
def test_max_seq_len(tmp_path: Path, tensors: Tensors, given: int | None, limit: int) -> None:
    assert moejax.load(write(tmp_path, tensors), max_seq_len=given).max_seq_len == limit


@pytest.mark.parametrize("given", [65, 1, 0, -1, 10.0, "32", True])
def test_max_seq_len_out_of_bounds(tmp_path: Path, tensors: Tensors, given: Any) -> None:
    message = refusal(write(tmp_path, tensors), max_seq_len=given)
    says(message, "max_seq_len", "2", "64", "max_position_embeddings", f"got {given!r}")


def has_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    memory = DeviceMemory(device="H200", total_bytes=141 * 10**9, free_bytes=free_bytes)
    monkeypatch.setattr(loading, "device_memory", lambda devices: memory)


@pytest.mark.parametrize(
    ("dtype", "gigabytes", "advice"), [("bfloat16", "281.2", ()), ("float32", "562.5", ("dtype=bfloat16",))]
)
def test_a_model_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, dtype: str, gigabytes: str, advice: tuple[str, ...]
) -> None:
    has_free(monkeypatch, 93 * 10**9)
    with refuses(ValueError, f"{gigabytes} GB", dtype, "H200", "93.0 GB", "141.0", *advice):
        moejax.load("random:mixtral-8x22b", dtype=dtype)


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tensors: Tensors
) -> None:
    def read_into(*args: Any, **options: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFolder, "read_into", read_into)
    folder = write(tmp_path, tensors)
    size = sum(array.size for array in tensors.values())
    has_free(monkeypatch, 2 * size - 1)
    says(refusal(folder), "0.0 GB", "bfloat16", "H200", "0.0 GB")
    has_free(monkeypatch, 2 * size)
    with pytest.raises(AssertionError, match="a weight was read"):
        moejax.load(folder)


def test_an_unknown_backend_is_told_first() -> None:
    with refuses(ValueError, "'cuda'", "auto", "dense", "blocked"):
        moejax.load("there/is/no/such/folder", expert_backend="cuda")


# --- side files ---


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, ()),
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": [2, 3]}, None, (2, 3)),
        ({"eos_token_id": 2}, {"eos_token_id": 5}, (5, 2)),
        ({"eos_token_id": [2, 99, "x"]}, {"eos_token_id": [5, 2]}, (5, 2)),
        ({"eos_token_id": 2}, {"eos_token_id": []}, (2,)),
        ({"eos_token_id": 2}, {"bos_token_id": 1}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": None}, (2,)),
    ],
    ids=str,
)
def test_tokens_that_end_a_text(
    tmp_path: Path, tensors: Tensors, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple
) -> None:
    folder = write(tmp_path, tensors, **config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert moejax.load(folder).eos_token_ids == expected


@pytest.mark.parametrize("wrong", [40, -1, "</s>", 2.0, True, [1, 99]])
def test_a_token_that_ends_a_text_and_does_not_exist(tmp_path: Path, tensors: Tensors, wrong: Any) -> None:
    folder = write(tmp_path, tensors, eos_token_id=wrong)
    says(refusal(folder), "FOLDER/config.json", "eos_token_id", "40", f"got {json.dumps(wrong)}")


def test_a_folder_without_a_tokenizer(tmp_path: Path, tensors: Tensors) -> None:
    model = moejax.load(write(tmp_path, tensors))
    assert model.tokenizer is None and model.no_tokenizer_reason
    with pytest.raises(ValueError) as caught:
        moejax.decode(model, "text")
    assert model.no_tokenizer_reason in str(caught.value)
    assert len(moejax.decode(model, [1, 2], max_tokens=1)[0].token_ids) == 1


def test_errors_of_a_checkpoint_are_value_errors() -> None:
    assert issubclass(CheckpointError, ValueError) and moejax.CheckpointError is CheckpointError


def test_an_adapter_beside_a_whole_model_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, small_tensors())
    assert open_checkpoint(folder).remarks == ()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (remark,) = open_checkpoint(folder).remarks
    says(remark, folder, "adapter_config.json", "not applied")
