"""What is in a folder without a checkpoint, and the command that helps."""

import json
import shlex
from pathlib import Path

import pytest

from moejax._convert.contents import about_file, download_original, other_kind
from tests.messages import says


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def kind_of(folder: Path) -> str:
    found = other_kind(folder)
    assert found is not None and "\n" not in found
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors", "pytorch_model.bin", "x.gguf", "adapter_config.json"),
        ("config.json", "model.safetensors.index.json"),
        ("manifest.json", "weights/embed/x", "config.json", "old.gguf"),
        ("config.json",),
        ("config.json", "training_args.bin", "rng_state.pth"),
        (),
    ],
)
def test_a_checkpoint_is_no_other_kind(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Nor is one that lacks a file: whoever opens it says which."""
    assert other_kind(made(tmp_path, *names)) is None


def test_a_folder_that_is_not_there_or_closed(tmp_path: Path) -> None:
    assert other_kind(tmp_path / "none") is None


def test_an_adapter_is_merged_into_its_base(tmp_path: Path) -> None:
    folder = made(tmp_path / "it's mine", "adapter_model.safetensors", "tokenizer.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "mistralai/Mixtral-8x7B-v0.1"}')
    message = kind_of(folder)
    says(message, "LoRA adapter", "'adapter_config.json'", f"{folder}-merged")
    assert_python(message, "peft", folder, f"{folder}-merged")


def assert_python(message: str, module: str, source: Path, target: str) -> None:
    """The message ends with a command of Python that a shell takes apart as it was meant."""
    program, flag, code = shlex.split(message[message.index("python -c") :])
    assert (program, flag) == ("python", "-c") and module in code
    compile(code, "message", "exec")
    assert json.dumps(str(source)) in code and json.dumps(target) in code
    assert "AutoTokenizer" in code


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (("Mixtral.Q4_K_M.gguf", "README.md", "config.json"), ("llama.cpp (GGUF)", "'Mixtral.Q4_K_M.gguf'")),
        (("tf_model.h5", "config.json"), ("TensorFlow", "'tf_model.h5'")),
        (("flax_model.msgpack",), ("Flax",)),
        (("model.onnx",), ("ONNX",)),
        (("quantize_config.json", "model.safetensors", "config.json"), ("AutoGPTQ", "quantize_config.json")),
        (("quant_config.json", "model.safetensors", "config.json"), ("AutoAWQ", "quant_config.json")),
        (("params.json", "consolidated.00.pth", "consolidated.01.pth"), ("Mistral", "pickle")),
        (("config.json", "consolidated.00.pth"), ("pickled", "'consolidated.00.pth'")),
    ],
)
def test_another_kind_of_weights_names_the_original(
    tmp_path: Path, names: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    message = kind_of(made(tmp_path, *names))
    assert all(fact in message for fact in facts), message
    says(message, tmp_path, "hf download ORG/NAME")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", "---\nlicense: mit\nbase_model: mistralai/Mixtral-8x7B-v0.1\n---\n"),
        ("README.md", "---\nbase_model:\n- mistralai/Mixtral-8x7B-v0.1\n---\n"),
        ("README.md", '---\nbase_model: "mistralai/Mixtral-8x7B-v0.1"\n---\n'),
        ("config.json", json.dumps({"_name_or_path": "mistralai/Mixtral-8x7B-v0.1"})),
        ("adapter_config.json", json.dumps({"base_model_name_or_path": "mistralai/Mixtral-8x7B-v0.1"})),
    ],
)
def test_the_original_is_the_one_that_a_text_names(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    says(download_original(tmp_path), "hf download mistralai/Mixtral-8x7B-v0.1", "--local-dir Mixtral-8x7B-v0.1")


@pytest.mark.parametrize("name", ["/home/me/model", "a b/c", "x/$(rm -r y)", "../..", "-x/y", 7])
def test_a_name_that_is_no_id_is_not_made_a_command(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": name}))
    (tmp_path / "adapter_config.json").write_text("[" * 9999)
    says(download_original(tmp_path), "hf download ORG/NAME")


def test_consolidated_weights_without_their_parameters(tmp_path: Path) -> None:
    folder = made(tmp_path / "a b", "consolidated.safetensors", "config.json")
    message = kind_of(folder)
    says(message, folder, "consolidated.safetensors", "params.json")
    words = shlex.split(message[message.index("hf download") :])
    assert words == ["hf", "download", "ORG/NAME", "params.json", "--local-dir", str(folder)]


def test_pickled_weights_are_saved_anew(tmp_path: Path) -> None:
    message = kind_of(made(tmp_path, "config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "a.pt", "b.pth"))
    says(message, tmp_path, "'a.pt', 'b.pth', 'pytorch_model-1.bin'", "1 more", "pickle")
    assert_python(message, "transformers", tmp_path, f"{tmp_path}-safetensors")


@pytest.mark.parametrize("where", ["it", "snapshots/0a1b", "a/b/c"])
def test_a_folder_above_the_checkpoint_names_it(tmp_path: Path, where: str) -> None:
    made(tmp_path, f"{where}/config.json", f"{where}/model.safetensors", "notes.txt")
    if where == "a/b/c":  # too deep to look for
        assert other_kind(tmp_path) is None
        return
    says(kind_of(tmp_path), tmp_path, tmp_path / where, "give that folder")


def test_a_folder_above_several_names_them(tmp_path: Path) -> None:
    made(tmp_path, "a/config.json", "b/params.json", "c/other.txt")
    says(kind_of(tmp_path), tmp_path, "2", f"'{tmp_path / 'a'}', '{tmp_path / 'b'}'")


PICKLES = ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"]


@pytest.mark.parametrize(
    ("name", "start", "facts"),
    [
        ("m.gguf", b"GGUF\x03\0\0\0", ("GGUF", "hf download")),
        ("blob", b"GGUF\x03\0\0\0", ("GGUF", "hf download")),
        ("m.bin", b"GGUF\x03\0\0\0", ("GGUF", "hf download")),
        ("ggml-model-q4_0.bin", b"tjgg\x03\0\0\0", ("GGML", "hf download")),
        ("weights", b"\x89HDF\r\n\x1a\n", ("TensorFlow", "hf download")),
        ("m.onnx", b"\x08\x07", ("ONNX", "hf download")),
        *((name, start, ("pickle", "hf download")) for name in PICKLES for start in (b"PK\x03\x04", b"\x80\x02", b"")),
        ("data", b"PK\x03\x04", ("pickle", "hf download")),
        ("model-00001-of-00002.safetensors", b"\x02\0\0\0\0\0\0\0{}", ("safetensors", "config.json", "FOLDER")),
        ("model.safetensors", b"", ("safetensors", "config.json", "FOLDER")),
        ("blob", b"\x02\0\0\0\0\0\0\0{}", ("safetensors", "config.json", "FOLDER")),
        ("m.safetensors", b"GGUF\x03\0\0\0", ("GGUF", "hf download")),
        ("notes.txt", b"read me", ("a file", "folder", "config.json")),
    ],
)
def test_a_file_is_named_by_how_it_begins_before_its_name(
    tmp_path: Path, name: str, start: bytes, facts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(start)
    says(about_file(tmp_path / name).replace(f"{tmp_path}/{name}", "FILE").replace(str(tmp_path), "FOLDER"), *facts)


def test_pickled_weights_that_transformers_reads_are_saved_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "of mine", "pytorch_model.bin", "config.json")
    message = about_file(folder / "pytorch_model.bin")
    says(message, "pickle", f"{folder}-safetensors")
    assert_python(message, "transformers", folder, f"{folder}-safetensors")
