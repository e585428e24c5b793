"""A program for tests of several processes: loads and decodes as any JAX program would, without the command line.

`python -m tests.moejax.process_program ID PORT`, as process ID of 2, prints what happened there as one JSON object.
"""

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

import moejax
from moejax import loading
from moejax._sharding import MESH_AXES
from moejax.checkpoint import Checkpoint, open_checkpoint

MESH = "expert=4,tensor=2"


def held_bytes(model: moejax.Model) -> int:
    """Bytes of the distinct parts of all parameters that this process' devices hold, from the placements alone."""
    devices: Any = np.array(model.devices).reshape(tuple(model.mesh.shape.values()))
    here = [place for place in np.ndindex(devices.shape) if devices[place].process_index == jax.process_index()]
    total = 0
    for placement in model.placements():
        split = {axis for over in placement.spec for axis in over}
        parts = {tuple(at for at, axis in zip(place, MESH_AXES, strict=True) if axis in split) for place in here}
        total += len(parts) * placement.bytes_per_device
    return total


def refusal(call: Callable[[], Any]) -> str:
    """The message of the ValueError that a call ends with."""
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def main(process_id: int, port: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process_id)
    opened: list[Checkpoint] = []

    def opening(source: str, revision: str | None) -> Checkpoint:
        opened.append(open_checkpoint(source, revision))
        return opened[-1]

    with mock.patch.object(loading, "open_checkpoint", opening):
        model = moejax.load("demo", mesh=MESH, dispatch="replicated", dtype="bfloat16")
    dtype = ["bfloat16", "float32"][process_id]
    report = {
        "read": opened[0].tensors.read_bytes.total,
        "held": held_bytes(model),
        "whole": sum(info.nbytes for info in opened[0].tensors.tensors.values()),
        "refusals": [
            refusal(lambda: moejax.load("demo", mesh=MESH, dispatch="replicated", dtype=dtype)),
            refusal(lambda: moejax.decode(model, [[1, 2], [3 + process_id]])),
            refusal(lambda: moejax.decode(model, [1, 2], max_tokens=3 + process_id)),
            refusal(lambda: moejax.decode(model, [1, 2], stream=process_id == 1)),  # pyright: ignore
            refusal(lambda: moejax.logits(model, [[1, 2 + process_id]])),
        ],
        "sampled": moejax.decode(model, [1, 2, 3], temperature=2.0, max_tokens=24, ignore_eos=True)[0].token_ids,
    }
    # In one write: the processes' outputs must not mix with what Gloo writes to stdout.
    sys.stdout.write(f"\n{json.dumps(report)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
