"""Servers that the tests of a process share: what they cost is compiling."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver import Chrome

import moejax
from tests.moejax.decoding.tiny_checkpoint import load_tiny
from tests.moejax.serving.page_browser import browser
from tests.tokenizer_models import byte_level, save

if TYPE_CHECKING:  # it imports JAX, before tests/conftest.py has set its options
    from tests.moejax.serving.live import Live

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SIZES: dict[str, Any] = {"max_batch": 4, "max_queue": 8, "prefill_chunk": 32}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of one layer with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    load_tiny(folder, num_hidden_layers=1)
    save(folder, byte_level(), chat_template=TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> "moejax.Model":
    return moejax.load(tiny_folder, dtype="float32", max_seq_len=320)


@pytest.fixture(scope="session")
def live(model: "moejax.Model") -> "Iterator[Live]":
    """A healthy server, for tests that leave it so."""
    from tests.moejax.serving.live import running

    with running(model, **SIZES) as server:
        yield server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser; every server has another port, so none finds what another has left there."""
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
