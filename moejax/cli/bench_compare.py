"""`moejax bench compare`: moejax beside other systems, each in a process of its own."""

import json as json_format
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from moejax.cli import bench_options as flags
from moejax.cli import console, options
from moejax.cli import devices as device_flags
from moejax.cli.bench_compare_plan import hf_folder, make_plan, with_meshes
from moejax.cli.bench_compare_table import show

EXAMPLES = (
    "moejax bench compare path/to/hf-folder --peers transformers,transformers-compiled,llama.cpp",
    "moejax bench compare --random 186m -b 1,8,16 -p 128 -n 64 --num-prompts 64 --report results",
    "moejax bench compare --random 186m --peers none --mesh all --simulate-devices 4",
)

FAILED = 1  # exit code: a system computed wrong tokens, or none of those asked for could be compared

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
    typer.Option(
        "--threads",
        rich_help_panel=flags.WORK,
        parser=options.whole_number,
        metavar="N",
        help="CPU threads of every system; all cores by default.",
    ),
]
NumPrompts = Annotated[
    int,
    typer.Option(
        "--num-prompts",
        rich_help_panel=flags.WORK,
        parser=options.whole_number,
        metavar="N",
        help="Also time N ragged requests of 16-256 tokens in and out, every third round; 0 leaves that out.",
    ),
]


def compare(
    checkpoint: flags.Checkpoint = None,
    random: flags.Random = None,
    peers: Peers = "transformers,transformers-compiled,llama.cpp,vllm",
    batch_size: flags.BatchSizes = flags.BATCH_SIZES,
    input_len: flags.InputLens = flags.INPUT_LENS,
    output_len: flags.OutputLens = flags.OUTPUT_LENS,
    prefill_len: flags.PrefillLens = flags.NO_NUMBERS,
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

    Exit code 0: every system's tokens are right, 1: some are wrong, no system asked for could be
    compared, or a mesh failed.
    """
    from moejax.bench.compare import as_json, check_installed, installed, scratch_folder
    from moejax.bench.compare import compare as run_compare
    from moejax.bench.machine import describe_run
    from moejax.bench.peers import asked_peers
    from moejax.bench.source import resolve_source, source_name
    from moejax.bench.strategies import COUNTED, TIMED, count_strategies, meshes_of
    from moejax.bench.visible_devices import check_timed
    from moejax.bench.works import check_amount
    from moejax.cli.bench_runs import works_of
    from moejax.cli.facts import read_facts
    from moejax.moe.split import resolve_split
    from moejax.weights.dtypes import resolve_dtype

    source = resolve_source(checkpoint, random)
    works = works_of(source, batch_size, input_len, output_len, prefill_len)
    if num_prompts < 0:
        raise ValueError(f"--num-prompts must be at least 0, which leaves them out, got {num_prompts}")
    check_amount("--num-prompts", num_prompts, flags.RAGGED[1])
    if num_iters < (0 if mesh else 1):
        raise ValueError(f"--num-iters must be at least 1 (or 0 with --mesh, to count only), got {num_iters}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    present, absent = installed(asked_peers(peers))
    if num_iters:
        check_installed(present, absent)
    meshes = meshes_of(mesh or [], simulate_devices)
    if report is not None:
        from moejax.bench.report import check_report

        check_report(report)
    config, dtype = read_facts(source, None).config, resolve_dtype(dtype, auto="bfloat16")
    # A mesh that cannot be, or cannot be timed, is told before anything is loaded.
    sizes = {mesh: resolve_split(config, mesh, dispatch).mesh.size for mesh in meshes}
    if num_iters and not simulate_devices:
        check_timed(sizes)
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
            "rows": count_strategies(config, meshes, [one for one in works if one.decode_tokens], dtype, dispatch),
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
        with console.progress("comparing", quiet=quiet) as step:
            standings = run_compare(plan, on_event=step)
    result["compare"] = as_json(plan, standings) | {"not_installed": absent, "threads": count}
    finish(result, report, json=json)
    if present and all(standing.failed for standing in standings if standing.name in present):
        console.error("nothing was compared: every system that was asked for failed")
        return FAILED
    for standing in standings:
        if standing.failed and standing.name not in present:  # moejax on a mesh that was asked for
            console.error(standing.failed)
            return FAILED
    return 0 if all(standing.right for standing in standings) else FAILED


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
