"""Compiling the kernels: what is missing is said in one line, and what is kept is never half a library."""

import hashlib
import logging
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import AttentionPolicy
from moejax.ops import reference
from moejax.ops.native import build, library, ops
from moejax.ops.native.build import NativeError, built_library, is_whole
from moejax.ops.native.packed import Packed
from moejax.ops.table import BACKENDS, _log_second_choice, prepare_backend, resolve_backend
from moejax.runtime.platform import A100, current_device, tracing_for
from tests.messages import refuses, says
from tests.moejax.moe.oracle import random_layer

# A compiler in five lines: writes to the file after -o, slowly; the arguments with which it links a library, and how
# often it does, go to files beside itself.
FAKE_COMPILER = """#!/bin/sh
case " $* " in *" --version "*) echo fake 1.0; exit 0;; esac
case " $* " in *" -shared "*) echo "$@" > "$(dirname "$0")/arguments"; echo run >> "$(dirname "$0")/runs";; esac
while [ "$1" != -o ]; do shift; done
echo half > "$2"; sleep 0.3; echo a library > "$2"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Libraries are kept in an empty folder, and made by a compiler that takes no time."""
    compiler = tmp_path / "compiler"
    compiler.write_text(FAKE_COMPILER)
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split())


def test_this_machine_runs_the_kernels() -> None:
    """Every test of `native` rests on it."""
    assert library.cannot(current_device()) is None
    assert resolve_backend("auto", "cpu") == "native"


@pytest.mark.parametrize("said", ["fatal error: error writing to x.s: No space left on device", "Disk quota exceeded"])
def test_a_full_disk_is_no_fault_of_the_compiler(folder: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = f'#!/bin/sh\ncase " $* " in *" --version "*) exit 0;; esac\necho "{said}" >&2; exit 1\n'
    (folder / "compiler").write_text(failing)
    monkeypatch.setenv("TMPDIR", str(folder))
    with refuses(NativeError, folder / "cache" / "moejax" / "native", "MB", "XDG_CACHE_HOME", "TMPDIR") as raised:
        built_library()
    assert "CXX" not in str(raised.value)


def test_a_compiler_that_dies_with_room_left_is_to_blame(folder: Path) -> None:
    (folder / "compiler").write_text('#!/bin/sh\ncase " $* " in *" --version "*) exit 0;; esac\nkill -11 $$\n')
    with refuses(NativeError, "signal 11", "CXX"):
        built_library()


@pytest.mark.parametrize("kind", ["link", "writable"])
def test_a_library_that_others_may_have_put_there_is_not_loaded(folder: Path, tmp_path: Path, kind: str) -> None:
    path = built_library()
    if kind == "writable":
        path.parent.chmod(0o777)
    else:
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")
    with refuses(NativeError, path.parent, "XDG_CACHE_HOME"):
        built_library()
    path.parent.chmod(0o700)
    if kind == "link":
        path.parent.unlink()
        (tmp_path / "elsewhere").rename(path.parent)
    built_library()
    path.chmod(0o722)
    built_library()
    assert runs(folder) == 2 and not path.stat().st_mode & 0o022


def test_a_library_is_compiled_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, build.__name__):
        path = built_library()
        says(caplog.text, "compiling", "once", "1 of 5 parts", "5 of 5 parts")
        caplog.clear()
        built_library()
    assert not caplog.records
    assert path.parent == folder / "cache" / "moejax" / "native"
    assert built_library() == path and runs(folder) == 1
    content = b"a library\n"
    assert path.read_bytes() == content + hashlib.sha256(content).digest()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_library_is_compiled_again(folder: Path, damage: str) -> None:
    path = built_library()
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-5], "changed": b"A" + content[1:], "empty": b""}[damage])
    assert not is_whole(path)
    assert built_library() == path and is_whole(path) and runs(folder) == 2


def test_another_compiler_makes_another_library(folder: Path) -> None:
    first = built_library()
    compiler = folder / "compiler"
    compiler.write_text(compiler.read_text().replace("fake 1.0", "fake 1.1"))
    assert built_library() != first


def test_other_flags_in_cxx_make_another_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built_library()
    monkeypatch.setenv("CXX", f"{folder / 'compiler'} -mno-avx512f")
    assert built_library() != first and runs(folder) == 2
    assert "-mno-avx512f" in (folder / "arguments").read_text().split()


def test_processes_that_compile_at_once_leave_one_whole_library(folder: Path) -> None:
    program = (
        "from moejax.ops.native.build import built_library, is_whole; p = built_library(); assert is_whole(p); print(p)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=300)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert {str(path) for path in (folder / "cache" / "moejax" / "native").iterdir()} == paths and len(paths) == 1


def refusal() -> str:
    with pytest.raises(NativeError) as caught:
        built_library()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    says(refusal(), "C++ compiler", "CXX", "apt-get install g++")
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    says(refusal(), "CXX='no-such-compiler -x'", "CXX=g++")
    monkeypatch.setenv("CXX", 'g++ "')
    says(refusal(), "CXX='g++ \"'")


@pytest.mark.parametrize(
    ("name", "program", "facts"),
    [
        ("true", "exit 0", ("{}", "no library")),
        ("false", "exit 1", ("'{} --version'", "exit code 1")),
        (
            "cat",
            '[ "$1" = --version ] || { echo "cat: bad option" >&2; exit 2; }',
            ("{}", "exit code 2", "'cat: bad option'"),
        ),
        ("killed", 'kill -9 "$$"', ("'{} --version'", "signal 9")),
        ("foreign", None, ("{}", "Exec format error")),
    ],
    ids=lambda value: value if str(value).isalpha() else "",
)
def test_what_is_no_compiler_is_told(folder: Path, name: str, program: str | None, facts: tuple[str, ...]) -> None:
    """By what was tried and what it printed; nothing is left behind."""
    compiler = folder / "compiler"
    compiler.write_bytes(b"\x7fELF of another machine" if program is None else f"#!/bin/sh\n{program}\n".encode())
    says(refusal(), *(fact.format(compiler) for fact in facts), "CXX=g++")
    assert not list((folder / "cache").rglob("*.*"))


def test_a_failing_compilation_shows_the_first_error(folder: Path) -> None:
    compiler = folder / "compiler"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "In file included from a.h:1"  >&2\n'
        'echo "b.h:7:1: error: no such thing" >&2\necho "b.h:9:1: error: another" >&2\nexit 1\n'
    )
    says(refusal(), compiler, "exit code 1", "'b.h:7:1: error: no such thing'", "CXX")
    assert not list((folder / "cache" / "moejax" / "native").iterdir())


def test_a_folder_that_cannot_be_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    says(refusal(), folder / "file", "Not a directory", "XDG_CACHE_HOME")


def on(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize(("system", "machine"), [("Linux", "riscv64"), ("Windows", "AMD64"), ("Windows", "x86_64")])
def test_other_machines_are_refused(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, system, machine)
    says(refusal(), "Linux or macOS on x86-64 or AArch64", f"{system} on {machine}")
    says(str(library.cannot(current_device())), f"{system} on {machine}")


def test_without_a_temporary_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tempdir, fact in ((None, "temporary directory"), (str(folder / "none"), str(folder / "none"))):
        monkeypatch.setattr("tempfile.tempdir", tempdir)
        with monkeypatch.context() as patch:
            if tempdir is None:
                patch.setattr("tempfile._candidate_tempdir_list", lambda: [str(folder / "none")])
            with refuses(NativeError, fact, "TMPDIR"):
                build.built_library()


def test_other_devices_are_refused() -> None:
    with tracing_for(A100):
        says(str(library.cannot(current_device())), "CPU", "NVIDIA A100-SXM4-80GB (gpu)")


# What sysctl prints on macOS, with a feature that a CPU lacks and numbers that are no feature.
SYSCTL = """#!/bin/sh
[ "$1" = hw.optional ] || exit 1
echo "hw.optional.arm.FEAT_FP16: 1"
echo "hw.optional.arm.FEAT_BF16: $(cat "$(dirname "$0")/bf16")"
echo "hw.optional.arm.caps: 868064103268613"
"""


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Linux", "x86_64", "flags\t"),
        ("Linux", "aarch64", "Features"),
        ("Darwin", "arm64", ""),
        ("Darwin", "x86_64", ""),
    ],
)
def test_machines_and_their_features(
    system: str, machine: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system is asked in its own way; flags are those of the machine; other features make another library."""
    on(monkeypatch, system, machine)
    (folder / "sysctl").write_text(SYSCTL)
    (folder / "sysctl").chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(build, "CPUINFO", folder / "cpuinfo")
    libraries = []
    for has in (0, 1):
        (folder / "bf16").write_text(str(has))
        (folder / "cpuinfo").write_text(f"processor\t: 0\n{name}\t: fp16{' bf16' * has}\n\n{name}\t: other\n")
        prefix = "hw.optional.arm.FEAT_" if system == "Darwin" else ""
        assert {f.removeprefix(prefix).lower() for f in build.cpu_features()} == ({"fp16", "bf16"} if has else {"fp16"})
        libraries.append(built_library())
    assert libraries[0] != libraries[1]
    arguments = (folder / "arguments").read_text().split()
    assert ("-march=native" in arguments, "-mcpu=native" in arguments) == (machine == "x86_64", machine != "x86_64")


def test_a_machine_that_names_no_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpuinfo").write_text("processor: 0\n")
    monkeypatch.setattr(build, "CPUINFO", folder / "cpuinfo")
    says(refusal(), "features", folder / "cpuinfo")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(folder))
    says(refusal(), "features", "sysctl", "PATH")
    (folder / "sysctl").write_text("#!/bin/sh\nexit 1\n")
    (folder / "sysctl").chmod(0o700)
    says(refusal(), "features", "sysctl hw.optional")


def test_a_library_that_cannot_be_loaded(folder: Path) -> None:
    with refuses(NativeError, "load its library", "CXX", "remove it"):
        library.register(built_library(), "none")


def test_auto_says_why_it_takes_blocked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    reason = "no compiler"
    monkeypatch.setattr(library, "_load_once", lambda: NativeError(reason))
    _log_second_choice.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [prepare_backend("auto", "cpu") for _ in range(2)] == ["blocked", "blocked"]
    (record,) = caplog.records
    says(record.getMessage(), "'auto'", "'blocked'", "'native'", reason)
    with refuses(ValueError, "'native'", reason, "expert_backend='auto'"):
        prepare_backend("native", "cpu")
    assert BACKENDS["blocked"].cannot(current_device()) is None


def test_targets_carry_the_hash_of_the_sources() -> None:
    """So that a program in XLA's cache never calls kernels of another version."""
    x = jnp.ones((2, 8))
    text = jax.jit(lambda x, w: ops.linear(x, Packed.of(w))).lower(x, x).as_text()
    assert f"@moejax_linear_{build.source_hash()}" in text


# Older CPUs that this one is, too: any of x86-64, with AVX2 and FMA, and with AVX-512 but no products of bfloat16.
LEVELS = (("x86-64", "sse2"), ("x86-64-v3", "avx2"), ("x86-64-v4", "avx512vl"))
OLDER = [level for level, feature in LEVELS if feature in build.cpu_features()]


def compute_as(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ops` calls the kernels of a CPU of that level."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    names = library.register(built_library((f"-march={level}",)), level.replace("-", "_"))
    monkeypatch.setattr(ops, "targets", lambda: names)


@pytest.mark.parametrize("level", OLDER)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_the_paths_of_older_cpus(dtype: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_as(level, monkeypatch)
    rng = np.random.default_rng(0)
    layer = random_layer(3, 45, 70, dtype)
    x, ids = jnp.asarray(rng.standard_normal((17, 45)), dtype), jnp.asarray(rng.integers(0, 4, (17, 2)), jnp.int32)
    weights = jnp.asarray(rng.random((17, 2)), jnp.float32)
    got = jax.jit(lambda *args: ops.expert_ffn(*args))(*map(Packed.of, layer.stacked), x, ids, weights)
    expected = jax.jit(reference.expert_ffn)(*layer.stacked, x, ids, weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol={"float32": 5e-6, "bfloat16": 5e-3, "float16": 1e-3}[dtype])
    scale = jnp.asarray(rng.standard_normal(45), dtype)
    got = jax.jit(lambda x, scale: ops.rms_norm(x, scale, 1e-5))(x, scale).astype(jnp.float32)
    rtol = {"float32": 2e-6, "bfloat16": 2**-7, "float16": 2**-10}[dtype]  # a unit of the last bit
    np.testing.assert_allclose(got, reference.norm(x, scale, eps=1e-5).astype(jnp.float32), rtol=rtol, atol=1e-7)
    for queries, window in ((1, None), (1, 60), (70, None), (70, 60)):  # a step, and a prompt in several blocks
        q, keys = (
            jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 2, 3, queries, 20), (2, 2, 150, 20))
        )
        arguments = (q, keys, -keys, jnp.asarray([3, 80], jnp.int32))
        got, expected = (
            jax.jit(partial(attend, policy=AttentionPolicy(window=window)))(*arguments)
            for attend in (ops.attend, reference.attend)
        )
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("level", OLDER)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_products_of_older_cpus(dtype: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 to 200 rows, with tails of every kind, against float64; a row has the same bits alone and among others."""
    compute_as(level, monkeypatch)
    for rows, depth, outputs in ((1, 1, 1), (2, 31, 3), (7, 64, 70), (48, 45, 129), (200, 133, 67)):
        rng = np.random.default_rng(depth)
        x, w = (jnp.asarray(rng.standard_normal((n, depth)), dtype) for n in (rows, outputs))
        linear = jax.jit(lambda x, w: ops.linear(x, Packed.of(w))[0])
        got = np.asarray(linear(x, w))
        exact = np.asarray(x).astype(np.float64) @ np.asarray(w).astype(np.float64).T
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * depth**0.5)
        np.testing.assert_array_equal(linear(x[-1:], w)[0].view(np.uint32), got[-1].view(np.uint32))


@pytest.mark.parametrize("level", OLDER)
def test_every_float16_is_converted_on_older_cpus(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, those below the smallest normal number of float16 included; and what is between two, to the nearest."""
    compute_as(level, monkeypatch)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    (got,) = jax.jit(lambda x, w: ops.linear(x, Packed.of(w)))(
        jnp.asarray(every)[:, None], jnp.ones((1, 1), jnp.float16)
    )
    np.testing.assert_array_equal(got[:, 0], every.astype(np.float32))
    finite = np.sort(every[np.isfinite(every)].astype(np.float32))
    between = (finite[1:] + finite[:-1]) / 2
    wide = [finite, between, *(np.nextafter(between, np.float32(end)) for end in (-np.inf, np.inf))]
    wide.append(np.asarray([65519.99, 65520, 65536, 1e30, np.inf, -np.inf, np.nan, 1e-10, -1e-30, 1e-40], np.float32))
    values = np.concatenate(wide)
    values = jnp.asarray(np.pad(values, (0, -len(values) % 2)))[None, :, None, None].reshape(1, -1, 1, 2)
    cache = jnp.zeros((1, 1, values.shape[1], 2), jnp.uint16)
    angles = jnp.ones((1, values.shape[1], 1))
    starts = jnp.zeros(1, jnp.int32)
    # A function of this test: of another one's, JAX would keep the program, which calls the kernels of another level.
    store = jax.jit(lambda v, a, s, c: ops.rotate_into_cache(v, v, v, a, a, s, c, c, "float16")[2])
    stored = store(values, angles, starts, cache)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            np.asarray(stored).view(np.float16).ravel(), np.asarray(values).astype(np.float16).ravel()
        )
