"""`moejax bench compare`: moejax beside other systems, each in a process of its own."""

import dataclasses
import json as json_format
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moejax.cli import bench_options as flags
from moejax.cli import console, options
from moejax.cli import devices as device_flags

if TYPE_CHECKING:
    from rich.table import Table

    from moejax.bench.compare import Plan

EXAMPLES = (
    "moejax bench compare path/to/hf-folder --peers transformers,transformers-compiled,llama.cpp",
    "moejax bench compare --random 186m -b 1,8,16 -p 128 -n 64 --num-prompts 64 --report results",
    "moejax bench compare --random 186m --peers none --mesh all --simulate-devices 4",
)

WRONG = 1  # exit code: a system compared computed wrong tokens

Peers = Annotated[
    str,
    typer.Option(
        "--peers",
        rich_help_panel=flags.WORK,
        metavar="NAME[,NAME...]",
        help="transformers, transformers-compiled, llama.cpp, vllm; none for moejax alone.",
    ),
]
Meshes = Annotated[
    list[str] | None,
    typer.Option(
        "--mesh",
        rich_help_panel=device_flags.PANEL,
        metavar="MESH",
        help="Also moejax on this mesh, repeatable; all: one each of intra-expert, inter-expert and hybrid. Timed on "
        "real devices, only counted on simulated ones.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", rich_help_panel=flags.WORK, parser=options.whole_number, metavar="N", help="Of a CPU."),
]
NumPrompts = Annotated[
    int,
    typer.Option(
        "--num-prompts",
        rich_help_panel=flags.WORK,
        parser=options.whole_number,
        metavar="N",
        help="Also time N ragged requests of 16-256 tokens in and out; 0 leaves that out.",
    ),
]


def compare(
    checkpoint: flags.Checkpoint = None,
    random: flags.Random = None,
    peers: Peers = "transformers,transformers-compiled,llama.cpp,vllm",
    batch_size: flags.BatchSizes = flags.BATCH_SIZES,
    input_len: flags.InputLens = flags.INPUT_LENS,
    output_len: flags.OutputLens = flags.OUTPUT_LENS,
    num_prompts: NumPrompts = 0,
    num_iters: flags.Rounds = 5,
    threads: Threads = None,
    json: flags.Json = False,
    report: flags.Report = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    dtype: options.Dtype = "bfloat16",
    expert_backend: options.ExpertBackend = "auto",
    model_seed: flags.Seed = 0,
    mesh: Meshes = None,
    dispatch: device_flags.Dispatch = "auto",
    simulate_devices: device_flags.SimulateDevices = None,
) -> int:
    """Compare speed with other systems: same weights, prompts and dtype, interleaved rounds, tokens checked first.

    Exit code 0: every system's tokens are right, 1: some are wrong.
    """
    from moejax.bench.compare import as_json, installed, scratch_folder
    from moejax.bench.compare import compare as run_compare
    from moejax.bench.machine import describe_run
    from moejax.bench.peers import expand_peers
    from moejax.bench.source import resolve_source, source_name
    from moejax.bench.strategies import COUNTED, TIMED, count_strategies, meshes_of
    from moejax.bench.works import cross_product
    from moejax.cli.bench_runs import check_length
    from moejax.cli.facts import read_facts
    from moejax.dtypes import resolve_dtype
    from moejax.layout import resolve_split

    source = resolve_source(checkpoint, random)
    works = cross_product(batch_size, input_len, output_len)
    check_length(source, max(work.input_len + work.output_len for work in works))
    if num_iters < (0 if mesh else 1):
        raise ValueError(f"--num-iters must be at least 1 (or 0 with --mesh, to count only), got {num_iters}")
    wanted = expand_peers([name for name in flags.names(peers) if name != "none"])
    meshes = meshes_of(mesh or [], simulate_devices)
    if report is not None:
        from moejax.bench.plots import check_plots

        check_plots()
    present, absent = installed(wanted)
    config, dtype = read_facts(source, None).config, resolve_dtype(dtype, auto="bfloat16")
    for split in meshes:  # a mesh that cannot be is told before anything is loaded
        resolve_split(config, split, dispatch)
    result: dict[str, Any] = describe_run()
    result["model"] = {
        "name": source_name(source),
        "parameters": config.num_parameters,
        "active_parameters": config.num_active_parameters,
        "dtype": dtype,
    }
    if meshes:
        result["strategies"] = {
            "how": COUNTED if simulate_devices else f"{TIMED}; bytes are counted",
            "rows": count_strategies(config, meshes, works, dtype, dispatch),
        }
    if not num_iters:
        return finish(result, report, json=json)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder()))
        folder = hf_folder(source, config, dtype, scratch, model_seed)
        count = threads or len(os.sched_getaffinity(0))
        plan = make_plan(folder, scratch, present, works, num_prompts, num_iters, count, dtype, expert_backend, config)
        if meshes and not simulate_devices:
            plan = with_meshes(plan, meshes, dispatch)
        with console.progress("comparing", quiet=quiet):
            standings = run_compare(plan, on_event=lambda text: None if quiet else console.step(text))
    result["compare"] = as_json(plan, standings) | {"not_installed": absent, "threads": count}
    finish(result, report, json=json)
    return 0 if all(verdict.right for standing in standings for verdict in standing.verdicts.values()) else WRONG


def finish(result: dict[str, Any], report: Path | None, *, json: bool) -> int:
    """Writes the report and prints the result; returns the exit code of a run in which nothing was wrong."""
    if report is not None:
        from moejax.bench.report import write_report

        write_report(report, result)
        console.remark(f"report written to {report}")
    if json:
        console.write(f"{json_format.dumps(result)}\n")
    else:
        show(result)
    return 0


def hf_folder(source: str, config: Any, dtype: str, scratch: Path, seed: int) -> str:
    """The Hugging Face folder that all systems read; random weights are written to `scratch` first."""
    from moejax.bench.random_folder import write_random_folder
    from moejax.bench.source import RANDOM
    from moejax.checkpoint import open_checkpoint

    if not source.startswith(RANDOM):
        return str(open_checkpoint(source).folder)
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


def show(result: dict[str, Any]) -> None:
    """Tables of rates and ratios, then what could not take part."""
    from moejax.bench.machine import machine_line

    compared, model = result.get("compare"), result["model"]
    console.write(f"machine: {machine_line(result['machine'])}\n")
    console.write(f"model: {model['name']}, {model['parameters'] / 1e6:,.0f} M parameters, {model['dtype']}\n")
    if strategies := result.get("strategies"):
        from moejax.bench.report_tables import strategies_table

        console.write(strategies_table(strategies))
    if compared is None:
        return
    console.write_rendered(_table(compared))
    for one in compared["contenders"]:
        failed = f" | FAILED: {one['failed']}" if one["failed"] else ""
        console.write(f"{console.printable(one['name'])}: {console.printable(one['how'] or 'did not load')}{failed}\n")
    for name, reason in compared["not_installed"].items():
        console.write(f"{name}: {reason}\n")


def _table(compared: dict[str, Any]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("test")
    table.add_column("system", no_wrap=True)
    for name in ("tok/s", "min to max", "moejax / system"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens")
    for work in compared["works"]:
        batch, before, after = (work[key] for key in ("batch_size", "input_len", "output_len"))
        for part, test in (("prefill", f"b{batch} pp{before}"), ("decode", f"b{batch} tg{after} @ d{before}")):
            for one in work["results"]:
                if part in one:
                    table.add_row(test, one["contender"], *cells(one[part], one["contender"]), one["tokens"])
    for one in (compared["throughput"] or {}).get("results", []):
        requests = f"{compared['throughput']['num_requests']} requests"
        table.add_row(requests, one["contender"], *cells(one, one["contender"]), "")
    return table


def cells(samples: dict[str, Any], contender: str) -> tuple[str, ...]:
    """The median rate and its range, the median ratio and its range; no ratio for moejax itself."""
    rates, ratios = samples["tokens_per_second"], samples["ratios"]
    ratio = f"{samples['median_ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return (
        f"{samples['median_tokens_per_second']:,.1f}",
        f"{min(rates):,.1f} to {max(rates):,.1f}",
        "" if contender == "moejax" else ratio,
    )
