"""Two or more checkouts of moejax against one another, in processes that take turns: what a change gains.

    git worktree add ../before HEAD~1
    python scripts/bench_checkouts.py --model 186m --rounds 4 ../before .

The same random bfloat16 weights in each. Medians, and how many times faster each is than the first one, round by round.
Of `decode`, a step is timed; of `prefill`, the first token; of `ragged:N:P:T`, whole calls of N requests of up to P
tokens, for up to T more.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from moejax.bench.random_folder import write_random_folder
from moejax.families.table import named_config

WORKS = ("decode:1:128:48", "decode:8:128:32", "decode:16:128:32", "prefill:1:512:1")
# What each checkout runs: only names that all of them have.
WORKER = """
import sys
import time
import numpy as np
import moejax
from moejax.cli.startup import prepare_jax

prepare_jax(quiet=True)
model = moejax.load(sys.argv[1], dtype="bfloat16", max_seq_len=2048)
print("ready", flush=True)
for line in sys.stdin:
    kind, batch, before, after = line.strip().split(":")
    shape = (int(batch), int(before))
    if kind == "ragged":
        rng = np.random.default_rng(shape)
        lengths = rng.permutation(np.linspace(4, shape[1], shape[0]).round().astype(int)).tolist()
        counts = rng.permutation(np.linspace(8, int(after), shape[0]).round().astype(int)).tolist()
        prompts = [rng.integers(3, model.config.vocab_size, length).tolist() for length in lengths]
        params = [moejax.SamplingParams(max_tokens=count, ignore_eos=True) for count in counts]
        compiled, began = model.programs.compile_seconds, time.perf_counter()
        moejax.decode(model, prompts, params)
        print(time.perf_counter() - began - (model.programs.compile_seconds - compiled), flush=True)
        continue
    prompts = np.random.default_rng(shape).integers(3, model.config.vocab_size, shape).tolist()
    stats = moejax.decode(model, prompts, max_tokens=int(after), ignore_eos=True)[0].stats
    print(stats.decode_seconds / (int(after) - 1) if kind == "decode" else stats.ttft_seconds, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="folders of sources; the first one is compared with")
    parser.add_argument("--model", default="186m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", action="append", help=f"kind:batch:input:output; by default {' '.join(WORKS)}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_random_folder(Path(folder), named_config(args.model), "bfloat16")
        workers = [start(path.resolve(), folder) for path in args.checkouts]
        for worker in workers:
            answer(worker)
        for work in args.work or WORKS:
            compare(work, args.checkouts, workers, args.rounds)
        for worker in workers:
            worker.communicate()


def start(checkout: Path, folder: str) -> subprocess.Popen[str]:
    """A process of that checkout with the model loaded, for works on its standard input."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", WORKER, folder]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)


def compare(work: str, checkouts: list[Path], workers: list[subprocess.Popen[str]], rounds: int) -> None:
    """Prints a line for each checkout, after a warm-up of all."""
    kind, batch, before, _ = work.split(":")
    seconds: list[list[float]] = [[] for _ in workers]
    for turn in range(rounds + 1):
        for worker, samples in zip(workers, seconds, strict=True):
            assert worker.stdin is not None
            worker.stdin.write(f"{work}\n")
            worker.stdin.flush()
            sample = float(answer(worker))
            if turn:
                samples.append(sample)
    for checkout, samples in zip(checkouts, seconds, strict=True):
        median = statistics.median(samples)
        tokens = int(batch) if kind == "decode" else int(batch) * int(before)  # those of ragged prompts are half
        ratios = sorted(first / one for first, one in zip(seconds[0], samples, strict=True))
        print(
            f"{work:18s}{1e3 * median:9.2f} ms {tokens / median:9.1f} tok/s  faster by {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})  {checkout}",
            flush=True,
        )


def answer(worker: subprocess.Popen[str]) -> str:
    """The next line of a process.

    Raises:
        SystemExit: when it ended instead; what it said of it is on standard error.
    """
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        sys.exit("a checkout's process ended before it answered")
    return line


if __name__ == "__main__":
    main()
