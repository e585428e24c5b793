"""Compiles the C++ sources beside this file into a library, once per machine, compiler, jaxlib and source."""

import hashlib
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import jax

from moejax.runtime.user_cache import UntrustedFolderError, owned, private_folder

FOLDER = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O3",
    # The same sum must not be fused in one loop and rounded twice in another: where it is fused, the source says so.
    "-ffp-contract=off",
    # Nobody reads errno or floating-point flags, and square roots and comparisons then vectorise. NaN stays NaN.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
    "-fPIC",
)
# By what Python calls the machine: Linux and macOS have two names for AArch64. All are known to GCC and to Clang.
CPU_FLAGS = {
    "x86_64": ("-march=native", "-mtune=native"),
    "aarch64": ("-mcpu=native",),
    "arm64": ("-mcpu=native",),
}
COMPILERS = ("c++", "g++", "clang++")
_ADVICE = "set CXX to a C++17 compiler, as in CXX=g++, or unset it"
CPUINFO = Path("/proc/cpuinfo")
KIND = "native"  # in the user's cache folder
PASSING = {"passing": True}  # of a line that the next one replaces, where a terminal shows them
_DIGEST_BYTES = 32
_logger = logging.getLogger(__name__)
_NO_ROOM = re.compile("No space left on device|Disk quota exceeded")
_ROOM_BYTES = 2**25  # that the compiler's files and the library take at most


class NativeError(Exception):
    """Why there are no native kernels here, in one line that says what to do."""


def source_hash() -> str:
    """Of the sources. Names of XLA's call targets carry it, so that no cached program calls another version."""
    return _hash(*(path.name.encode() + b"\0" + path.read_bytes() for path in _sources()))


def built_library(cpu: tuple[str, ...] = ()) -> Path:
    """The compiled library: the one that is there, if it is whole, or else a new one.

    Several processes may do so at once: each compiles a file of its own, and the last one to be renamed stays. `cpu`
    are the flags of another CPU than this one, in tests.

    Raises:
        NativeError: on another kind of machine, without a compiler, when compiling fails, or when nothing can be
            written where libraries are kept.
    """
    compiler = check_machine()
    command = [*compiler, *FLAGS, *(cpu or CPU_FLAGS[platform.machine()])]
    key = _hash(
        source_hash().encode(),
        version("jaxlib").encode(),
        compiler_version(compiler).encode(),
        " ".join(command[1:]).encode(),  # flags that CXX has too, which no version tells
        " ".join(sorted(cpu_features())).encode(),
    )
    try:
        library = private_folder(KIND) / f"{key}.so"
        if not is_whole(library):
            _compile(command, library)
    except UntrustedFolderError as error:
        raise NativeError(f"its library is not taken from where others may have put it: {error}") from error
    except OSError as error:
        raise NativeError(
            f"cannot keep its library ({error.filename}: {error.strerror}): set XDG_CACHE_HOME to a folder that can be "
            "written"
        ) from error
    return library


def check_machine() -> list[str]:
    """A compiler's command, for a machine that the kernels run on. Starts nothing.

    Raises:
        NativeError: where the machine is another one, or there is no compiler.
    """
    system, machine = platform.system(), platform.machine()
    if system not in ("Linux", "Darwin") or machine not in CPU_FLAGS:
        raise NativeError(f"needs Linux or macOS on x86-64 or AArch64, this is {system} on {machine}")
    return find_compiler()


def cpu_features() -> frozenset[str]:
    """The CPU's features by the names that the system gives them.

    Raises:
        NativeError: when it names none.
    """
    if platform.system() == "Darwin":
        command = ["sysctl", "hw.optional"]
        source = " ".join(command)
        lines = _run(command, "the CPU's features", "put it on PATH").stdout.splitlines()
        features = [name for name, _, value in (line.partition(": ") for line in lines) if value == "1"]
    else:
        source = str(CPUINFO)
        # The first core's line, by its name on x86 or on AArch64.
        lines = (line.partition(":") for line in CPUINFO.read_text().splitlines())
        features = next((value.split() for name, _, value in lines if name.strip() in ("flags", "Features")), [])
    if not features:
        raise NativeError(f"needs the CPU's features, and {source} names none")
    return frozenset(features)


def find_compiler() -> list[str]:
    """The command of a C++ compiler: that in CXX, or the first one found.

    Raises:
        NativeError: when there is none.
    """
    if given := os.environ.get("CXX", "").strip():
        try:
            named = shlex.split(given)
        except ValueError:  # an open quote
            named = []
        if not named or shutil.which(named[0]) is None:
            raise NativeError(f"needs a C++ compiler, and CXX={given!r} is no command here; {_ADVICE}")
        return named
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NativeError(
        f"needs a C++ compiler ({', '.join(COMPILERS)}, or one that CXX names), and none is installed: "
        "apt-get install g++, or dnf install gcc-c++, or xcode-select --install"
    )


def compiler_version(compiler: list[str]) -> str:
    """What it says of itself.

    Raises:
        NativeError: when it cannot be asked.
    """
    command = [*compiler, "--version"]
    done = _run(command)
    if done.returncode != 0:
        raise NativeError(f"needs a C++ compiler, and {shlex.join(command)!r} {_how_it_ended(done)}; {_ADVICE}")
    return done.stdout


def is_whole(library: Path) -> bool:
    """Whether the file is there, this user's own, and ends in the digest of what is before.

    A damaged one could crash the process.
    """
    try:
        if not owned(library):
            return False
        content = library.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return content[-_DIGEST_BYTES:] == hashlib.sha256(content[:-_DIGEST_BYTES]).digest()


def _compile(command: list[str], library: Path) -> None:
    """Its parts on all cores, which is told as it goes, and then one library of them."""
    units = [path for path in _sources() if path.suffix == ".cc"]
    _logger.warning("compiling the CPU kernels, once for this machine and compiler: some 15 s, %d parts", len(units))
    part = library.with_suffix(f".{secrets.token_hex(8)}.part")
    with _scratch() as scratch, ThreadPoolExecutor(_cores()) as threads:
        objects = {path: Path(scratch) / f"{path.stem}.o" for path in units}
        include = ["-isystem", jax.ffi.include_dir()]
        compiling = {
            threads.submit(_make, [*command, *include, "-c", str(path)], made, library.parent): path
            for path, made in objects.items()
        }
        try:
            for count, done in enumerate(as_completed(compiling), start=1):
                done.result()
                _logger.warning("CPU kernels: %d of %d parts compiled", count, len(units), extra=PASSING)
            _make([*command, "-shared", *map(str, objects.values())], part, library.parent)
            content = part.read_bytes()
            part.write_bytes(content + hashlib.sha256(content).digest())  # after its end, where no loader looks
            part.chmod(0o700)
            os.replace(part, library)
        finally:
            threads.shutdown(cancel_futures=True)
            part.unlink(missing_ok=True)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the compiler's files.

    Raises:
        NativeError: where none can be made.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="moejax-")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NativeError(
            f"needs a folder for the compiler's files ({where}{error.strerror}): set TMPDIR to one that can be written"
        ) from error


def _make(command: list[str], made: Path, kept: Path) -> None:
    """Has the compiler make a file; `kept` is where libraries are kept.

    Raises:
        NativeError: when it does not.
    """
    done = _run([*command, "-o", str(made)])
    if done.returncode != 0 or not made.exists():
        _check_room(done, kept)
        raise NativeError(f"{command[0]} could not compile moejax's CPU kernels: it {_how_it_ended(done)}; {_ADVICE}")


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_room(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Raises NativeError when a full disk is why the compiler failed: it says so, or a linker dies of it."""
    died = done.returncode < 0 or "signal" in done.stderr
    if not _NO_ROOM.search(done.stderr) and not died:
        return
    places = (folder, Path(tempfile.gettempdir()))
    free = {str(place): shutil.disk_usage(place).free for place in places}
    if died and min(free.values()) > _ROOM_BYTES:
        return
    left = " and ".join(f"{place} has {nbytes / 1e6:.1f} MB" for place, nbytes in free.items())
    raise NativeError(
        f"has no room to compile its library: {left} free; it takes up to {_ROOM_BYTES / 1e6:.0f} MB there, so free "
        "some, or set XDG_CACHE_HOME and TMPDIR to folders on another disk"
    )


def _run(command: list[str], wanted: str = "a C++ compiler", advice: str = _ADVICE) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},  # its errors are looked into
        )
    except OSError as error:  # made for another machine, say
        raise NativeError(f"needs {wanted}, and {command[0]} cannot be started ({error.strerror}); {advice}") from error


def _how_it_ended(done: subprocess.CompletedProcess[str]) -> str:
    """As a clause: how a compiler ended, and what it printed, its first error if there is one."""
    if done.returncode < 0:
        return f"was ended by signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line), lines[0] if lines else "")
    how = f"failed (exit code {done.returncode})" if done.returncode else "wrote no library"
    return f"{how} and printed {said!r}" if said else f"{how} and printed nothing"


def _sources() -> Iterator[Path]:
    return iter(sorted(path for path in FOLDER.iterdir() if path.suffix in (".h", ".cc")))


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
