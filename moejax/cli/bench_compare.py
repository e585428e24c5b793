"""`moejax bench compare`: moejax beside other systems, each in a process of its own."""

import json as json_format
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from moejax.cli import bench_options as flags
from moejax.cli import console, options
from moejax.cli.bench_compare_plan import make_plan, with_meshes
from moejax.cli.bench_compare_table import show
from moejax.cli.bench_runs import describe_config, works_of
from moejax.cli.devices import Devices
from moejax.cli.groups import grouped
from moejax.cli.options import option, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moejax.bench.standings import Standing

EXAMPLES = (
    "moejax bench compare path/to/hf-folder --peers transformers,transformers-compiled,llama.cpp",
    "moejax bench compare --random 186m -b 1,8,16 -p 128 -n 64 --num-prompts 64 --json > result.json",
    "moejax bench compare --random 186m --peers none --mesh all --simulate-devices 4",
)

FAILED = 1  # exit code: a system computed wrong tokens, or none of those asked for could be compared


@dataclass(frozen=True, kw_only=True)
class ComparisonFlags:
    """What moejax is compared with, and how often.

    Raises:
        ValueError: for a number out of range.
    """

    peers: Annotated[
        str,
        option(
            "--peers",
            panel=flags.WORK,
            metavar="NAME[,NAME...]",
            help="transformers, transformers-compiled, llama.cpp, vllm; none for moejax alone.",
        ),
    ] = "transformers,transformers-compiled,llama.cpp,vllm"
    num_prompts: Annotated[
        int,
        whole(
            "--num-prompts",
            panel=flags.WORK,
            help="Also time N ragged requests of 16-256 tokens in and out, every third round; 0 leaves that out.",
        ),
    ] = 0
    num_iters: flags.Rounds = 5
    threads: Annotated[
        int | None, whole("--threads", panel=flags.WORK, help="CPU threads of every system; all cores by default.")
    ] = None
    mesh: Annotated[
        list[str] | None,
        option(
            "--mesh",
            panel=options.DEVICES,
            metavar="MESH",
            help="Also moejax on this mesh (expert=4,tensor=2 or ep=4,tp=2), repeatable; all: one each of "
            "intra-expert, inter-expert and hybrid. Timed "
            "on real devices, only counted on simulated ones.",
            show_default=False,
        ),
    ] = None
    dispatch: options.Dispatch = "auto"

    def __post_init__(self) -> None:
        options.check_dispatch(self.dispatch, mesh=bool(self.mesh))
        if self.num_prompts < 0:
            raise ValueError(f"--num-prompts must be at least 0, which leaves them out, got {self.num_prompts}")
        if self.num_iters < (0 if self.mesh else 1):
            raise ValueError(f"--num-iters must be at least 1 (or 0 with --mesh, to count only), got {self.num_iters}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")


@grouped
def compare(
    source: flags.SourceFlags,
    work: flags.WorkFlags,
    asked: ComparisonFlags,
    weights: options.WeightFlags,
    devices: Devices,
    json: flags.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Compare speed with other systems: same weights, prompts and dtype, interleaved rounds, tokens checked first.

    Exit code 0: every system's tokens are right, 1: some are wrong, no system asked for could be
    compared, or a mesh failed.
    """
    from moejax.bench.compare import check_installed, installed
    from moejax.bench.compare import compare as run_compare
    from moejax.bench.machine import check_timed, describe_run
    from moejax.bench.peers import asked_peers
    from moejax.bench.standings import as_json
    from moejax.bench.strategies import COUNTED, TIMED, count_strategies, meshes_of
    from moejax.bench.works import check_amount
    from moejax.cli.facts import read_facts
    from moejax.moe.split import resolve_split
    from moejax.weights.dtypes import resolve_dtype

    facts = read_facts(source.source(quiet=quiet), None)
    works = works_of(facts, work)
    check_amount("--num-prompts", asked.num_prompts, flags.RAGGED[1])
    present, absent = installed(asked_peers(asked.peers))
    if asked.num_iters:
        check_installed(present, absent)
    simulated = devices.simulate_devices
    meshes = meshes_of(asked.mesh or [], simulated)
    dtype = resolve_dtype(weights.dtype, auto="bfloat16")
    if asked.num_iters and not simulated:
        check_timed({mesh: resolve_split(facts.config, mesh, asked.dispatch).mesh.size for mesh in meshes})
    result: dict[str, Any] = describe_run()
    result["model"] = describe_config(facts.config, facts.name) | {"dtype": dtype}
    if meshes:
        decoding = [one for one in works if one.decode_tokens]
        result["strategies"] = {
            "how": COUNTED if simulated else f"{TIMED}; bytes are counted",
            "rows": count_strategies(facts.config, meshes, decoding, dtype, asked.dispatch),
        }
    if not asked.num_iters:
        _print(result, json=json)
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="moejax-bench-") as folder,
        console.progress("comparing", quiet=quiet) as step,
    ):
        plan = make_plan(facts, Path(folder), works, present, asked, weights, dtype)
        if meshes and not simulated:
            plan = with_meshes(plan, meshes, asked.dispatch)
        standings = run_compare(plan, on_event=step)
    result["compare"] = as_json(plan, standings) | {"not_installed": absent, "threads": plan.threads}
    _print(result, json=json)
    return _exit_code(standings, present)


def _print(result: dict[str, Any], *, json: bool) -> None:
    if json:
        console.write(f"{json_format.dumps(result)}\n")
    else:
        show(result)


def _exit_code(standings: "Sequence[Standing]", present: "Sequence[str]") -> int:
    if present and all(standing.failed for standing in standings if standing.name in present):
        console.error("nothing was compared: every system that was asked for failed")
        return FAILED
    for standing in standings:
        if standing.failed and standing.name not in present:  # moejax on a mesh that was asked for
            console.error(standing.failed)
            return FAILED
    return 0 if all(standing.right for standing in standings) else FAILED
