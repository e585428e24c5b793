"""What `moejax bench compare` compares: from its flags to a plan. Imports nothing heavy by itself."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moejax.cli import bench_options as flags

if TYPE_CHECKING:
    from moejax.bench.compare import Plan


def hf_folder(source: str, config: Any, dtype: str, scratch: Path, seed: int) -> str:
    """The Hugging Face folder that all systems read; random weights are written to `scratch` first.

    Raises:
        ValueError: for a converted folder, which only moejax reads.
    """
    from convert import OrbaxFolder
    from moejax.bench.random_folder import write_random_folder
    from moejax.bench.source import RANDOM
    from moejax.checkpoint import open_checkpoint

    if not source.startswith(RANDOM):
        checkpoint = open_checkpoint(source)
        if isinstance(checkpoint.tensors, OrbaxFolder):
            raise ValueError(
                f"{source} is a converted folder, which other systems cannot read; compare the Hugging Face folder "
                f"that it was made of, or make one with: moejax convert {source} NEW_FOLDER"
            )
        return str(checkpoint.folder)
    write_random_folder(scratch / "random", config, dtype, seed)
    return str(scratch / "random")


def make_plan(
    folder: str,
    scratch: Path,
    peers: list[str],
    works: list[Any],
    num_prompts: int,
    rounds: int,
    threads: int,
    dtype: str,
    expert_backend: str,
    config: Any,
) -> "Plan":
    """What is compared; requests are cut to what the model has positions for."""
    from moejax.bench.compare import OURS, Plan
    from moejax.bench.peers import Settings
    from moejax.bench.works import ragged_requests

    low, high = flags.RAGGED
    high = min(high, config.max_position_embeddings // 2)
    lengths = (min(low, high), high)
    requests = ragged_requests(num_prompts, lengths, lengths, config.vocab_size) if num_prompts else []
    longest = [work.input_len + work.output_len for work in works] + [2 * high] * bool(num_prompts)
    settings = Settings(
        folder=folder,
        scratch=str(scratch),
        dtype=dtype,
        threads=threads,
        max_batch=max(work.batch_size for work in works),
        max_len=max(longest),
        expert_backend=expert_backend,
    )
    contenders = {OURS: (OURS, settings)} | {name: (name, settings) for name in peers}
    return Plan(contenders=contenders, works=works, requests=requests, rounds=rounds, vocab_size=config.vocab_size)


def with_meshes(plan: "Plan", meshes: list[str], dispatch: str) -> "Plan":
    """The plan with moejax on each mesh as one more contender."""
    from moejax.bench.compare import OURS

    _, settings = plan.contenders[OURS]
    more = {f"{OURS} {mesh}": (OURS, dataclasses.replace(settings, mesh=mesh, dispatch=dispatch)) for mesh in meshes}
    return dataclasses.replace(plan, contenders={**plan.contenders, **more})
