"""A peer that behaves as its first argument says: what the protocol has to survive. Speaks it through the real worker.

python fake_peer.py right|wrong|wrong when ragged|scores once|short|noise|raises|dies|list
"""

import os
import sys

from moejax.bench.peers import Run, Runner, Served, Settings
from moejax.bench.worker import own_stdout, serve_lines


def right_tokens(prompts: list[list[int]], output_len: int) -> list[list[int]]:
    """What the fake reference takes for right: counting on from the last token of each prompt."""
    return [[prompt[-1] + place + 1 for place in range(output_len)] for prompt in prompts]


def load(settings: Settings) -> Runner:
    behaviour = sys.argv[1]
    if behaviour == "raises":
        raise RuntimeError("no such layer\nand more lines")
    print("a library prints this to stdout")
    asked: list[int] = []

    def run(prompts: list[list[int]], output_len: int) -> Run:
        if behaviour == "dies":
            print("segmentation fault, as it were", file=sys.stderr, flush=True)
            os._exit(3)
        tokens = right_tokens(prompts, output_len)
        if behaviour == "wrong":
            tokens[-1][-1] += 1
        if behaviour == "short":
            tokens[-1].pop()
        slow = 2.0 if behaviour == "right" else 1.0
        return Run(tokens=tokens, prefill_seconds=0.25 * slow, decode_seconds=0.5 * slow)

    def serve(prompts: list[list[int]], output_lens: list[int]) -> Served:
        pairs = zip(prompts, output_lens, strict=True)
        tokens = [right_tokens([prompt], length)[0] for prompt, length in pairs]
        if behaviour == "wrong when ragged":
            tokens[0][0] += 1
        return Served(tokens=tokens, seconds=4.0)

    def score(prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        if behaviour == "scores once" and len(asked) > 0:
            raise RuntimeError("asked twice about the same tokens")
        asked.append(len(tokens))
        wanted = [right_tokens([prompt], len(row))[0] for prompt, row in zip(prompts, tokens, strict=True)]
        return [
            [0.0 if one == right else 4.0 for one, right in zip(*pair, strict=True)]
            for pair in zip(tokens, wanted, strict=True)
        ]

    return Runner(run=run, how=f"fake, {settings.dtype}", serve=serve, serve_how="one by one", score=score)


if __name__ == "__main__":
    answers = own_stdout()
    if sys.argv[1] in ("noise", "list"):
        answers.write("Loading weights: 100%\n" if sys.argv[1] == "noise" else "[1, 2]\n")
        answers.flush()
    serve_lines(sys.stdin, answers, load)
