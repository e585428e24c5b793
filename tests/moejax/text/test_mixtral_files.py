"""Mixtral's own tokenizer files, as tokenizer.model and as tokenizer.json: equal to the libraries that define them."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerFast

from moejax._convert.errors import CheckpointError
from moejax.text.chat import encode_chat
from moejax.text.stream import TextStream
from moejax.text.tokenizer import Tokenizer
from tests.messages import refuses

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}
# In the manner of the checkpoints; with `legacy`, every part between special tokens gets a space in front.
TEMPLATES = {
    ("v1", True): ("[INST] ", " [/INST]", " "),
    ("v1", False): (" [INST] ", " [/INST]", " "),
    ("v3", True): ("[INST]", "[/INST]", ""),
    ("v3", False): ("[INST] ", "[/INST]", " "),
}
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two  spaces  and   three   ",
    "def f(x):\n    if x:\n        return  1\n\n\n\tpass\n",
    "é € 😀 👨‍👩‍👧 日本語 naïve ﬁ ａ",
    "שלום \u202eעולם\u202c مرحبا",
    "a\x00b\x00",
    "▁ ▁a  ▁▁b",
    "<0x41> <un>",
    "1234567890 3.14",
]
SPECIAL = [
    "<s>",
    "a<unk>b",
    "</s>",
    "a</s>b",
    " </s> ",
    "<s>[INST] a [/INST] b</s>",
    "</s></s>",
    "[INST]",
    "x[/INST]\n y",
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file, in one of its two forms, beside the libraries that define it."""

    version: str
    legacy: bool
    ours: Tokenizer
    theirs: PreTrainedTokenizerFast
    sentencepiece: SentencePieceProcessor


def template_of(version: str, legacy: bool) -> str:
    before, after, answer = TEMPLATES[version, legacy]
    return (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
        f"{{{{ '{before}' + message.content + '{after}' }}}}{{% else %}}"
        f"{{{{ '{answer}' + message.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )


def model_folder(folder: Path, version: str, legacy: bool = True, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DATA / FILES[version], folder / "tokenizer.model")
    fields = {"legacy": legacy, "chat_template": template_of(version, legacy), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(
    scope="module",
    params=[("v1", True, "model"), ("v1", True, "json"), ("v3", True, "json"), ("v3", False, "model")],
    ids=lambda one: f"{one[0]}-{'legacy' if one[1] else 'first'}-{one[2]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    version, legacy, form = request.param
    folder = model_folder(tmp_path_factory.mktemp("mixtral"), version, legacy)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    source = folder
    if form == "json":  # as transformers converts it
        source = folder / "json"
        theirs.save_pretrained(source)
    yield Case(
        version=version,
        legacy=legacy,
        ours=dataclasses.replace(load(source), adds_bos=False),
        theirs=theirs,
        sentencepiece=SentencePieceProcessor(model_file=str(folder / "tokenizer.model")),
    )


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_sentencepiece(case: Case, text: str) -> None:
    assert case.ours.encode(text) == case.sentencepiece.encode(text)


def converts(case: Case, text: str) -> bool:
    """Whether transformers' conversion is exact: its Metaspace puts no space in front of one, SentencePiece does."""
    return case.legacy or not text.startswith((" ", "\u2581"))


@pytest.mark.parametrize("text", TEXTS + SPECIAL)
def test_ids_and_text_equal_those_of_transformers(case: Case, text: str) -> None:
    ids = case.ours.encode(text)
    if converts(case, text):
        assert ids == case.theirs.encode(text, add_special_tokens=False)
    for skip in (True, False):
        assert case.ours.decode(ids, skip_special_tokens=skip) == case.theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(TEXTS + SPECIAL + [" ", "\n", "a"]) | st.text(max_size=5), max_size=6))
def test_any_text(case: Case, parts: list[str]) -> None:
    text = "".join(parts).encode(errors="ignore").decode()
    ids = case.ours.encode(text)
    if converts(case, text):
        assert ids == case.theirs.encode(text, add_special_tokens=False)
    streams = {skip: TextStream(case.ours, [], skip_special_tokens=skip) for skip in (True, False)}
    for skip, stream in streams.items():
        streamed = "".join(stream.push(i).text for i in ids) + stream.finish()
        assert streamed == case.ours.decode(ids, skip_special_tokens=skip)
        assert streamed == case.theirs.decode(ids, skip_special_tokens=skip)
    if not any(token in text for token in case.theirs.all_special_tokens):
        assert ids == case.sentencepiece.encode(text)
        assert case.ours.decode(ids) == case.sentencepiece.decode(ids)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_chat_equals_that_of_its_authors(case: Case, number: int) -> None:
    turns = [f"{TEXTS[number]}x", "Yes,  it is.", f"and {TEXTS[-number]}?"]  # empty messages are refused there
    author = MistralTokenizer.v1() if case.version == "v1" else MistralTokenizer.v3()
    messages = [UserMessage(content=turns[0]), AssistantMessage(content=turns[1]), UserMessage(content=turns[2])]
    expected = author.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    chat = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    assert encode_chat(case.ours, chat) == expected
    assert case.theirs.apply_chat_template(chat, return_dict=False) == expected


def test_bos_is_added_to_prompts_and_its_text_is_not_shown(tmp_path: Path) -> None:
    tokenizer = load(model_folder(tmp_path, "v1"))
    assert tokenizer.encode("a") == [1, *SentencePieceProcessor(model_file=str(DATA / FILES["v1"])).encode("a")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.num_ids) == ("<s>", "</s>", 32_000)
    assert tokenizer.decode([1, 264, 2]) == "a"
    assert load(model_folder(tmp_path, "v1", add_bos_token=False)).encode("<0x41>")[0] != 1


def test_added_tokens_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    added = {"32000": {"content": "<|im_start|>", "special": True}, "32001": {"content": "<|im_end|>", "special": True}}
    tokenizer = load(
        model_folder(tmp_path, "v1", added_tokens_decoder=added, eos_token="<|im_end|>", pad_token="<pad>")
    )
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [1, 32_000, 264, 32_001]
    assert (tokenizer.eos_id, tokenizer.num_ids, tokenizer.ids["<pad>"]) == (32_001, 32_003, 32_002)
    assert tokenizer.decode([32_000, 264, 32_001]) == "a"


def test_names_of_its_authors_own_releases(tmp_path: Path) -> None:
    v1, v3 = (model_folder(tmp_path / version, version) / "tokenizer.model" for version in FILES)
    v1.rename(v1.with_name("tokenizer.model.v1"))
    assert load(v1.parent).num_ids == 32_000
    v3.rename(v1.with_name("tokenizer.model.v3"))
    assert load(v1.parent).num_ids == 32_768


def test_sentencepiece_model_that_is_none(tmp_path: Path) -> None:
    model_folder(tmp_path, "v1")
    for content in (b"", b"\x0a\x03abc", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with refuses(CheckpointError, tmp_path / "tokenizer.model"):
            Tokenizer.from_folder(tmp_path)


def test_token_with_two_ids(tmp_path: Path) -> None:
    with refuses(CheckpointError, "tokenizer.model", "'</s>'", "7", "2"):
        load(model_folder(tmp_path, "v1", added_tokens_decoder={"7": {"content": "</s>"}}))
