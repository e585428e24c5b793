"""What accelerators that are not here would be given to run: compiled down to their machine code, read, and counted.

    python -m scripts.compile_for --target h200 --mesh expert=4,tensor=2 -b 1,8
    python -m scripts.compile_for --target h200,b200 --layers 2 --program layer --tokens 1,8,64,4096 --dtype float32
    python -m scripts.compile_for --target v5e:2x4 --mesh expert=4,tensor=2 --program decode,prefill
    python -m scripts.compile_for --check                     # what `make compile-check` does

It needs no GPU and no driver, but the compilers: the extra `compile`, 220 MB (`compile-tpu` for TPUs, as much), in an
environment of its own. Nothing is run, so nothing here is a time. For each program: memory beside what the device has,
kernels and command buffers of a step, loops that the host drives, collectives beside the closed forms; for each of
moejax's kernels registers, spills, shared memory, products of tensor cores, widths of loads and bytes in flight. Tiles
of XLA's own products are its defaults, since choosing them takes a device to time them on.

`--check` compiles two layers of Mixtral 8x7B for each target whose compilers are here, compares with
docs/compiled_baseline.json and docs/compiled_baseline_tpu.json, and ends with 1 and a line per count that got worse.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moejax._sharding import MeshConfig
from moejax.compiling.cases import PROGRAM_NAMES, Case, ProgramName, case_of
from moejax.compiling.children import compile_all
from moejax.compiling.targets import TARGET_NAMES, Tpu, target
from moejax.compiling.tools import EXTRAS, Extra, missing
from moejax.families.table import named_config
from moejax.moe.split import dispatch_name, make_rules
from moejax.weights.dtypes import resolve_dtype
from scripts import compiled_baseline as baseline
from scripts import compiled_report as report

WORSE = 1  # exit code
DECODED, FED, SERVED = "1,8", "1", "16"


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles and prints; the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        asked: list[Extra] = [extra_of(name) for name in options.target or ()]
        for extra in dict.fromkeys(asked):
            if reason := missing(extra):
                raise ValueError(reason)
        return check(options) if options.check or options.update else show(options)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def show(options: argparse.Namespace) -> int:
    """Compiles what the options say."""
    if not options.target:
        raise ValueError(f"--target says what to compile for: {', '.join(TARGET_NAMES)}")
    found = []
    for facts in compile_all(list(cases_of(options))):
        found.append(facts)
        print("\n".join(report.lines(facts)) + "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def extra_of(name: str) -> Extra:
    """Which extra compiles for a target."""
    return "compile-tpu" if isinstance(target(name), Tpu) else "compile"


def check(options: argparse.Namespace) -> int:
    """Compiles the cases of the baselines, of the targets that were named or of all whose compilers are here, and
    compares or writes."""
    wanted = options.target or [*baseline.GPUS, *baseline.TPU_TOPOLOGIES]
    left_out = {extra: reason for extra in EXTRAS if (reason := missing(extra))}
    if len(left_out) == len(EXTRAS):
        raise ValueError("; ".join(left_out.values()))
    for extra, reason in left_out.items():
        if not options.target:
            print(f"left out: {extra}: {reason}", flush=True)
    results = [
        check_baseline(extra, chosen, options)
        for extra in EXTRAS
        if extra not in left_out
        and (chosen := [case for case in baseline.checked_cases(extra) if case.target in wanted])
    ]
    if not results:
        known = ", ".join((*baseline.GPUS, *baseline.TPU_TOPOLOGIES))
        raise ValueError(f"the baselines are of {known}, got --target {','.join(wanted)}")
    return max(results)


def check_baseline(extra: Extra, chosen: list[Case], options: argparse.Namespace) -> int:
    """The same of one baseline."""
    path: Path = options.baseline or baseline.PATHS[extra]
    before = baseline.read_baseline(path, extra) if path.exists() or not options.update else {}
    worse, better, now = list[str](), list[str](), dict[Case, dict[str, Any]]()
    for facts in compile_all(chosen):
        case = case_of(facts["case"])
        now[case] = facts
        compared = baseline.compare(before.get(case), facts)
        print(f"{case.title}: {len(compared.worse)} worse, {len(compared.better)} better", flush=True)
        worse += compared.worse
        better += compared.better
    print("".join(f"better {line}\n" for line in better) + "".join(f"WORSE {line}\n" for line in worse), end="")
    if options.update:
        kept = before | now
        baseline.write_baseline(path, (kept[case] for case in baseline.checked_cases(extra) if case in kept), extra)
        print(f"{path} written: {len(now)} cases anew")
        return 0
    print(f"{len(now)} cases: {f'{len(worse)} counts got worse' if worse else 'none worse than the baseline'}")
    return WORSE if worse else 0


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """The programs that the options ask for.

    Raises:
        ValueError: for a model, mesh or dtype that is not known.
    """
    config = named_config(options.model)
    layers = config.num_layers if options.layers is None else options.layers
    if not 1 <= layers <= config.num_layers:
        raise ValueError(f"--layers is from 1 to the {config.num_layers} of {options.model}, got {layers}")
    if not 1 <= options.input_len <= options.max_seq_len:
        raise ValueError(f"--input-len is from 1 to --max-seq-len {options.max_seq_len}, got {options.input_len}")
    batches: dict[ProgramName, list[int]] = {
        "decode": options.batch_size,
        "prefill": numbers(FED),
        "serve-step": numbers(SERVED),
        "serve-feed": numbers(SERVED),
        "layer": options.tokens,
    }
    base = Case(
        target="",
        program="decode",
        model=options.model,
        layers=layers,
        mesh=str(MeshConfig.parse(options.mesh)),
        dispatch=options.dispatch,
        backend=options.expert_backend,
        dtype=resolve_dtype(options.dtype, auto="bfloat16"),
        batch=1,
        width=1,
        positions=options.max_seq_len,
        micro_batches=options.micro_batches,
    )
    widths = {"prefill": options.input_len, "serve-feed": 128}
    parts = make_rules(config, MeshConfig.parse(options.mesh), dispatch_name(options.dispatch)).parts("batch")
    for name in options.target:
        for program in options.program:
            sizes = {-(-batch // parts) * parts for batch in batches[program]}  # what divides over the mesh
            for batch in sorted(sizes):
                yield dataclasses.replace(base, target=name, program=program, batch=batch, width=widths.get(program, 1))


def numbers(text: str) -> list[int]:
    """Positive whole numbers of a text like `1,8`."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"expected positive numbers, got {text!r}")
    return found


def words(text: str) -> list[str]:
    """Words of a text like `h200,b200`."""
    return [part.strip() for part in text.split(",")]


def programs(text: str) -> list[str]:
    """Programs of a text like `decode,prefill`."""
    found = words(text)
    if unknown := [one for one in found if one not in PROGRAM_NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PROGRAM_NAMES)}")
    return found


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compile_for", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", type=words, help=f"what to compile for, one or several of {', '.join(TARGET_NAMES)}"
    )
    parser.add_argument("--model", default="mixtral-8x7b", help="(%(default)s)")
    parser.add_argument("--layers", type=int, help="fewer than the model has, to be quick (all)")
    parser.add_argument("--mesh", default="data=1", help="devices, like expert=4,tensor=2 (one)")
    parser.add_argument("--dispatch", default="replicated", help="(%(default)s)")
    parser.add_argument("--expert-backend", default="auto", help="(%(default)s: what the target would take)")
    parser.add_argument("--dtype", default="bfloat16", help="(%(default)s)")
    parser.add_argument(
        "--program", type=programs, default=list(PROGRAM_NAMES), help=f"of {', '.join(PROGRAM_NAMES)} (all)"
    )
    parser.add_argument("-b", "--batch-size", type=numbers, default=DECODED, help="sequences of decode (%(default)s)")
    parser.add_argument(
        "-p", "--input-len", type=int, default=2048, help="tokens that one prefill call feeds (%(default)s)"
    )
    parser.add_argument("--max-seq-len", type=int, default=4096, help="positions of the cache (%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=1, help="into how many rows are divided (%(default)s)")
    parser.add_argument("--tokens", type=numbers, default="1,8,64,4096", help="of layer (%(default)s)")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    parser.add_argument("--check", action="store_true", help="compile the cases of the baseline and compare")
    parser.add_argument("--update", action="store_true", help="compile them and write the baseline")
    listed = " and ".join(map(str, baseline.PATHS.values()))
    parser.add_argument("--baseline", type=Path, help=f"of the targets that are named ({listed})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
