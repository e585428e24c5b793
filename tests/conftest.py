"""The environment that every test runs in, and the rule for tests that need a GPU.

JAX reads its settings from the environment when it is first imported, and a command-line test's subprocess inherits
them: so they are set here, before any test module is collected, and not through `jax.config`.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator

import hypothesis
import pytest

from tests.huge_memory import Refusals

# The same examples in every run, so that a change which passed goes on passing; `--hypothesis-profile=explore` draws
# others. A machine that is slow is no failure.
COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("suite", derandomize=True, **COMMON)
hypothesis.settings.register_profile("explore", **COMMON)
hypothesis.settings.load_profile("suite")

SETTINGS = {
    # A silent int32 -> float32 or [B] -> [B, 1] is how a wrong shape or dtype hides.
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    # Meshes are tested on simulated devices; a test that needs them fails without, it is never skipped.
    "JAX_NUM_CPU_DEVICES": "8",
    # Keep every compiled program, however small, so that the second run of the suite compiles next to nothing.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Nothing in the suite may reach for a network.
    "HF_HUB_OFFLINE": "1",
    # Otherwise tokenizers warns, on stderr, when a test starts a subprocess after tokenizing.
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture
def refusals() -> Refusals:
    """Of huge pages, since the test began."""
    return Refusals()


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """Commands set our loggers for the rest of their process, which is that of all tests."""
    yield
    logging.getLogger("moejax").setLevel(logging.NOTSET)
    for name in ("moejax.ops.native.build", "moejax.runtime.accelerators", "moejax.hub.download"):
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers = True, []
        logger.setLevel(logging.NOTSET)


def pytest_configure(config: pytest.Config) -> None:
    if "jax" in sys.modules:
        raise pytest.UsageError(
            "jax was imported before tests/conftest.py could set its options: find the early import"
        )
    os.environ.update(SETTINGS)
    # A shell makes what it starts in the background ignore Ctrl-C; commands that tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Shared by sessions, xdist workers and the commands that tests start. Under d/, so that --cache-clear empties it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.rootpath / ".pytest_cache" / "d" / "jax")


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Tests share compiled programs with commands that other tests kill: half of one is made anew, once."""
    from moejax.runtime.program_cache import discard_unreadable

    discard_unreadable(str(warning_message.message), os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, and deselects tests that need a GPU where there is none.

    A worker that takes a long file last leaves the others idle. What is deselected is counted apart, it is no skip.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not has_gpu():
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


def has_gpu() -> bool:
    import jax

    return any(device.platform == "gpu" for device in jax.devices())
