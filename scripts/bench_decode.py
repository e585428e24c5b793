"""Decoding and prefill beside transformers: `moejax bench compare` under the flags that docs/performance.md names.

    python scripts/bench_decode.py --model 186m --batch-size 1,8,16 --rounds 5

Needs the `test` extra (torch, transformers). Two comparisons: decoding, and the prefill of one long prompt.
"""

import argparse
import os
import sys

from moejax.cli.app import run

PEERS = {"generate": "transformers", "compiled": "transformers-compiled"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("186m", "742m"), default="186m")
    parser.add_argument("-b", "--batch-size", default="1,8,16", help="comma-separated")
    parser.add_argument("-p", "--input-len", default="128", help="prompt tokens before decoding is timed")
    parser.add_argument("-n", "--output-len", default="64", help="tokens generated per row")
    parser.add_argument("--prefill-len", type=int, default=512, help="tokens of the prefill race; 0 leaves it out")
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--peers", default="generate,compiled", help="generate, compiled, both, or nothing")
    parser.add_argument("--expert-backend", default="auto")
    parser.add_argument("--mesh", action="append", default=[], help="also time moejax on this mesh, repeatable")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    args = parser.parse_args()
    peers = ",".join((PEERS[name] if name in PEERS else name) for name in args.peers.split(",") if name) or "none"
    common = ["bench", "compare", "--random", args.model, "--peers", peers, "-r", args.rounds]
    common += ["--expert-backend", args.expert_backend, "--threads", args.threads]
    common += [word for mesh in args.mesh for word in ("--mesh", mesh)]
    status = run([*common, "-b", args.batch_size, "-p", args.input_len, "-n", args.output_len])
    if args.prefill_len and not status:
        status = run([*common, "-b", "1", "-p", str(args.prefill_len), "-n", "1"])
    sys.exit(status)


if __name__ == "__main__":
    main()
