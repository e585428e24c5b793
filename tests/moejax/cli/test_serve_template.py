"""A chat template that stands in for the checkpoint's."""

from pathlib import Path

import moejax
from moejax.cli.facts import read_facts
from tests.messages import error_line
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

CHAT = [{"role": "user", "content": "hi"}]


def test_chats_go_through_the_template_that_is_given(tiny: Tiny, tiny_folder: Path) -> None:
    facts = read_facts(str(tiny_folder), None, "<{{ messages[0].content }}>")
    model = moejax.load(facts.source, dtype="float32")
    assert model.tokenizer is not None
    assert model.tokenizer.decode(moejax.encode_chat(model, CHAT)) == "<hi>"
    plain = moejax.load(tiny_folder, dtype="float32")
    assert plain.tokenizer is not None
    assert plain.tokenizer.decode(moejax.encode_chat(plain, CHAT)) == "[user]hi[assistant]"
    unanswered = moejax.encode_chat(plain, CHAT, add_generation_prompt=False)
    assert plain.tokenizer.decode(unanswered) == "[user]hi"


def test_files_that_are_no_template_are_refused(call: Call, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    for checkpoint, file, facts in (
        ("demo", tmp_path / "none", ("--chat-template", tmp_path / "none", "No such file")),
        ("demo", broken, ("--chat-template", broken)),
        ("random:186m", broken, ("--chat-template", "random:186m")),
    ):
        error_line(call("serve", checkpoint, "--chat-template", file).err, *facts)


def test_a_key_without_its_certificate_is_refused(call: Call, tmp_path: Path) -> None:
    error_line(call("serve", "demo", "--ssl-keyfile", "k.pem").err, "--ssl-keyfile", "--ssl-certfile")
    error_line(call("serve", "demo", "--ssl-keyfile", "k.pem", "--ssl-certfile", "c.pem").err, "k.pem", "PEM")
