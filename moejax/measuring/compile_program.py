"""Compiles decode steps and prefills of splits on simulated devices, and says what XLA made of them.

`python -m moejax.measuring.compile_program` is started by `compiled.compile_splits`, because simulated devices must be
asked for before JAX starts: it reads a JSON object of jobs from stdin and writes a line of JSON per job, as each is
done, in any order. Nothing is computed and no weight exists: programs are compiled for the shapes of their arguments,
so a model of any size can be asked about on a laptop.
"""

import dataclasses
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

from moejax._sharding import MeshConfig
from moejax._sharding.collectives import compiled_collectives
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import Features
from moejax.families.config import ModelConfig
from moejax.measuring.compiled import DTYPE, Job, ProgramFacts
from moejax.measuring.shaped_programs import Program, decode_step, feed, lower
from moejax.model.structure import PLACEMENT, Structure, make_parallel, make_structure
from moejax.weights.layouts import Separate

# The machine code is never run, so none of the time goes into optimising it: a quarter of the default's is left. The
# passes over the program as a whole, where collectives come from, are the same.
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):  # since then there are only those emitters, and the option is unknown
    QUICK["xla_cpu_use_fusion_emitters"] = False
FEATURES = Features()  # greedy


def main() -> None:
    """Compiles every job of the request on stdin."""
    request = json.load(sys.stdin)
    config = ModelConfig(**request["config"])
    jobs = [Job(**job) for job in request["jobs"]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        pending = {threads.submit(compile_job, config, job): number for number, job in enumerate(jobs)}
        try:
            for done in as_completed(pending):
                print(json.dumps((pending[done], dataclasses.asdict(done.result()))), flush=True)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def compile_job(config: ModelConfig, job: Job, *, quick: bool = True) -> ProgramFacts:
    """What XLA makes of one program; `quick` leaves machine code as it is first written."""
    mesh = MeshConfig.parse(job.mesh).build()
    shallow = dataclasses.replace(config, num_layers=job.layers)
    program = _program(make_structure(shallow, "auto", DTYPE, make_parallel(shallow, mesh, job.dispatch)), job)
    lowered = lower(program)
    compiled = lowered.compile(compiler_options=QUICK) if quick else lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None, "XLA:CPU shows and analyses every program"
    kv_bytes = _device_bytes(program.cache)
    held = {path: one for path, one in program.weights.items() if path != PLACEMENT}
    weight_bytes = sum(map(_number_bytes, jax.tree.leaves(held, is_leaf=lambda one: hasattr(one, "per_array"))))
    return ProgramFacts(
        collectives=tuple(compiled_collectives(text, mesh.shape)),
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        other_bytes=_device_bytes((program.weights, program.others))
        - _device_bytes(program.unread)
        - weight_bytes
        - kv_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
    )


def _program(structure: Structure, job: Job) -> Program:
    if job.phase == "decode":
        return decode_step(structure, FEATURES, job.sequences, job.positions)
    shape = FeedShape(job.sequences, job.width, job.positions, job.sequences, in_place=True)
    return feed(structure, FEATURES, shape, job.sequences, job.positions)


def _number_bytes(value: Any) -> int:
    """What one device holds of a weight's numbers, without what fills its arrays up."""
    if isinstance(value, Separate):
        return sum(map(_number_bytes, value.parts))
    return _device_bytes(value) * math.prod(value.shape) * value.dtype.itemsize // value.nbytes


def _device_bytes(tree: Any) -> int:
    """What one device holds of these arrays."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
