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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moejax._sharding import LogicalAxis, MeshConfig
from moejax._sharding.collectives import compiled_collectives
from moejax.decoding import steps
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import CACHE_AXES
from moejax.measuring.compiled import DTYPE, Job, PhaseName, ProgramFacts
from moejax.model.cache import KVCache
from moejax.model.structure import PLACEMENT, make_parallel, make_structure
from moejax.moe.parallel import Parallel
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


class Program(NamedTuple):
    """A function and the shapes and places of its arguments: weights first, then `others`, which hold `cache`.

    unread: those of `others` that it does not read; jit leaves them out of the program.
    """

    function: Callable[..., Any]
    weights: dict[str, Any]
    others: tuple[Any, ...]
    cache: KVCache
    donated: tuple[int, ...]
    unread: tuple[Any, ...] = ()


def compile_job(config: ModelConfig, job: Job, *, quick: bool = True) -> ProgramFacts:
    """What XLA makes of one program; `quick` leaves machine code as it is first written."""
    mesh = MeshConfig.parse(job.mesh).build()
    shallow = dataclasses.replace(config, num_layers=job.layers)
    program = _PHASES[job.phase](shallow, make_parallel(shallow, mesh, job.dispatch), job)
    lowered = jax.jit(program.function, donate_argnums=program.donated).lower(program.weights, *program.others)
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


def decode_step(config: ModelConfig, parallel: Parallel, job: Job) -> Program:
    """The loop that generates a greedy token for each sequence per turn, as `decoding.slots` calls it."""
    structure = make_structure(config, "auto", DTYPE, parallel)
    state = _abstract_state(config, parallel, job)
    count = _whole((), jnp.int32, parallel)
    return Program(
        function=lambda params, *args: steps.generate(structure.merged(params), FEATURES, *args),
        weights=structure.shapes(),
        others=(state, _whole((job.sequences,), jnp.bool_, parallel), count, count),
        cache=state.cache,
        donated=(1,),
    )


def prefill(config: ModelConfig, parallel: Parallel, job: Job) -> Program:
    """The feeding of a part of each prompt of a whole batch, as `decoding.slots` calls it."""
    structure = make_structure(config, "auto", DTYPE, parallel)
    state = _abstract_state(config, parallel, job)
    shape = FeedShape(job.sequences, job.width, job.positions, job.sequences, in_place=True)
    tokens: Any = _whole((job.sequences, job.width), jnp.int32, parallel)
    numbers: Any = _whole((job.sequences,), jnp.int32, parallel)
    in_prompt: Any = _whole((job.sequences, 0), jnp.bool_, parallel)
    feed = steps.Feed(
        tokens=tokens,
        next_tokens=tokens,
        starts=numbers,
        lengths=numbers,
        sources=numbers,
        fed=numbers,
        slots=numbers,
        in_prompt=in_prompt,
        sampling=state.sampling,
    )
    return Program(
        function=lambda params, *args: steps.extend(structure.merged(params), FEATURES, shape, *args),
        weights=structure.shapes(),
        others=(state, feed),
        cache=state.cache,
        donated=(1,),
        # What only log-probabilities of prompts need, and prompts that are not fed in place.
        unread=(feed.next_tokens, feed.sources),
    )


def _abstract_state(config: ModelConfig, parallel: Parallel, job: Job) -> DecodeState:
    """The shapes of the state of a batch, where they live."""
    state = jax.eval_shape(lambda: empty_state(config, FEATURES, job.sequences, job.positions, DTYPE, parallel))
    cache = _placed(state.cache, parallel, *CACHE_AXES)
    return dataclasses.replace(_placed(dataclasses.replace(state, cache=()), parallel), cache=cache)


_PHASES: dict[PhaseName, Callable[[ModelConfig, Parallel, Job], Program]] = {
    "decode": decode_step,
    "prefill": prefill,
}


def _placed(tree: Any, parallel: Parallel, *logical: LogicalAxis | None) -> Any:
    """The same shapes, living where arrays with these logical axes do; without any, whole on every device."""
    sharding = parallel.sharding(*logical)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _whole(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, parallel: Parallel) -> jax.ShapeDtypeStruct:
    return _placed(jax.ShapeDtypeStruct(shape, dtype), parallel)


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
