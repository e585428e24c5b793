"""Memory nodes: what the kernel's lists mean, and that it takes the one node that every machine has."""

import mmap
import platform
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from moejax.runtime import memory_nodes
from moejax.runtime.memory_nodes import DEFAULT, INTERLEAVE, allowed_nodes, interleave, policy, spread

HAS_NODES = policy() is not None
needs_nodes = pytest.mark.skipif(not HAS_NODES, reason="this system has no memory policies, or forbids to ask")


@pytest.fixture
def chunk() -> Iterator[np.ndarray]:
    yield np.frombuffer(mmap.mmap(-1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0\n", {0}), ("0-2,5,7-8\n", {0, 1, 2, 5, 7, 8}), ("\n", set()), ("12", {12})]
)
def test_lists_of_the_kernel(text: str, numbers: set[int]) -> None:
    assert memory_nodes._numbers(text) == numbers


@needs_nodes
def test_interleaving_is_taken_and_can_be_asked(chunk: np.ndarray) -> None:
    nodes = allowed_nodes()
    assert nodes
    before = policy(chunk.ctypes.data)
    assert interleave(chunk.ctypes.data, chunk.size, nodes)
    assert (before, policy(chunk.ctypes.data)) == (DEFAULT, INTERLEAVE)
    chunk[...] = 1
    assert not interleave(chunk.ctypes.data, chunk.size, [memory_nodes._MOST_NODES - 1])


@needs_nodes
@pytest.mark.parametrize(
    ("nodes", "own", "expected"), [([0, 0], DEFAULT, INTERLEAVE), ([0], DEFAULT, DEFAULT), ([0, 0], 2, DEFAULT)]
)
def test_only_several_nodes_without_a_policy_are_interleaved(
    monkeypatch: pytest.MonkeyPatch, chunk: np.ndarray, nodes: list[int], own: int, expected: int
) -> None:
    monkeypatch.setattr(memory_nodes, "allowed_nodes", lambda: nodes)
    monkeypatch.setattr(memory_nodes, "policy", lambda: own)
    spread(chunk.ctypes.data, chunk.size)
    assert policy(chunk.ctypes.data) == expected


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_elsewhere_nothing_is_called(
    monkeypatch: pytest.MonkeyPatch, chunk: np.ndarray, system: str, machine: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert policy() is None
    assert not interleave(chunk.ctypes.data, chunk.size, [0])
