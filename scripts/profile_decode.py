"""Where a decode step and a prefill on the CPU kernels spend their time: the tables of docs/performance.md.

    python scripts/profile_decode.py --model 186m --batch-size 1,8,16

Random bfloat16 weights. `jax.profiler` times every operation that XLA starts while a compiled program runs; they are
added up by what they are for. `between` is the rest: XLA's own work around its operations. Tracing makes all of it a
little slower, so the first column is the time without it, and the last ones are shares of the time with it. `faults`
are the pages that a step touches first: near 0 where buffers are reused.
"""

import argparse
import re
import resource
import statistics
import tempfile
from pathlib import Path

import jax
from jax.profiler import ProfileData

import moejax
from moejax.bench.works import Work
from moejax.cli.startup import prepare_jax
from moejax.families.table import RANDOM

PARTS = ("experts", "products", "head", "attend", "rotate", "norm", "route", "XLA", "between")
ROUNDS = 3
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_KERNEL = re.compile(r'custom_call_target="moejax_(\w+?)_[0-9a-f]{16}"')
# Operations that contain others: their time is that of what they run.
_CONTAINERS = re.compile(r"(?:while|call|conditional)[.\d]*$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="186m")
    parser.add_argument("-b", "--batch-size", default="1,8,16", help="comma-separated")
    parser.add_argument("-p", "--input-len", type=int, default=128)
    parser.add_argument("-n", "--output-len", type=int, default=33)
    parser.add_argument("--prefill-len", type=int, default=512, help="tokens of the prompt that is profiled alone")
    args = parser.parse_args()
    prepare_jax(quiet=True)
    model = moejax.load(f"{RANDOM}{args.model}", dtype="bfloat16", expert_backend="native", max_seq_len=4096)
    print(
        f"{'':16s}{'ms':>8s}{'faults':>8s}"
        + "".join(f"{part:>10s}" for part in PARTS)
        + "   % of the time with tracing"
    )
    for batch in map(int, args.batch_size.split(",")):
        work = Work(batch_size=batch, input_len=args.input_len, output_len=args.output_len)
        report(model, work, "generate", f"step, batch {batch}", args.output_len - 1)
    if args.prefill_len:
        report(model, Work(batch_size=1, input_len=args.prefill_len, output_len=1), "extend", "prefill", 1)


def report(model: moejax.Model, work: Work, kind: str, title: str, steps: int) -> None:
    """Prints the line of one work, whose program is the newest one of `kind`."""
    prompts = work.prompts(model.config.vocab_size)

    def run(tokens: int = work.output_len) -> float:
        (stats, *_) = [r.stats for r in moejax.decode(model, prompts, max_tokens=tokens, ignore_eos=True)]
        return stats.decode_seconds if kind == "generate" else stats.prefill_seconds

    def faults(tokens: int) -> int:
        run(tokens)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run(tokens)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # Of a step, what more of them touch; of a prefill, the call.
    touched = statistics.median(faults(work.output_len) - (faults(2) if steps > 1 else 0) for _ in range(ROUNDS))
    touched /= max(1, steps - 1)
    untraced = statistics.median(run() for _ in range(ROUNDS))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            traced = run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        profile = ProfileData.from_file(str(trace))
    programs = {key: program for key, program in model.programs.by_key().items() if isinstance(key, tuple)}
    program = [program for key, program in programs.items() if key[0] == kind][-1]
    parts = parts_of(program.as_text() or "")
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for event in (event for plane in profile.planes for line in plane.lines for event in line.events):
        if (
            event.name in parts
            and not _CONTAINERS.match(event.name)
            and dict(event.stats)["hlo_module"] == f"jit_{kind}"
        ):
            seconds[parts[event.name]] += event.duration_ns / 1e9
    seconds["between"] = traced - sum(seconds.values())
    cells = "".join(f"{100 * seconds[part] / traced:10.1f}" for part in PARTS)
    print(f"{title:16s}{1e3 * untraced / steps:8.2f}{touched:8.1f}{cells}", flush=True)


def parts_of(text: str) -> dict[str, str]:
    """For each operation of a compiled program, which of `PARTS` it belongs to."""
    parts = {}
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            kernel = _KERNEL.search(line)
            part = "XLA" if kernel is None else kernel[1]
            parts[found[1]] = part if part != "linear" else "head" if "head" in line else "products"
    return parts


if __name__ == "__main__":
    main()
