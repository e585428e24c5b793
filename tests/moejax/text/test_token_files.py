"""Which file says what about a tokenizer's tokens: the same as in transformers, wherever it is said."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from moejax._convert.errors import CheckpointError
from moejax.text import encoder
from moejax.text.tokenizer import Tokenizer
from tests.messages import refuses
from tests.tokenizer_models import byte_level

# In the vocabulary; in tokenizer.json's added tokens, special or not; nowhere yet.
KNOWN, SPECIAL, ADDED, NEW = ["a", "l"], ["<s>", "</s>"], ["<call>"], ["<|im_end|>", "[PAD]", "<extra>"]
TOKENS = KNOWN + SPECIAL + ADDED + NEW
NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "image_token"]
TEXT = "the list <s> a</s><call> b <|im_end|>\n[PAD]<extra>  c<|im_end|>"

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class InThisProcess:
    """What `Limited` is, without a process for each of the many examples."""

    task: str
    setup: dict[str, Any]
    seconds: int
    memory: int

    @cached_property
    def prepared(self) -> tuple[Any, Any]:
        return encoder.prepare(json.loads(json.dumps(self.setup)))

    def describe(self) -> Any:
        return json.loads(json.dumps(self.prepared[0]))

    def ask(self, job: Any, *, seconds: int) -> Any:
        return self.prepared[1](job)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("moejax.text.tokenizer.Limited", InThisProcess)
    yield


def write(folder: Path, files: Files) -> Path:
    backend = byte_level()
    backend.add_tokens([AddedToken("<call>", special=False, rstrip=True)])
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def as_object(token: str, special: bool, lstrip: bool) -> dict[str, Any]:
    flags = {"lstrip": lstrip, "rstrip": False, "normalized": False, "single_word": False, "special": special}
    return {"content": token, **flags}


FLAGS = {"special": st.booleans(), "lstrip": st.booleans()}
OBJECTS = st.builds(as_object, st.sampled_from(TOKENS), **FLAGS)
WORDS = st.sampled_from(TOKENS)
MARKED = OBJECTS.map(lambda token: {"__type": "AddedToken", **token})


@st.composite
def folders(draw: st.DrawFn) -> Files:
    """The files beside a tokenizer.json, each with a part of what there is to say."""
    config: dict[str, Any] = draw(st.dictionaries(st.sampled_from(NAMES), WORDS, max_size=3))
    config |= draw(st.dictionaries(st.sampled_from(NAMES[:4]), MARKED, max_size=2))
    config |= draw(st.dictionaries(st.just("additional_special_tokens"), st.lists(WORDS, max_size=2)))
    files: Files = {"tokenizer_config.json": config}
    backend = byte_level()
    ids = backend.get_vocab(with_added_tokens=True) | {"<call>": backend.get_vocab_size()}
    new = draw(st.lists(st.sampled_from(NEW), unique=True))  # whoever gives these ids goes on where the others end
    ids |= {token: backend.get_vocab_size() + 1 + n for n, token in enumerate(new)}
    listed = [token for token in [*draw(st.lists(st.sampled_from(KNOWN + SPECIAL + ADDED), unique=True)), *new]]
    if draw(st.booleans()):
        tokens = {token: draw(st.builds(as_object, st.just(token), **FLAGS)) for token in listed}
        config["added_tokens_decoder"] = {str(ids[token]): fields for token, fields in tokens.items()}
    elif draw(st.booleans()):
        files["added_tokens.json"] = {token: ids[token] for token in new}
    if draw(st.booleans()):
        said = draw(st.dictionaries(st.sampled_from(NAMES[:4]), WORDS | OBJECTS, max_size=3))
        files["special_tokens_map.json"] = said
    return files


@pytest.mark.usefixtures("in_this_process")
@settings(max_examples=150, deadline=None)
@given(files=folders())
@example(files={"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": "<|im_end|>"}})
@example(files={"tokenizer_config.json": {"additional_special_tokens": ["<extra>", "[PAD]"]}})
@example(
    files={
        "tokenizer_config.json": {"eos_token": "</s>"},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": True}},
        "added_tokens.json": {"<|im_end|>": 301},
    }
)
def test_the_same_tokens_as_in_transformers(files: Files) -> None:
    with TemporaryDirectory() as name:
        folder = write(Path(name), files)
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        ours = load(folder)
    assert dict(ours.named) == theirs.special_tokens_map
    flagged = {token.content for token in theirs.added_tokens_decoder.values() if token.special} | {"<s>", "</s>"}
    # BOS without a name is known by the place where tokenizer.json puts it.
    bos = set() if ours.bos_token is None else {ours.bos_token}
    assert ours.special_pieces == flagged | set(theirs.all_special_tokens) | bos
    ids = theirs.encode(TEXT, add_special_tokens=False)
    assert ours.encode(TEXT)[-len(ids) :] == ids
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    if flagged == ours.special_pieces:  # its library hides what is special for it; its own list has more
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.eos_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


def test_a_token_with_another_id_than_its_file_says(tmp_path: Path) -> None:
    decoder = {"500": {"content": "<|im_end|>", "special": True}}
    with refuses(CheckpointError, tmp_path / "tokenizer.json", "'<|im_end|>'", "500", "301"):
        load(write(tmp_path, {"tokenizer_config.json": {"added_tokens_decoder": decoder}}))


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, ("added_tokens_decoder", "got []")),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, ("added_tokens_decoder", "'x'")),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {}}}, ("added_tokens_decoder[3]", "got {}")),
        ("tokenizer_config.json", {"additional_special_tokens": "x"}, ("additional_special_tokens", "got 'x'")),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, ("extra_special_tokens", "got 3")),
        ("tokenizer_config.json", {"eos_token": {"content": "x", "lstrip": 3}}, ("eos_token", "'lstrip': 3")),
        ("tokenizer_config.json", {"chat_template": {"a": 3}}, ("named a", "got 3")),
        ("added_tokens.json", {"<x>": "3"}, ("ids", "'3'")),
        ("added_tokens.json", [], ("JSON list", "object")),
    ],
)
def test_malformed(tmp_path: Path, name: str, content: Any, facts: tuple[str, ...]) -> None:
    with refuses(CheckpointError, tmp_path / name, *facts):
        load(write(tmp_path, {name: content}))


# --- links ---


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"]
)
def test_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """A repository's author chooses no file of this machine."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, {"tokenizer_config.json": {}})
    (folder / name).unlink(missing_ok=True)
    (tmp_path / "secret").write_text("{}")
    (folder / name).symlink_to("../secret")
    with refuses(CheckpointError, folder / name, tmp_path / "secret", "out of its folder"):
        Tokenizer.from_folder(folder)


def test_links_inside_the_folder_and_to_the_blobs_of_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    write(folder, {"tokenizer_config.json": {"eos_token": "</s>"}})
    (folder / "tokenizer.json").rename(blobs / "abcd")
    (folder / "tokenizer.json").symlink_to("../../blobs/abcd")
    (folder / "tokenizer_config.json").rename(folder / "inside.json")
    (folder / "tokenizer_config.json").symlink_to("inside.json")
    assert load(folder).eos_token == "</s>"
    seen = tmp_path / "link"
    seen.symlink_to(folder)  # the folder itself may be a link
    assert load(seen).eos_token == "</s>"
