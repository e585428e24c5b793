"""The settings of JAX that moejax runs under, whatever the program around it has set.

JAX's settings are part of what a program computes: the generator decides what a seed draws, a mesh in context what
`shard_map` accepts, a precision what a product rounds to. A user's program may set any of them, for itself.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from moejax.runtime.platform import visible_devices

_P = ParamSpec("_P")
_R = TypeVar("_R")

# By the names of JAX's context managers: what is random, what is rounded, and what is refused.
SETTINGS: dict[str, Any] = {
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
    "enable_x64": False,
    "default_matmul_precision": None,
    "disable_jit": False,
    "debug_nans": False,  # a text whose logits are not finite ends with an error that says so
    "debug_infs": False,
    "transfer_guard": "allow",
    "no_tracing": False,
}
# What has no context manager: refused where it is set otherwise.
REQUIRED: dict[str, Any] = {"jax_use_shardy_partitioner": True}

_process: int | None = None  # that used JAX through moejax first


@contextmanager
def settled() -> Iterator[None]:
    """JAX as moejax needs it, for this thread. Around everything that is traced or run.

    Raises:
        RuntimeError: in a child that was forked after its parent had used JAX, where every call would wait for ever.
        ValueError: where JAX cannot start, inside a function that is being traced, and under a setting that only the
            user can take back.
    """
    _check_process()
    for name, needed in REQUIRED.items():
        if (given := getattr(jax.config, name, needed)) != needed:
            raise ValueError(f"moejax needs {name}={needed}, and it is {given}: jax.config.update({name!r}, {needed})")
    with ExitStack() as stack:
        for name, value in SETTINGS.items():
            stack.enter_context(getattr(jax, name)(value))
        stack.enter_context(_no_mesh())
        yield


def in_settled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, which is no generator, run in `settled()`."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with settled():
            return function(*args, **kwargs)

    return wrapped


def _no_mesh() -> AbstractContextManager[None]:
    try:
        return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    except ValueError as error:  # what it says inside a traced function
        raise ValueError(
            "moejax compiles what it runs: call it outside of jax.jit, jax.grad, jax.vmap and their kind, and hand "
            "what it gives to the traced function as an argument; inside, there are model.forward, merged and replaced"
        ) from error


def _check_process() -> None:
    global _process
    if _process is None:
        visible_devices()
        _process = os.getpid()
    if _process != os.getpid():
        raise RuntimeError(
            f"process {os.getpid()} was forked from process {_process}, which had used JAX, and JAX's threads stay "
            'there: start processes with multiprocessing.get_context("spawn"), and load the model in each'
        )
