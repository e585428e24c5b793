"""What only a process of its own shows: pipes, signals, terminals, and a cache folder that starts empty."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import moejax
from moejax.runtime.user_cache import user_cache
from tests.moejax.decoding.tiny_checkpoint import BASE, Tiny

MOEJAX = (sys.executable, "-m", "moejax")
SECONDS = 300


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A command that goes on generating for a long time after its first token."""
    config = tmp_path_factory.mktemp("long") / "config.json"
    config.write_text(json.dumps({**BASE, "num_hidden_layers": 1, "max_position_embeddings": 150_000}))
    return ("decode", f"random:{config}", "--token-ids", "1 2", "-n", "140000")


def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [*MOEJAX, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def test_piped_text_has_no_codes_and_comes_alone(tiny: Tiny, tiny_folder: Path) -> None:
    with start("decode", tiny_folder, "--prompt", "a list", "-n", "12", "--dtype", "float32") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.decode() == moejax.decode(tiny.model, "a list", max_tokens=12)[0].text + "\n"
    assert b"\x1b" not in err
    assert err.count(b"\n") == 3


def test_reader_that_goes_ends_it_in_silence(long: tuple[str, ...]) -> None:
    with start(*long) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=SECONDS) == 1


def test_interrupt_ends_it_in_silence(long: tuple[str, ...]) -> None:
    with start(*long) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, b"")


def test_interrupt_cannot_be_swallowed() -> None:
    # As imports and callbacks of JAX do, which catch what they do not expect.
    code = (
        "import os, signal, time, moejax.cli\n"
        "def run(_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    except BaseException: print('swallowed')\n"
        "import moejax.cli.app; moejax.cli.app.run = run\n"
        "moejax.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_compiled_programs_are_kept(tmp_path: Path, tiny: Tiny, tiny_folder: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    (tmp_path / "moejax").mkdir()
    # It takes long to compile, and is not the question.
    shutil.copytree(user_cache("native"), tmp_path / "moejax" / "native")

    def kept() -> set[str]:
        with start("decode", tiny_folder, "--token-ids", "1 2", "-n", "2", env=env) as process:
            _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        return {path.name for path in (tmp_path / "moejax" / "xla").iterdir() if path.name.endswith("-cache")}

    first = kept()
    assert len(first) >= 3
    assert kept() == first  # nothing had to be compiled again


def test_terminal_gets_colours_unless_it_says_no() -> None:
    assert on_terminal("info", "nowhere").startswith(b"\x1b[1;31merror:\x1b[0m there is no folder nowhere;")
    assert on_terminal("info", "nowhere", NO_COLOR="1").startswith(b"error: there is no folder nowhere;")


def on_terminal(*arguments: str, **variables: str) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | variables
    process = subprocess.Popen([*MOEJAX, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    process.wait(timeout=SECONDS)
    shown = os.read(ours, 10_000)
    os.close(ours)
    return shown
