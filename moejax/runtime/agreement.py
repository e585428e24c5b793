"""Several processes of one run: each must have been given the same, or their devices wait for each other forever."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moejax.runtime.ambient import in_settled


@in_settled
def check_same(given: Mapping[str, object]) -> None:
    """Checks that every process of this run was given the same; there is nothing to check where it is the only one.

    All processes have to call it at the same place, and wait for each other there. What is compared are digests of the
    values' representations, which therefore must be the same in every process: no sets, no addresses.

    Args:
        given: values by what they are called in the message.

    Raises:
        ValueError: in every process, naming the first value that differs, and the first process whose does.
    """
    if jax.process_count() == 1:
        return
    _check_device_counts()
    digests = np.stack([_digest(value) for value in given.values()])
    by_process: Any = multihost_utils.process_allgather(digests)  # [processes, values, 8]
    differs = (by_process != by_process[0]).any(axis=-1)
    for place, name in enumerate(given):
        if differs[:, place].any():
            raise ValueError(
                f"process {differs[:, place].argmax()} of this run was not given the same {name} as process 0; start "
                "all of them again with the same prompts, flags and checkpoint"
            )


def _check_device_counts() -> None:
    """Raises ValueError when processes have different numbers of devices, which every process sees for itself."""
    counts = Counter(device.process_index for device in jax.devices())
    for process in range(jax.process_count()):
        if counts[process] != counts[0]:
            raise ValueError(
                f"process {process} of this run has {counts[process]} devices and process 0 has {counts[0]}; start all "
                "of them again with the same number"
            )


def _digest(value: object) -> np.ndarray:
    """SHA-256 of what `repr` shows, as uint32 [8]."""
    return np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint32)
