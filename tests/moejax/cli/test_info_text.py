"""What `moejax info` says of the tokenizer beside the weights."""

import json
from pathlib import Path

import pytest

from tests.messages import says
from tests.moejax.cli.conftest import Call
from tests.moejax.loading_folder import small_tensors, write
from tests.moejax.test_loading_text import with_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    templates = {"it's rag": "w5", "tool_use": "w6"}
    return with_tokenizer(
        write(tmp_path, small_tensors(), eos_token_id=None),
        eos_token="<|im_end|>",
        pad_token="[PAD]",
        chat_template=templates,
    )


def line_of(text: str, label: str) -> str:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(label))
    return line


def test_what_ends_a_text(call: Call, folder: Path) -> None:
    outcome = call("info", folder)
    assert outcome.status == 0
    says(line_of(outcome.out, "text ends at"), "token", "3", "<|im_end|>")
    report = json.loads(call("info", folder, "--json").out)
    assert (report["eos_token_ids"], report["eos_tokens"]) == ([3], ["<|im_end|>"])


def test_named_chat_templates_and_too_many_tokens(call: Call, folder: Path) -> None:
    shown = call("info", folder).out
    says(line_of(shown, "chat template"), "no default", "it's rag", "'tool_use'")
    says(" ".join(shown.split()), "ids up to 40", "40 rows", "'[PAD]'")
    tokenizer = json.loads(call("info", folder, "--json").out)["tokenizer"]
    assert (tokenizer["chat_template"], tokenizer["chat_templates"]) == (False, ["it's rag", "tool_use"])
    says(tokenizer["remark"], "40", "40 rows")
