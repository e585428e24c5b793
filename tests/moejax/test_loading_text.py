"""What the tokenizer beside the weights makes of a loaded model: where its texts end, and what is told about it."""

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

import moejax
from moejax.checkpoint import open_checkpoint
from moejax.text.chat import encode_chat
from tests.messages import refuses, says
from tests.moejax.loading_folder import Tensors, small_tensors, write
from tests.tokenizer_models import save

VOCAB = 40  # rows of the embedding
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 3, **{f"w{n}": n for n in range(4, VOCAB)}}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return small_tensors()


def with_tokenizer(folder: Path, words: dict[str, int] = WORDS, **config: Any) -> Path:
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return save(folder, backend, **{"bos_token": None, "eos_token": None, **config})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors) -> Path:
    return with_tokenizer(write(tmp_path_factory.mktemp("ends"), tensors))


IDS = st.none() | st.integers(0, VOCAB - 1) | st.lists(st.integers(0, VOCAB - 1), max_size=3)
NAMES = st.none() | st.sampled_from(["</s>", "<|im_end|>", "w7"])


@settings(max_examples=60, deadline=None)
@given(generation=st.just("missing") | IDS, config=IDS, in_config=NAMES, in_map=NAMES, listed=st.booleans())
def test_texts_end_where_any_file_says_so(
    folder: Path, generation: Any, config: Any, in_config: str | None, in_map: str | None, listed: bool
) -> None:
    raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation != "missing":
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    fields = {"eos_token": in_config} | ({"added_tokens_decoder": {}} if listed else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": in_map}))
    said = [[] if ids in (None, "missing") else ids if isinstance(ids, list) else [ids] for ids in (generation, config)]
    named = in_config if listed or in_map is None else in_map
    expected = {*said[0], *said[1], *([] if named is None else [WORDS[named]])}
    ends = open_checkpoint(folder).eos_token_ids
    assert set(ends) == expected and len(ends) == len(expected)


def test_a_chat_ends_at_the_token_of_its_tokenizer(tmp_path: Path, tensors: Tensors) -> None:
    """As in a ChatML fine-tune whose generation_config.json still has the base model's id."""
    folder = with_tokenizer(write(tmp_path, tensors, eos_token_id=2), eos_token="<|im_end|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    model = moejax.load(folder)
    assert model.eos_token_ids == (2, 3)
    (free,) = moejax.decode(model, [[5, 6]], max_tokens=8, ignore_eos=True)
    assert len(free.token_ids) == 8


# --- more tokens than rows ---


def test_more_tokens_than_the_embedding_has_rows(
    tmp_path: Path, tensors: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_tokenizer(write(tmp_path, tensors), pad_token="[PAD]", eos_token="<|end|>")
    with caplog.at_level(logging.WARNING, logger="moejax"):
        model = moejax.load(folder)
    (record,) = caplog.records
    says(record.getMessage(), "41", "40 rows", "'<|end|>'", "'[PAD]'")
    assert model.eos_token_ids == ()  # the model cannot say it
    with refuses(ValueError, "token id 41", "0 to 39"):
        moejax.decode(model, "w5 [PAD]", max_tokens=1)


def test_as_many_tokens_as_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="moejax"):
        moejax.load(folder)
    assert caplog.records == []


# --- named chat templates without a default ---


@pytest.mark.parametrize("form", [dict, list])
def test_named_chat_templates_without_a_default(tmp_path: Path, tensors: Tensors, form: type) -> None:
    templates = {"it's rag": "w5 {{ messages[0].content }}", "tool_use": "w6"}
    named = templates if form is dict else [{"name": name, "template": text} for name, text in templates.items()]
    folder = with_tokenizer(write(tmp_path, tensors), chat_template=named)
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None
    chat = [{"role": "user", "content": "w7"}]
    with pytest.raises(ValueError) as caught:
        encode_chat(tokenizer, chat)
    message = str(caught.value)
    says(message, "it's rag", "'tool_use'", "'default'", "chat_template.jinja", "python -c")
    python, *arguments = shlex.split(message[message.index("python -c") :])  # what it says to run works
    assert python == "python"
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True)
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(encode_chat(tokenizer, chat)) == "w5 w7"


def test_a_chat_that_no_token_ends_is_told(tmp_path: Path, tensors: Tensors) -> None:
    folder = with_tokenizer(write(tmp_path, tensors), chat_template="{{ messages[0].content }}")
    remark = open_checkpoint(folder).tokenizer_remark
    assert remark is not None
    says(remark, "EOS", "max_tokens")
    with_tokenizer(folder)
    assert open_checkpoint(folder).tokenizer_remark is None  # for plain text nothing is missing
    with_tokenizer(folder, chat_template="{{ messages[0].content }}", eos_token="</s>")
    assert open_checkpoint(folder).tokenizer_remark is None


def test_chat_templates_of_one_name_are_told(folder: Path) -> None:
    """The last one counts, as in transformers."""
    entries = [("default", "one"), ("tool", "of tools"), ("default", "two"), ("tool", "of tools")]
    value = [{"name": name, "template": source} for name, source in entries]
    with_tokenizer(folder, eos_token="</s>", chat_template=value)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.chat_template == "two"
    remark = checkpoint.tokenizer_remark
    assert remark is not None and "tool'" not in remark
    says(remark, "'default'", "last")
    with_tokenizer(folder, eos_token="</s>", chat_template=value[1:])
    assert open_checkpoint(folder).tokenizer_remark is None


def test_a_broken_generation_config_is_told_when_the_folder_is_opened(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with refuses(ValueError, folder / "generation_config.json", "not valid JSON"):
        open_checkpoint(folder)
    (folder / "generation_config.json").unlink()
