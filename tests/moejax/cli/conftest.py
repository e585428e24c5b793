"""The command line in this process: as a user calls it, but without the seconds that a new interpreter costs."""

import io
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from moejax.cli import console
from moejax.cli.app import run
from tests.moejax.cli.several import Starter
from tests.moejax.decoding.tiny_checkpoint import Tiny, load_tiny
from tests.ports import free_port
from tests.tokenizer_models import byte_level, save

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    status: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("decode", "demo", ..., stdin=b"...")` runs `moejax decode demo ...`.

    Without the lines that say that a command still runs: which of them there are is a question of the machine.
    """
    monkeypatch.setattr(console, "PLAIN_SECONDS", math.inf)

    def call(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = run(list(map(str, arguments)))
        written = capsys.readouterr()
        return Outcome(status=status, out=written.out, err=written.err)

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of one layer with a byte-level tokenizer and a chat template."""
    return tmp_path_factory.mktemp("checkpoint") / "tiny"


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Tiny:
    """The model in `tiny_folder`, loaded in float32."""
    loaded = load_tiny(tiny_folder, num_hidden_layers=1)
    save(tiny_folder, byte_level(), chat_template=TEMPLATE)
    return loaded


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(port: int) -> Iterator[Starter]:
    """`start(1, ...)` starts process 1 of 2; what still runs after the test is killed."""
    with ExitStack() as running:
        yield Starter(port, running)
