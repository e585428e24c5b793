"""Two or more checkouts of moejax against one another, in processes that take turns: what a change gains.

    git worktree add ../before HEAD~1
    python scripts/bench_checkouts.py --model 186m --rounds 4 ../before .

`moejax bench compare` with checkouts in place of systems: the same random bfloat16 weights and prompts in each, tokens
judged first. Medians, and how many times faster each is than the first one, round by round. Of decoding a step is
timed, of a prefill the first token, and with `--num-prompts` whole calls of so many ragged requests.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from moejax.bench.compare import compare
from moejax.bench.peers import Settings
from moejax.bench.random_folder import write_random_folder
from moejax.bench.standings import OURS, Measurement, SystemsPlan, as_json, measurements
from moejax.bench.works import Work, cross_product, ragged_requests
from moejax.families.table import named_config

RAGGED = (16, 256)  # tokens in and out


def main() -> None:
    args = parse_args()
    config = named_config(args.model)
    works = cross_product(args.batch_size, [args.input_len], [args.output_len])
    works += [Work(batch_size=1, input_len=length, output_len=1) for length in args.prefill_len]
    names = dict(zip([OURS, *map(str, args.checkouts[1:])], args.checkouts, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        write_random_folder(Path(folder), config, "bfloat16")
        settings = Settings(
            folder=folder,
            scratch=folder,
            dtype="bfloat16",
            threads=os.cpu_count() or 1,
            max_batch=max(args.batch_size),
            max_len=max(2 * RAGGED[1], *(work.input_len + work.output_len for work in works)),
        )
        plan = SystemsPlan(
            contenders={name: (OURS, settings) for name in names},
            works=works,
            requests=ragged_requests(args.num_prompts, RAGGED, RAGGED, config.vocab_size) if args.num_prompts else [],
            rounds=args.rounds,
            vocab_size=config.vocab_size,
            commands={name: worker_of(path) for name, path in names.items()},
        )
        standings = compare(plan, on_event=lambda text: print(text, file=sys.stderr, flush=True))
    for one in measurements(as_json(plan, standings)):
        print(line(one, names[one.contender]))
    if failed := [one.failed for one in standings if one.failed]:
        sys.exit("\n".join(failed))


def parse_args() -> argparse.Namespace:
    def whole(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="folders of sources; the first one is compared with")
    parser.add_argument("--model", default="186m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("-b", "--batch-size", type=whole, default=[1, 8, 16], help="comma-separated")
    parser.add_argument("-p", "--input-len", type=int, default=128)
    parser.add_argument("-n", "--output-len", type=int, default=32)
    parser.add_argument("--prefill-len", type=whole, default=[512], help="prompts that are timed by themselves")
    parser.add_argument("--num-prompts", type=int, default=0, help="ragged requests of 16-256 tokens, in and out")
    return parser.parse_args()


def worker_of(checkout: Path) -> list[str]:
    """The worker of that checkout; -P, for the folder that this runs in comes before PYTHONPATH otherwise."""
    paths = f"PYTHONPATH={checkout.resolve()}"
    return ["env", paths, sys.executable, "-P", "-m", "moejax.bench.worker", OURS]


def line(one: Measurement, checkout: Path) -> str:
    """What one checkout did of one part of the work."""
    seconds = statistics.median(one.samples["seconds"])
    if one.part == "throughput":
        work = f"{one.of['num_requests']} requests"
    else:
        work = f"{one.of['name']} {one.part}"
        seconds /= one.of["output_len"] - 1 if one.part == "decode" else 1
    faster = [1 / ratio for ratio in one.samples["ratios"]]
    return (
        f"{work:26s}{1e3 * seconds:9.2f} ms {one.samples['median_tokens_per_second']:9.1f} tok/s  faster by "
        f"{statistics.median(faster):.2f} ({min(faster):.2f} to {max(faster):.2f})  {one.tokens}  {checkout}"
    )


if __name__ == "__main__":
    main()
