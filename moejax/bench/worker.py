"""The process of one peer: reads a JSON object per line, answers with one.

    python -m moejax.bench.worker llama.cpp

| request | answer |
|---|---|
| `{"op": "load", "settings": {...}}` | `{"how": ..., "serve_how": ...}` |
| `{"op": "run", "prompts": [[...]], "output_len": N}` | `{"tokens": [[...]], "prefill_seconds": S, ...}` |
| `{"op": "serve", "prompts": [[...]], "output_lens": [...]}` | `{"tokens": [[...]], "seconds": S}` |
| `{"op": "score", "prompts": [[...]], "tokens": [[...]]}` | `{"gaps": [[...]]}` |

A request that fails is answered by `{"error": "one line"}`. The process ends when its input does.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from moejax.bench.peers import Runner, Settings, load_peer


def main() -> None:
    """Serves one peer, by its name in `PEERS`, until the end of the input."""
    answers = own_stdout()
    serve_lines(sys.stdin, answers, lambda settings: load_peer(sys.argv[1], settings))


def own_stdout() -> IO[str]:
    """Standard output for answers alone: whatever a library prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve_lines(requests: IO[str], answers: IO[str], load: Callable[[Settings], Runner]) -> None:
    """Answers each line of `requests` by a line of `answers`."""
    loaded: list[Runner] = []
    for line in requests:
        try:
            answer = _answer(json.loads(line), loaded, load)
        except Exception as error:  # whatever a peer raises is the answer, and the parent's to report
            first = str(error).strip().partition("\n")[0]
            answer = {"error": f"{type(error).__name__}: {first}" if first else type(error).__name__}
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def _answer(request: dict[str, Any], loaded: list[Runner], load: Callable[[Settings], Runner]) -> dict[str, Any]:
    if request["op"] == "load":
        loaded[:] = [load(Settings(**request["settings"]))]
        return {"how": loaded[0].how, "serve_how": loaded[0].serve_how, "serves": loaded[0].serve is not None}
    if not loaded:
        raise ValueError(f"{request['op']} came before load")
    (runner,) = loaded
    if request["op"] == "run":
        return dataclasses.asdict(runner.run(request["prompts"], request["output_len"]))
    if request["op"] == "serve" and runner.serve is not None:
        return dataclasses.asdict(runner.serve(request["prompts"], request["output_lens"]))
    if request["op"] == "score" and runner.score is not None:
        return {"gaps": runner.score(request["prompts"], request["tokens"])}
    raise ValueError(f"it has no {request['op']}")


if __name__ == "__main__":
    main()
