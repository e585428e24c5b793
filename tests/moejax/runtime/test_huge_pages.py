"""Arrays in huge pages: what they promise anywhere, and that the system gives the pages where it has them."""

import mmap
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from moejax.runtime import huge_pages
from moejax.runtime.huge_pages import CHUNK_BYTES, HUGE_BYTES, HugePages, collapse, copied, in_huge_pages, why_none
from tests.huge_memory import Refusals

ON_LINUX = sys.platform == "linux"
THERE = why_none() is None
needs_pages = pytest.mark.skipif(not THERE, reason=f"no huge pages here: {why_none()}")
CAN_COLLAPSE = ON_LINUX and tuple(map(int, platform.release().split(".")[:2])) >= (6, 1)

SHAPES = [(), (0,), (3, 0), (5,), (7, 3), (64, 16), (33, 1025), (1024, 1024), (CHUNK_BYTES // 4 + 1,)]


def without_madvise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)


def without_advice_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)  # EINVAL


def without_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(huge_pages, "mmap", SimpleNamespace(**{**vars(mmap), "mmap": refused}))


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize("system", [as_it_is, without_madvise, without_advice_taken, without_mapping])
def test_arrays_are_aligned_writable_and_apart(
    monkeypatch: pytest.MonkeyPatch, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    system(monkeypatch)
    pages = HugePages()
    arrays = [pages.empty(shape, dtype) for shape in SHAPES for dtype in (np.int8, ml_dtypes.bfloat16, np.float32)]
    for number, array in enumerate(arrays):
        array[...] = number
    for number, array in enumerate(arrays):
        assert array.shape == SHAPES[number // 3]
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % 64 == 0 or array.size == 0
        assert np.all(array == np.asarray(number, array.dtype))
    assert [array.dtype for array in arrays[:3]] == [np.int8, ml_dtypes.bfloat16, np.float32]


def test_an_array_of_a_page_begins_at_one() -> None:
    pages = HugePages()
    pages.empty((3,), np.float32)
    assert pages.empty((mmap.PAGESIZE,), np.int8).ctypes.data % mmap.PAGESIZE == 0
    assert pages.empty((CHUNK_BYTES + 1,), np.int8).ctypes.data % HUGE_BYTES == 0


def test_small_arrays_share_a_chunk_that_they_keep() -> None:
    pages = HugePages()
    one, two = (pages.empty((1000,), np.float32) for _ in range(2))
    assert two.ctypes.data - one.ctypes.data == 4032  # the next multiple of 64
    one[...] = 1
    del pages, two
    assert one.sum() == 1000


def test_a_full_chunk_is_followed_by_another() -> None:
    pages = HugePages()
    halves = [pages.empty((CHUNK_BYTES // 2,), np.int8) for _ in range(5)]
    assert [half.ctypes.data % HUGE_BYTES for half in halves] == [0] * 5
    assert len({half.ctypes.data for half in halves}) == 5


@pytest.mark.parametrize("skipped", [0, 1, HUGE_BYTES - 1])
def test_a_chunk_begins_at_a_huge_page_wherever_its_mapping_does(skipped: int) -> None:
    mapping = np.empty(2 * HUGE_BYTES + skipped, np.uint8)[skipped:]
    chunk = huge_pages._aligned(mapping, HUGE_BYTES, HUGE_BYTES)
    assert chunk.ctypes.data % HUGE_BYTES == 0
    assert 0 <= chunk.ctypes.data - mapping.ctypes.data < HUGE_BYTES
    assert chunk.size == HUGE_BYTES


def test_threads_get_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = HugePages()
    round_up = huge_pages._round_up

    def slowly(nbytes: int, unit: int) -> int:
        time.sleep(0)  # lets another thread go on between the look at what is used and the change of it
        return round_up(nbytes, unit)

    monkeypatch.setattr(huge_pages, "_round_up", slowly)

    def fill(number: int) -> np.ndarray:
        array = pages.empty((1 + number * 37 % 5000,), np.int32)
        array[...] = number
        return array

    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(fill, range(2000)))
    assert all((array == number).all() for number, array in enumerate(arrays))


def test_jax_takes_an_array_without_copying_it() -> None:
    source = HugePages().empty((300, 5), np.float32)
    source[...] = 1
    taken = jax.device_put(source, jax.devices("cpu")[0])
    assert taken.addressable_shards[0].data.unsafe_buffer_pointer() == source.ctypes.data


@needs_pages
def test_what_was_written_lies_in_huge_pages(refusals: Refusals) -> None:
    pages = HugePages()
    large, small = pages.empty((CHUNK_BYTES // 2,), np.float32), pages.empty((2**20,), np.float32)
    nbytes = large.nbytes + small.nbytes
    untouched = in_huge_pages([large, small])  # a mapping beside them may count, which Linux may make one with theirs
    assert untouched[0] is not None and untouched[0] < nbytes // 2 and untouched[1] == nbytes
    small[...] = 1
    large[: nbytes // 8] = 1
    some, _ = in_huge_pages([large, small])
    assert some is not None and some < nbytes
    assert small.nbytes + large.nbytes // 2 <= some or refusals.happened()
    large[...] = 1
    assert in_huge_pages([large, small]) == (nbytes, nbytes) or refusals.happened()


@needs_pages
def test_shared_memory_counts_once_and_copies_each() -> None:
    array = HugePages().empty((2**20,), np.float32)
    array[...] = 1
    once = in_huge_pages([array])
    assert once[0] and once[1] == array.nbytes
    assert in_huge_pages([array, array[: 2**19], array]) == once
    on_one = jax.device_put(array, jax.devices("cpu")[0])
    assert in_huge_pages([on_one, array]) == once
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("all",))
    everywhere = jax.jit(lambda: jnp.ones((2**20,)), out_shardings=jax.NamedSharding(mesh, jax.P()))()
    assert in_huge_pages([everywhere])[1] == mesh.size * array.nbytes


@pytest.mark.skipif(not ON_LINUX, reason="only Linux tells")
def test_plain_memory_is_not_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    if "[always]" in huge_pages._SETTING.read_text():
        pytest.skip("here all memory is in huge pages")
    without_madvise(monkeypatch)
    array = HugePages().empty((2**20,), np.float32)
    array[...] = 1
    assert in_huge_pages([array]) == (0, array.nbytes)


@needs_pages
def test_copies_have_the_numbers_and_the_devices(refusals: Refusals) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("all",))
    array = jax.jit(lambda: jnp.arange(2**20, dtype=jnp.float32), out_shardings=jax.NamedSharding(mesh, jax.P("all")))()
    copy = copied(array)
    assert np.array_equal(copy, array) and copy.sharding == array.sharding
    assert in_huge_pages([copy]) == (array.nbytes, array.nbytes) or refusals.happened()


@needs_pages
@pytest.mark.skipif(not CAN_COLLAPSE, reason="Linux moves memory that is in use since 6.1")
def test_what_xla_made_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    array = jax.block_until_ready(jax.jit(lambda: jnp.arange(2**24, dtype=jnp.float32))())
    monkeypatch.setattr(huge_pages, "why_none", lambda: "switched off")
    collapse(array)
    before = in_huge_pages([array])[0]
    monkeypatch.setattr(huge_pages, "why_none", lambda: None)
    collapse(array)
    after = in_huge_pages([array])[0]
    assert before is not None and after is not None
    assert before < after  # how much of it depends on which pages are in use just then
    assert np.array_equal(array, np.arange(2**24))


def test_arrays_of_an_accelerator_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    array = SimpleNamespace(devices=lambda: [SimpleNamespace(platform="gpu")])
    assert copied(cast(Any, array)) is array
    monkeypatch.setattr(huge_pages, "_spans", None)  # where it lies is not asked
    collapse(cast(Any, array))


SMAPS = """\
{start:x}-{end:x} rw-p 00000000 00:00 0
Size:               8192 kB
AnonHugePages:      {huge} kB
VmFlags: rd wr mr mw me ac sd hg
{end:x}-{after:x} rw-p 00000000 00:00 0                          [heap]
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize(("huge", "expected"), [(0, 0), (2048, 2**21), (8192, 2**21 + 2**20)])
def test_a_mapping_counts_as_far_as_arrays_lie_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, huge: int, expected: int
) -> None:
    memory = np.empty(2**24, np.uint8)
    start = memory.ctypes.data
    text = SMAPS.format(start=start, end=start + 2**23, after=start + 2**24, huge=huge)
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "smaps")
    (tmp_path / "smaps").write_text(text)
    within, across = memory[5 : 5 + 2**21], memory[2**23 - 2**20 : 2**23 + 2**20]
    assert in_huge_pages([across, within]) == (expected, 2**22)


def test_elsewhere_the_share_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "absent")
    assert in_huge_pages([np.empty(10, np.int8)]) == (None, 10)


def test_the_reason_for_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "absent")
    monkeypatch.setattr(sys, "platform", "linux")
    without_kernel = why_none()
    setting.write_text("always madvise [never]\n")
    off = why_none()
    setting.write_text("always [madvise] never\n")
    refused = why_none()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert off is not None and setting.name in off
    assert len({without_kernel, off, refused, why_none()} - {None}) == 4


FORKING = """
import os
import numpy as np
from moejax.runtime.huge_pages import HugePages, in_huge_pages
array = HugePages().empty((2**21,), np.float32)
array[...] = np.arange(array.size)
before = in_huge_pages([array])
child = os.fork()
if child == 0:
    seen = np.array_equal(array, np.arange(array.size))
    array[...] = -1
    os._exit(0 if seen else 1)
_, status = os.waitpid(child, 0)
assert status == 0
assert np.array_equal(array, np.arange(array.size))
print(in_huge_pages([array]) == before)
"""


def test_a_forked_child_reads_what_its_parent_keeps() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"
