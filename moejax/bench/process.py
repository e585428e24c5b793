"""A peer in a process of its own, from the side of whoever started it. Imports no JAX."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moejax.bench.peers import Run, Served, Settings

ENDING_SECONDS = 10


class PeerFailed(ValueError):
    """A peer answered with an error, answered nonsense, or ended; the message says which peer, in one line."""


def worker_command(peer: str) -> list[str]:
    """The command of the worker for a row of `PEERS`."""
    return [sys.executable, "-m", "moejax.bench.worker", peer]


class PeerProcess:
    """One running peer. Use it as a context: at the end of the block the process is ended.

    name: for messages.  how, serve_how, serves: what `load` answered.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Starts `command`, as `worker_command` gives it, with `env` added to the environment."""
        self.name, self.how, self.serve_how, self.serves = name, "", "", False
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process: by the end of its input, or else by force."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended by itself
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def load(self, settings: Settings) -> None:
        """Loads the weights.

        Raises:
            PeerFailed: when it cannot.
        """
        answer = self._ask({"op": "load", "settings": asdict(settings)}, ("how", "serve_how", "serves"))
        self.how, self.serve_how, self.serves = answer["how"], answer["serve_how"], answer["serves"]

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        """Continues prompts of equal length greedily.

        Raises:
            PeerFailed: also when it answers with fewer or more tokens than it was asked for.
        """
        request = {"op": "run", "prompts": prompts, "output_len": output_len}
        run = Run(**self._ask(request, ("tokens", "prefill_seconds", "decode_seconds")))
        self._check_tokens(run.tokens, [output_len] * len(prompts))
        return run

    def serve(self, prompts: list[list[int]], output_lens: list[int]) -> Served:
        """Continues ragged prompts greedily.

        Raises:
            PeerFailed: as `run`.
        """
        request = {"op": "serve", "prompts": prompts, "output_lens": output_lens}
        served = Served(**self._ask(request, ("tokens", "seconds")))
        self._check_tokens(served.tokens, output_lens)
        return served

    def score(self, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        """For each token of each row, how far it is from the most probable one; see `moejax.bench.peers.moejax_peer`.

        Raises:
            PeerFailed: as `run`.
        """
        return self._ask({"op": "score", "prompts": prompts, "tokens": tokens}, ("gaps",))["gaps"]

    def _check_tokens(self, tokens: list[list[int]], wanted: list[int]) -> None:
        if (got := [len(row) for row in tokens]) != wanted:
            raise PeerFailed(f"{self.name} answered with {got} tokens per row; expected {wanted}")

    def _ask(self, request: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerFailed(f"{self.name} {self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise PeerFailed(f"{self.name} answered {line.strip()[:80]!r}; expected a JSON object") from error
        if not isinstance(answer, dict) or "error" in answer:
            reason = answer["error"] if isinstance(answer, dict) else line.strip()[:80]
            raise PeerFailed(f"{self.name} cannot {request['op']}: {reason}")
        if set(answer) != set(keys):
            raise PeerFailed(f"{self.name} answered {sorted(answer)} to {request['op']}; expected {sorted(keys)}")
        return answer

    def _last_words(self) -> str:
        """How it ended: its exit code and the last line that it wrote to stderr."""
        try:
            how = f"ended (exit code {self._process.wait(ENDING_SECONDS)}"
        except subprocess.TimeoutExpired:  # writing a core dump may take so long
            how = "answers no more (it closed its output and still runs"
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        return f"{how}{f': {lines[-1][:200]}' if lines else ''})"
