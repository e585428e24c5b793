"""A model by its id, from a hub that the test serves: whole, interrupted, refused, offline, from the cache."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import constants

import moejax
from moejax.checkpoint import DEMO_FOLDER, open_checkpoint
from moejax.hub.failures import HubError
from tests.convert.checkpoint_files import SINGLE, write_sharded
from tests.messages import error_line, refuses
from tests.moejax.cli.conftest import Call, call  # noqa: F401
from tests.moejax.hub.served_hub import COMMIT, OLD, TOKEN, Hub, serving, use
from tests.moejax.loading_folder import small_tensors, write
from tests.moejax.test_loading_release import WEIGHTS, write_release
from tests.moejax.test_loading_release import released as release_of

NAME, SHARDED, RELEASE, TOKENS = "org/whole", "org/sharded", "org/release", "org/tokens"
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", SINGLE}
INDEX = f"{SINGLE}.index.json"
SHARDS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
CLOSED = "http://127.0.0.1:9"  # nobody listens there


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, bytes]]:
    """A model with everything that is not needed beside it, one in two files, and one in Mistral's own layout."""
    demo = {name: raw for name, raw in files(DEMO_FOLDER).items() if name in NEEDED}
    sides = {name: raw for name, raw in demo.items() if name != SINGLE}
    others = dict.fromkeys(("pytorch_model.bin", "consolidated.00.pt", "README.md", "onnx/model.onnx"), b"x" * 10)
    whole = {**demo, **others, "consolidated.safetensors": b"x", "params.json": b"{}", "v1/config.json": b"{}"}
    tensors = small_tensors()
    tiny = files(write(tmp_path_factory.mktemp("tiny"), tensors))
    names = sorted(tensors)
    parts = {SHARDS[i]: {name: tensors[name] for name in names[i::2]} for i in (0, 1)}
    sharded = files(write_sharded(tmp_path_factory.mktemp("sharded"), parts)) | {"config.json": tiny["config.json"]}
    released = files(write_release(tmp_path_factory.mktemp("release"), release_of(WEIGHTS)))
    return {
        NAME: whole,
        SHARDED: {**sharded, "model-x.safetensors": b"x"},
        RELEASE: {**released, "consolidated.00.pth": b"x"},
        TOKENS: {**sides, "pytorch_model.bin": b"x", "model.gguf": b"x"},
        "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "config.json": b"{}"},
        "org/other": {"config.json": b'{"model_type": "gpt2"}', SINGLE: tiny[SINGLE]},
        "org/torn": {name: raw for name, raw in sharded.items() if name != SHARDS[1]},
    }


@pytest.fixture
def hub(models: Mapping[str, Mapping[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub(models=dict(models))) as hub:
        use(monkeypatch, hub.address, str(tmp_path))
        yield hub


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use(monkeypatch, CLOSED, str(cache), offline=True)


def test_what_is_needed_is_downloaded_and_then_asked_for_no_more(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(NAME)
    assert opened.folder.name == COMMIT and opened.folder.is_relative_to(tmp_path)
    assert set(hub.sent) == NEEDED | {"params.json"}
    assert (opened.folder / SINGLE).read_bytes() == hub.models[NAME][SINGLE]
    assert opened.tokenizer is not None
    hub.requests.clear()
    for source, revision in ((NAME, None), (f"hf://{NAME}@{COMMIT}", None), (NAME, COMMIT), (NAME, "main")):
        assert open_checkpoint(source, revision).folder == opened.folder
    assert not hub.requests
    offline(monkeypatch, tmp_path)
    assert open_checkpoint(NAME).folder == opened.folder


def test_a_download_decodes_as_the_folder_does(hub: Hub) -> None:
    model = moejax.load(f"{hub.address}/{NAME}/tree/main", revision="main", dtype="float32")
    local = moejax.load("demo", dtype="float32")
    np.testing.assert_array_equal(moejax.logits(model, [[1, 2, 3]])[0], moejax.logits(local, [[1, 2, 3]])[0])


def test_shards_are_those_that_the_index_names(hub: Hub) -> None:
    assert len(open_checkpoint(SHARDED).tensors.tensors) == len(small_tensors())
    assert set(hub.sent) == {"config.json", INDEX, *SHARDS}


def test_mistrals_own_layout_is_taken_where_there_is_no_other(hub: Hub) -> None:
    assert not open_checkpoint(RELEASE).has_config
    assert set(hub.sent) == {"params.json", "consolidated.safetensors"}


def test_another_revision_is_another_folder(hub: Hub) -> None:
    with refuses(ValueError, NAME, "safetensors"):
        open_checkpoint(NAME, "v1")
    assert hub.sent == ["config.json"]
    with refuses(ValueError, NAME, "v7"):
        open_checkpoint(f"hf://{NAME}@v7")


def test_a_connection_that_breaks_is_continued(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    hub.cuts[SINGLE] = [3_000_000, 2_000_000]
    assert (open_checkpoint(NAME).folder / SINGLE).read_bytes() == hub.models[NAME][SINGLE]
    assert hub.ranges == ["bytes=3000000-", "bytes=5000000-"]


def test_a_download_that_stops_is_continued_by_the_next(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts[SHARDS[1]] = [0] * 20
    with refuses(ValueError, "downloading", SHARDED, hub.address):
        open_checkpoint(SHARDED)
    hub.cuts.clear()
    hub.requests.clear()
    assert open_checkpoint(SHARDED).folder.name == COMMIT
    assert hub.sent == [SHARDS[1]]


def test_without_leave_it_says_how_to_log_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(NAME)
    with refuses(ValueError, NAME, "gated", f"{hub.address}/{NAME}", "hf auth login", "HF_TOKEN"):
        open_checkpoint(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_checkpoint(NAME).folder.name == COMMIT


def test_what_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refuses(ValueError, "no folder org/nothing", hub.address, "org/nothing", "hf auth login"):
        open_checkpoint("org/nothing")
    with refuses(ValueError, TOKENS, "safetensors", "'model.gguf'", "'pytorch_model.bin'"):
        open_checkpoint(TOKENS)
    with refuses(ValueError, "org/adapter", "'adapter_config.json'"):
        open_checkpoint("org/adapter")
    with refuses(ValueError, INDEX, repr(SHARDS[1])):
        open_checkpoint("org/torn")
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_a_model_that_is_not_decoded_is_refused_before_its_weights_are_downloaded(hub: Hub) -> None:
    with refuses(ValueError, "config.json", "'gpt2'"):
        open_checkpoint("org/other")
    assert SINGLE not in hub.sent


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, CLOSED, str(tmp_path))
    with refuses(ValueError, NAME, CLOSED, "network"):
        open_checkpoint(NAME)
    offline(monkeypatch, tmp_path)
    with refuses(ValueError, NAME, tmp_path, "HF_HUB_OFFLINE"):
        open_checkpoint(f"hf://{NAME}")


def test_a_copy_in_the_cache_that_lacks_a_tokenizer_is_completed_or_taken_as_it_is(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = open_checkpoint(NAME).folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    offline(monkeypatch, tmp_path)
    assert open_checkpoint(NAME).tokenizer is None
    use(monkeypatch, hub.address, str(tmp_path))
    assert open_checkpoint(NAME).tokenizer is not None


def test_a_copy_in_the_cache_that_lacks_a_weight_is_completed(hub: Hub) -> None:
    folder = open_checkpoint(NAME).folder
    (folder / SINGLE).resolve().unlink()
    hub.requests.clear()
    assert (open_checkpoint(NAME).folder / SINGLE).read_bytes() == hub.models[NAME][SINGLE]
    assert hub.sent == [SINGLE]


@pytest.mark.parametrize("api", [b"<!DOCTYPE html><html>log in</html>", b"5", b'{"sha": 5, "siblings": [{}]}'])
def test_a_server_that_is_no_hub_is_told(hub: Hub, api: bytes) -> None:
    hub.api = api
    with refuses(HubError, NAME, hub.address, "hub", "HF_ENDPOINT"):
        open_checkpoint(NAME)
    hub.api = None
    assert open_checkpoint(NAME).folder.name == COMMIT


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
def test_a_damaged_file_in_the_cache_is_told_with_the_command_that_replaces_it(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.damaged[name] = b"<!DOCTYPE html><html>log in</html>"
    with refuses(ValueError, name, f"hf download {NAME} {name} --revision {COMMIT} --force-download"):
        _ = open_checkpoint(NAME).tokenizer
    hub.damaged.clear()
    with pytest.raises(ValueError) as caught:  # nothing asks the hub for what is there
        _ = open_checkpoint(NAME).tokenizer
    command = str(caught.value).partition("again: ")[2].split()
    scripts = str(Path(sys.executable).parent)  # where pip puts `hf`, whether the environment is activated or not
    path = os.pathsep.join([scripts, os.environ["PATH"]])
    settings = {"PATH": path, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    subprocess.run(command, capture_output=True, env=os.environ | settings, check=True)
    opened = open_checkpoint(NAME)
    assert opened.tokenizer is not None and (opened.folder / name).read_bytes() == hub.models[NAME][name]


def test_a_disk_that_is_too_small_is_told_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 5_000_000))
    with refuses(ValueError, NAME, "7.8 MB", "5.0 MB", tmp_path, "HF_HOME"):
        open_checkpoint(NAME)
    assert SINGLE not in hub.sent


def test_a_comparison_needs_the_configuration_alone(hub: Hub, call: Call) -> None:  # noqa: F811
    done = call(
        "mesh", "compare", "--model", NAME, "--devices", "2", "--hardware", "h200", "-b", "1", "--dtype", "auto"
    )
    assert done.status == 0, done.err
    assert set(hub.sent) <= {"config.json", "params.json"}
    hub.requests.clear()
    assert call("mesh", "show", "--model", f"hf://{NAME}@{COMMIT}", "--mesh", "expert=2").status == 0
    assert not hub.requests
    near = call("mesh", "show", "--model", "mistralai/Mixtral-8x7B-v0.1", "--mesh", "expert=2")
    error_line(near.err, "mistralai/Mixtral-8x7B-v0.1", "'mixtral-8x7b'")


def test_commands_take_an_id_and_a_revision(hub: Hub, call: Call, tmp_path: Path) -> None:  # noqa: F811
    done = call("convert", NAME, tmp_path / "orbax", "--revision", COMMIT, "--quiet")
    assert (done.status, done.err) == (0, "")
    shown = json.loads(call("info", NAME, "--revision", "main", "--json").out)
    assert Path(shown["folder"]).name == COMMIT
    error_line(call("info", NAME, "--revision", "v7").err, NAME, "v7")
    error_line(call("info", "demo", "--revision", "v7").err, "--revision v7", "demo")
    for command in (("bench", "latency", NAME), ("bench", "throughput", NAME), ("bench", "compare", NAME)):
        error_line(call(*command, "--revision", "v7").err, NAME, "v7")
    asked = ("mesh", "compare", NAME, "--devices", "1", "--hardware", "cpu", "-b", "1", "--input-len", "4")
    asked = (*asked, "--context", "8", "--json")
    for revision in ("main", COMMIT):
        found = json.loads(call(*asked, "--revision", revision).out)
        assert found["asked"]["model"] == f"hf://{NAME}@{revision}" and found["rows"]
    shown = json.loads(call("mesh", "show", "--model", NAME, "--mesh", "tensor=1", "--revision", COMMIT, "--json").out)
    assert shown["arrays"]
    for command in (asked, ("mesh", "show", NAME, "--mesh", "tensor=1")):
        error_line(call(*command, "--revision", "v7").err, NAME, "v7")
    assert OLD not in {path for _, path in hub.requests}


@pytest.mark.parametrize("revision", [COMMIT, "v7"])
def test_verify_takes_a_revision(hub: Hub, call: Call, revision: str) -> None:  # noqa: F811
    done = call("verify", SHARDED, "--mesh", "expert=2", "--revision", revision, "--quiet", "--json")
    assert {path.split("/")[4] for method, path in hub.requests if "/resolve/" in path} <= {revision}
    if revision == COMMIT:
        assert (done.status, done.err) == (0, "") and json.loads(done.out)
        assert set(hub.sent) >= set(SHARDS)
    else:
        error_line(done.err, SHARDED, revision)
        assert (done.status, hub.sent) == (2, [])


@pytest.mark.parametrize("revision", [COMMIT, "v7"])
def test_serve_takes_a_revision(hub: Hub, tmp_path: Path, revision: str) -> None:
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    flags = ("--port", "0", "--max-batch", "1", "--max-seq-len", "64", "--revision", revision, "--baseline", "none")
    command = [sys.executable, "-m", "moejax", "serve", NAME, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | settings) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "ready: open" in line or line.startswith("error:"):
                    break
            else:
                pytest.fail("it said nothing of an end")
            if revision == COMMIT:
                (url,) = re.findall(r"ready: open (\S+)/", line)
                assert [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]] == ["whole"]
                assert NEEDED <= set(hub.sent)
            else:
                error_line(line, NAME, revision)
                assert hub.sent == []
        finally:
            process.kill()
    assert {path.split("/")[4] for _, path in hub.requests if "/resolve/" in path} <= {revision}


def test_a_command_of_its_own_reads_the_settings_of_huggingface_hub(hub: Hub, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "moejax", "decode", NAME, "--prompt", "A list is", "-n", "4", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert (tmp_path / "home" / "hub" / "models--org--whole" / "snapshots" / COMMIT / SINGLE).exists()
