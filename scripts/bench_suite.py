"""Runs every benchmark of docs/benchmarks.md, one after the other, with the time each took: `make bench`.

    python -m scripts.bench_suite build/bench

Each part has a report in a folder of its own, made of its --json; then come the page and the poster of all, the goals,
and whether this machine's ratios are within the spread of those in docs/benchmarks. Planned for less than 20 minutes on
two cores.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from scripts.bench_goals import goals_table, spread_table
from scripts.bench_page import read_reports, write
from scripts.bench_report import DOCS, sections, write_report

# A system loads once and compiles once per shape in each part, which takes most of the time. The larger model generates
# fewer tokens in fewer rounds, so that both fit.
PEERS = "--peers transformers,transformers-compiled,llama.cpp"
COMPARE = f"compare {PEERS} -b 1,8,16 -p 32 --prefill-len 512 --num-prompts 64"
LATENCY = "latency -p 32 --prefill-len 512 -r 5"
PROMPT = "compare --peers transformers -b 1 -p 4000 -n 1"
STRATEGIES = "compare --peers none -r 0 -b 1,16 --simulate-devices 4"
PARTS = {
    "1_compare_186m": f"{COMPARE} --random 186m -n 32 -r 3",
    "2_compare_742m": f"{COMPARE} --random 742m -n 24 -r 4",
    "3_latency_186m": f"{LATENCY} --random 186m -b 1,8,16 -n 32",
    "4_latency_742m": f"{LATENCY} --random 742m -b 1,8 -n 24",
    "5_strategies_742m": f"{STRATEGIES} --random 742m --mesh all",
    "6_gather_742m": f"{STRATEGIES} --random 742m --mesh expert=4 --mesh expert=2,tensor=2 --dispatch gather",
    "7_prompt_186m": f"{PROMPT} --random 186m -r 3",
    "8_prompt_742m": f"{PROMPT} --random 742m -r 2",
}
WRONG_TOKENS = 1  # exit code of a comparison that ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the reports are written")
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), default=sorted(PARTS), help="these parts alone")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    began, wrong = time.monotonic(), False
    for place, name in enumerate(args.only, 1):
        wrong |= run_part(f"part {place} of {len(args.only)}", PARTS[name], args.folder / name)
        print(f"{time.monotonic() - began:.0f} s so far\n", flush=True)
    here = read_reports(args.folder)
    write(here, args.folder, "")
    print(f"\n{goals_table(list(here.values()))}\n{spread_table(read_reports(DOCS / 'benchmarks'), here)}")
    sys.exit(WRONG_TOKENS if wrong else 0)


def run_part(title: str, arguments: str, folder: Path) -> bool:
    """Runs one command of `moejax bench`, prints its tables and writes its report; whether some tokens were wrong."""
    command = ["bench", *shlex.split(arguments), "--json"]
    print(f"{title}: {shlex.join(['moejax', *command])}", flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "moejax", *command], check=False, stdout=subprocess.PIPE, text=True)
    status = done.returncode
    if status not in (0, WRONG_TOKENS) or not done.stdout:
        sys.exit(f"{title} failed with exit code {status}")
    result = json.loads(done.stdout)
    print("\n".join(sections(result, level=2)), flush=True)
    write_report(folder, result)
    print(f"{title} took {time.monotonic() - began:.0f} s, ", end="")
    return status == WRONG_TOKENS


if __name__ == "__main__":
    main()
