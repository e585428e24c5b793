"""Token ids, BOS, text of tokens, and tokenizer files that are wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, processors
from transformers import PreTrainedTokenizerFast

from moejax._convert.errors import CheckpointError
from moejax.text.tokenizer import Tokenizer, missing_tokenizer_message
from tests.messages import refuses, says
from tests.tokenizer_models import BOS, EOS, byte_level, loaded, save, sentencepiece

BACKENDS = {
    "byte-level": byte_level(),
    "sentencepiece": sentencepiece(),
    "metaspace": sentencepiece(metaspace=True),
}
TOKENIZERS = {name: loaded(backend) for name, backend in BACKENDS.items()}
BYTE_LEVEL, SENTENCEPIECE = TOKENIZERS["byte-level"], TOKENIZERS["sentencepiece"]
REFERENCES = {TOKENIZERS[name]: PreTrainedTokenizerFast(tokenizer_object=backend) for name, backend in BACKENDS.items()}
QUICK = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def test_ids_and_names(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path, sentencepiece()))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)
    assert tokenizer.vocab_size == 3 + 256 + 17


def test_import_is_light() -> None:
    code = "import sys, moejax.text.tokenizer; print([m for m in ('jax', 'tokenizers', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- BOS ---


@pytest.mark.parametrize(
    ("post_processor", "add_bos_token", "wanted"),
    [(True, None, 1), (True, True, 1), (True, False, 0), (False, None, 0), (False, True, 1), (False, False, 0)],
)
@pytest.mark.parametrize("text", ["a list", "<s>a list", ""])
def test_bos_exactly_once(
    tmp_path: Path, post_processor: bool, add_bos_token: bool | None, wanted: int, text: str
) -> None:
    backend = sentencepiece()
    if not post_processor:
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer = load(save(tmp_path, backend, add_bos_token=add_bos_token))
    ids = tokenizer.encode(text)
    assert ids.count(1) == (1 if text.startswith(BOS) else wanted)
    assert ids[ids.count(1) :] == backend.encode(text.removeprefix(BOS), add_special_tokens=False).ids


def test_no_eos_behind_a_prompt(tmp_path: Path) -> None:
    backend = sentencepiece()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 1), (EOS, 2)]
    )
    ids = load(save(tmp_path, backend)).encode("a")
    assert ids[0] == 1 and 2 not in ids


def test_bos_known_only_to_the_post_processor(tmp_path: Path) -> None:
    tokenizer = load(save(tmp_path, sentencepiece(), bos_token=None))
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("a")[0] == 1


@pytest.mark.parametrize("vocab", ["", "a"])  # with no token for the text that from_folder tries, and with one
def test_post_processor_that_only_appends_eos_names_no_bos(tmp_path: Path, vocab: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"<unk>": 0, BOS: 1, EOS: 2, **dict.fromkeys(vocab, 3)}, merges=[]))
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 2)])
    tokenizer = load(save(tmp_path, backend, bos_token=None))
    assert tokenizer.bos_id is None
    assert 2 not in tokenizer.encode("a")


def test_truncation_and_padding_of_training_are_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=50, pad_id=9)
    text = "the import statement and a list"
    assert load(save(tmp_path, backend)).decode(load(tmp_path).encode(text)) == text


# --- text ---


@QUICK
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace(BOS, "").replace(EOS, "").replace("▁", "").strip()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@QUICK
@given(data=st.data(), skip=st.booleans())
def test_decode_equals_transformers(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    """Token sequences whose runs of byte tokens are valid: transformers spoils a whole run otherwise."""
    words = st.sampled_from(["é", "€", "😀", " ", "the", " a", "\n", EOS, BOS, "\ufffd", "日本"])
    ids = [i for word in data.draw(st.lists(words)) for i in tokenizer.encode(word)]
    reference = REFERENCES[tokenizer]
    assert tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@QUICK
@given(ids=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 320)))
def test_byte_level_decode_equals_tokenizers(ids: list[int]) -> None:
    backend = BACKENDS["byte-level"]
    for skip in (True, False):
        assert BYTE_LEVEL.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip)


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [  # checked against SentencePiece 0.2
        ("E2 82 AC", "€"),
        ("E2 82 AC AC", "€\ufffd"),
        ("AC E2 82 AC", "\ufffd€"),
        ("E2 82", "\ufffd\ufffd"),
        ("E2 82 E2 82 AC", "\ufffd\ufffd€"),
        ("F0 9F 98 80 F0 9F 98", "😀\ufffd\ufffd\ufffd"),
        ("ED A0 80", "\ufffd\ufffd\ufffd"),
        ("41 FF 42", "A\ufffdB"),
    ],
)
def test_only_invalid_fallback_bytes_are_replaced(bytes_: str, text: str) -> None:
    ids = [3 + byte for byte in bytes.fromhex(bytes_)]
    the, a = SENTENCEPIECE.encode("the"), SENTENCEPIECE.encode("a")[1:]
    assert SENTENCEPIECE.decode(ids) == text
    assert SENTENCEPIECE.decode([*the, *ids, *a]) == f"the{text} a"


def test_token_text_keeps_the_leading_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a list")
    assert tokenizer.token_text(ids[0]) == BOS
    assert "".join(map(tokenizer.token_text, ids[1:])).removeprefix(" ") == "a list"
    assert " " in map(lambda i: tokenizer.token_text(i)[:1], ids[1:])


def test_token_text_of_part_of_a_character_and_of_no_token(tokenizer: Tokenizer) -> None:
    part = tokenizer.encode("日")[-1]
    assert tokenizer.token_text(part) == "\ufffd"
    assert tokenizer.token_text(tokenizer.vocab_size + 5) == ""


def test_eos_that_only_the_config_calls_special(tmp_path: Path) -> None:
    vocab = {"a": 0, "</end>": 1}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer = load(save(tmp_path, backend, bos_token=None, eos_token={"content": "</end>", "special": True}))
    assert tokenizer.eos_id == 1
    assert tokenizer.decode([0, 1]) == "a"
    assert tokenizer.decode([0, 1], skip_special_tokens=False) == "a </end>"


def test_lone_surrogate(tokenizer: Tokenizer) -> None:
    with refuses(ValueError, "'\\ud83d'", "character 2"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_impossible_id(token_id: int) -> None:
    with refuses(ValueError, f"token id {token_id}", "0 to 275"):
        SENTENCEPIECE.decode([token_id])


def test_text_outside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = load(
        save(tmp_path, tokenizers.Tokenizer(models.Unigram([("a", 0.0)], None)), bos_token="", eos_token="")
    )
    with refuses(ValueError, "cannot encode", "unk_id"):
        tokenizer.encode("b")


# --- files ---


def test_eos_from_generation_config(tmp_path: Path) -> None:
    save(tmp_path, sentencepiece(), bos_token=None, eos_token=None)
    write(tmp_path / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 7]})
    assert (load(tmp_path).bos_id, load(tmp_path).eos_id) == (1, 2)


def test_names_from_special_tokens_map(tmp_path: Path) -> None:
    save(tmp_path, sentencepiece(), bos_token=None, eos_token=None)
    write(tmp_path / "special_tokens_map.json", {"bos_token": {"content": BOS}, "eos_token": EOS})
    assert (load(tmp_path).bos_id, load(tmp_path).eos_id) == (1, 2)


def test_tokenizer_json_alone(tmp_path: Path) -> None:
    sentencepiece().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.chat_template) == (1, None, None)


@pytest.mark.parametrize(
    ("field", "file", "expected"),
    [
        ("one", None, "one"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], None, "d"),
        ([{"name": "rag", "template": "r"}], None, None),
        ("one", "file é\n", "file é\n"),
        (None, None, None),
    ],
)
def test_chat_template(tmp_path: Path, field: Any, file: str | None, expected: str | None) -> None:
    save(tmp_path, byte_level(), chat_template=field)
    if file is not None:
        (tmp_path / "chat_template.jinja").write_bytes(file.encode())
    assert load(tmp_path).chat_template == expected


def write(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("tokenizer.json", "", ("not valid JSON",)),
        ("tokenizer.json", '{"a":' * 100_000, ("not valid JSON", "nested")),
        ("tokenizer.json", "{}", ("Model missing",)),
        ("tokenizer_config.json", "{", ("not valid JSON",)),
        ("tokenizer_config.json", "[" * 100_000, ("not valid JSON", "nested")),
        ("special_tokens_map.json", '{"a":' * 100_000, ("not valid JSON", "nested")),
        ("added_tokens.json", '{"a":' * 100_000, ("not valid JSON", "nested")),
        ("generation_config.json", "[" * 100_000, ("not valid JSON", "nested")),
        ("tokenizer_config.json", '{"eos_token": "a", "eos_token": "l"}', ("'eos_token'", "twice")),
        ("tokenizer_config.json", "[]", ("JSON list", "object")),
        ("tokenizer_config.json", {"bos_token": 7}, ("bos_token", "got 7")),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, ("add_bos_token", "got 'yes'")),
        ("tokenizer_config.json", {"chat_template": 3}, ("chat_template",)),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}, 3]}, ("chat_template",)),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": 3}]}, ("default",)),
        ("special_tokens_map.json", {"eos_token": [EOS]}, ("eos_token", "got ['</s>']")),
        ("generation_config.json", {"eos_token_id": -1}, ("eos_token_id", "tokenizer.json")),
        ("generation_config.json", {"eos_token_id": 2**40}, ("eos_token_id",)),
        ("generation_config.json", {"eos_token_id": True}, ("eos_token_id",)),
        ("generation_config.json", {"eos_token_id": []}, ("eos_token_id",)),
    ],
)
def test_malformed_file(tmp_path: Path, name: str, content: Any, facts: tuple[str, ...]) -> None:
    save(tmp_path, sentencepiece(), bos_token=None, eos_token=None)
    write(tmp_path / name, content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(tmp_path)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / name)) and "\n" not in text
    assert "recursion" not in text
    says(text, *facts)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ],
)
def test_link_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    """As in a copy of the HF cache without its blobs: to go on without the file would give other tokens."""
    save(tmp_path, sentencepiece(), bos_token=None, eos_token=None)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("blobs/1234")
    with refuses(CheckpointError, tmp_path / name, "blobs/1234", "download"):
        Tokenizer.from_folder(tmp_path)


def test_tokenizer_model_that_is_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to("gone")
    with refuses(CheckpointError, "tokenizer.model", "gone"):
        Tokenizer.from_folder(tmp_path)


def test_folder_in_place_of_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with refuses(CheckpointError, "tokenizer.json", "regular", "download"):
        Tokenizer.from_folder(tmp_path)


def test_add_bos_token_without_a_bos_token(tmp_path: Path) -> None:
    backend = sentencepiece()
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    save(tmp_path, backend, bos_token=None, add_bos_token=True)
    with refuses(CheckpointError, "add_bos_token", "bos_token"):
        Tokenizer.from_folder(tmp_path)


def test_nested_deeper_than_its_library_reads(tmp_path: Path) -> None:
    save(tmp_path, sentencepiece())
    tree = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for _ in range(200):
        tree["normalizer"] = {"type": "Sequence", "normalizers": [tree["normalizer"]]}
    write(tmp_path / "tokenizer.json", tree)
    with refuses(CheckpointError, tmp_path / "tokenizer.json", "nested") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "recursion" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_byte_order_marks(tmp_path: Path, name: str) -> None:
    """Editors of Windows write one; what is UTF-16 throughout is told."""
    save(tmp_path, sentencepiece())
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None and tokenizer.eos_token == EOS
    for encoding in ("utf-16", "utf-16-le", "utf-32-be"):
        (tmp_path / name).write_text(text, encoding=encoding)
        with refuses(CheckpointError, tmp_path / name, encoding[:6].upper(), "save", "UTF-8") as caught:
            Tokenizer.from_folder(tmp_path)
        assert "download" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_file_that_is_no_utf8(tmp_path: Path, name: str) -> None:
    save(tmp_path, sentencepiece())
    (tmp_path / name).write_bytes(b"{\xff\xfe}")
    with refuses(CheckpointError, name, "0xff"):
        Tokenizer.from_folder(tmp_path)


def test_tokenizer_json_that_makes_the_library_panic(tmp_path: Path) -> None:
    """A Rust panic reaches Python as a BaseException: it would pass `except Exception`."""
    save(tmp_path, sentencepiece())
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["post_processor"]["special_tokens"] = {}
    write(path, tree)
    with refuses(CheckpointError, "tokenizer.json", "key"):
        Tokenizer.from_folder(tmp_path)


def test_interrupt_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    save(tmp_path, sentencepiece())
    monkeypatch.setattr("moejax.text.token_files.is_inside", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_folder(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None
    says(missing_tokenizer_message(tmp_path), tmp_path, "tokenizer.json", "tokenizer.model", "token ids")
    (tmp_path / "tekken.json").write_text("{}")
    says(missing_tokenizer_message(tmp_path), "tokenizer.json", "tekken.json", "token ids")


def test_tokenizer_without_byte_tokens_decodes_as_its_library_does(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "<0x41>": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = load(save(tmp_path, backend, bos_token=None, eos_token=None))
    assert tokenizer.decode([1, 2, 3, 3, 1]) == backend.decode([1, 2, 3, 3, 1]) == "ab <0x41> <0x41> a"
