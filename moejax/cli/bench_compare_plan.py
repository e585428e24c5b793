"""What `moejax bench compare` compares: from its flags to a plan. Imports nothing heavy by itself."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moejax.cli import bench_options

if TYPE_CHECKING:
    from moejax.bench.standings import SystemsPlan
    from moejax.cli.bench_compare import ComparisonFlags
    from moejax.cli.facts import SourceFacts
    from moejax.cli.options import WeightFlags


def make_plan(
    facts: "SourceFacts",
    scratch: Path,
    works: list[Any],
    peers: list[str],
    flags: "ComparisonFlags",
    weights: "WeightFlags",
    dtype: str,
) -> "SystemsPlan":
    """What is compared; requests are cut to what the model has positions for.

    Raises:
        ValueError: for a converted folder, which only moejax reads.
    """
    from moejax.bench.peers import Settings
    from moejax.bench.standings import OURS, SystemsPlan
    from moejax.bench.works import ragged_requests

    config, count = facts.config, flags.num_prompts
    low, high = bench_options.RAGGED
    high = min(high, config.max_position_embeddings // 2)
    lengths = (min(low, high), high)
    longest = [work.input_len + work.output_len for work in works] + [2 * high] * bool(count)
    settings = Settings(
        folder=hf_folder(facts, dtype, scratch, weights.seed),
        scratch=str(scratch),
        dtype=dtype,
        threads=flags.threads or len(os.sched_getaffinity(0)),
        max_batch=max(work.batch_size for work in works),
        max_len=max(longest),
        expert_backend=weights.expert_backend,
    )
    return SystemsPlan(
        contenders={OURS: (OURS, settings)} | {name: (name, settings) for name in peers},
        works=works,
        requests=ragged_requests(count, lengths, lengths, config.vocab_size) if count else [],
        rounds=flags.num_iters,
        vocab_size=config.vocab_size,
    )


def hf_folder(facts: "SourceFacts", dtype: str, scratch: Path, seed: int) -> str:
    """The Hugging Face folder that all systems read; random weights are written to `scratch` first.

    Raises:
        ValueError: for a converted folder, which only moejax reads.
    """
    from moejax._convert import OrbaxFolder
    from moejax.bench.random_folder import write_random_folder

    if isinstance(facts.source, str):
        write_random_folder(scratch / "random", facts.config, dtype, seed)
        return str(scratch / "random")
    if isinstance(facts.source.tensors, OrbaxFolder):
        raise ValueError(
            f"{facts.name} is a converted folder, which other systems cannot read; compare the Hugging Face folder "
            f"that it was made of, or make one with: moejax convert {facts.name} NEW_FOLDER"
        )
    return str(facts.source.folder)


def with_meshes(plan: "SystemsPlan", meshes: list[str], dispatch: str) -> "SystemsPlan":
    """The plan with moejax on each mesh as one more contender."""
    from moejax.bench.standings import OURS

    _, settings = plan.contenders[OURS]
    more = {f"{OURS} {mesh}": (OURS, dataclasses.replace(settings, mesh=mesh, dispatch=dispatch)) for mesh in meshes}
    return dataclasses.replace(plan, contenders={**plan.contenders, **more})
