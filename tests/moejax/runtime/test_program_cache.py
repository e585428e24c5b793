"""A compiled program that cannot be read is made anew, by JAX's own cache and by nothing that is private to JAX."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from moejax.cli import console
from moejax.runtime.program_cache import SealedPrograms, discard_unreadable, mend_and_warn_once

READING = "Error reading persistent compilation cache entry for '{}': ZstdError: incomplete"


def compile_two(folder: Path | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Two programs, in a process of its own, since JAX opens its cache once."""
    code = (
        "from moejax.cli.startup import prepare_jax\n"
        "prepare_jax()\n"
        "import jax\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"
        "jax.jit(lambda x: x * 2)(1.0)"
    )
    env = os.environ | variables | {"JAX_COMPILATION_CACHE_DIR": str(folder)}
    if folder is None:
        del env["JAX_COMPILATION_CACHE_DIR"]
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def programs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("part", [0, 100])
def test_half_of_a_program_is_made_anew_without_a_word(tmp_path: Path, part: int) -> None:
    """As a process leaves it that is killed while it writes, or a disk that is full."""
    assert compile_two(tmp_path).stderr == ""
    whole = programs(tmp_path)
    assert len(whole) == 2
    for name, program in whole.items():
        (tmp_path / name).write_bytes(program[:part])
    assert compile_two(tmp_path).stderr == ""
    mended = programs(tmp_path)
    assert mended.keys() == whole.keys() and all(len(program) > 100 for program in mended.values())
    assert compile_two(tmp_path).stderr == "" and programs(tmp_path) == mended  # and now they are read


@pytest.mark.parametrize("damage", ["a byte", "another program", "no list", "a list of others"])
def test_a_program_is_only_run_with_its_digest(tmp_path: Path, damage: str) -> None:
    def run() -> dict[str, bytes]:
        said = compile_two(None, XDG_CACHE_HOME=str(tmp_path)).stderr
        assert said == ""
        return {name: content for name, content in programs(folder).items() if name.endswith("-cache")}

    folder = tmp_path / "moejax" / "xla"
    first = run()
    assert len(first) == 2 and run() == first
    one, two = sorted(first)
    if damage == "a byte":
        (folder / one).write_bytes(bytes([first[one][0] ^ 1]) + first[one][1:])
    elif damage == "another program":
        (folder / one).write_bytes(first[two])
    elif damage == "no list":
        (folder / "SHA256SUMS").unlink()
    else:
        (folder / "SHA256SUMS").chmod(0o666)
    before = SealedPrograms(folder).names
    assert before == ({two} if damage in ("a byte", "another program") else set())
    assert run() == first  # and what was wrong was compiled again


def test_only_programs_of_that_name_are_removed(tmp_path: Path) -> None:
    kept = ["jit_step_two-0a-cache", "jit_other-0a-cache", "notes-cache", "jit_step-0a"]
    for name in (*kept, "jit_step-0a-cache", "jit_step-0b-cache", "jit_prefill-0a-cache"):
        (tmp_path / name).touch()
    assert discard_unreadable(READING.format("jit_step"), str(tmp_path))
    assert discard_unreadable(READING.format("jit_prefill-0a"), str(tmp_path))
    assert not discard_unreadable(READING.format("jit_absent"), str(tmp_path))
    assert not discard_unreadable(READING.replace("reading", "writing").format("jit_other"), str(tmp_path))
    assert sorted(programs(tmp_path)) == sorted(kept)


def test_a_folder_of_that_name_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "jit_step-0a-cache").mkdir()
    assert not discard_unreadable(READING.format("jit_step"), str(tmp_path))
    assert (tmp_path / "jit_step-0a-cache").is_dir()


def test_jaxs_warnings_are_one_line_of_ours(tmp_path: Path) -> None:
    """JAX warns twice for each of two programs where the folder is a file."""
    (tmp_path / "file").touch()
    said = compile_two(tmp_path / "file").stderr
    assert said.startswith("warning: ") and said.count("\n") == 1
    assert "FileExistsError" in said and "JAX_COMPILATION_CACHE_DIR" in said


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_has_no_warning_of_the_cache(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    others: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: others.append(str(message))
        mend_and_warn_once(None if quiet else console.warn)
        for name in ("jit_step", "jit_prefill"):
            full = "OSError: [Errno 28] No space left on device"
            warnings.warn(f"Error writing persistent compilation cache entry for '{name}': {full}", stacklevel=1)
        warnings.warn("of something else", stacklevel=1)
    assert capsys.readouterr().err.count("No space left on device") == (0 if quiet else 1)
    assert others == ["of something else"]


@pytest.mark.parametrize("told", ["nothing", "a folder", "none"])
def test_python_calls_keep_programs_unless_the_caller_has_told_jax_where(tmp_path: Path, told: str) -> None:
    code = (
        "import os, jax, moejax\n"
        "if 'OWN' in os.environ: jax.config.update('jax_compilation_cache_dir', os.environ['OWN'])\n"
        "model = moejax.load('demo', expert_backend='dense')\n"
        "moejax.decode(model, [[5, 6]], max_tokens=2)\n"
        "print(model.programs.compiled, model.programs.cached)"
    )
    variables = {"a folder": {"OWN": str(tmp_path / "own")}, "none": {"JAX_ENABLE_COMPILATION_CACHE": "false"}}
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | variables.get(told, {})
    del env["JAX_COMPILATION_CACHE_DIR"]
    run = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]
    assert [one.stderr for one in run] == ["", ""]
    (compiled, first), (_, second) = (map(int, one.stdout.split()) for one in run)
    assert compiled > 0 and first == 0
    assert second == (0 if told == "none" else compiled)
    assert (tmp_path / "cache" / "moejax" / "xla").exists() == (told == "nothing")
