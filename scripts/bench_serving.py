"""Compares a server with `decode`: tokens per second of the same prompts, and what a new request does to the others.

    python scripts/bench_serving.py demo --dtype float32

Starts `moejax serve` on a free port of the loopback, and runs both in turn. Needs the extra `serve` and httpx.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

import moejax

SETTLE_SECONDS = 1.0


def main() -> None:
    arguments = parse()
    limit = arguments.input_len + max(arguments.output_len, 256) + 64
    model = moejax.load(arguments.checkpoint, dtype=arguments.dtype, max_seq_len=limit)
    rng = np.random.default_rng(0)

    def prompt(length: int) -> list[int]:
        return rng.integers(2, model.config.vocab_size, length).tolist()

    prompts = [prompt(arguments.input_len) for _ in range(arguments.batch_size)]
    flags = ["--dtype", arguments.dtype, "--max-seq-len", str(limit), "--max-batch", str(arguments.batch_size)]
    with serving(arguments.checkpoint, flags) as url:
        for temperature in (0.0, 1.0):
            asked = {"temperature": temperature, "seed": 1, "max_tokens": arguments.output_len, "ignore_eos": True}
            for some in (prompts, prompts[:1]):
                speed, ratio = compare(model, url, some, asked, arguments.repeats)
                print(
                    f"{len(some)} requests, temperature {temperature}: {speed:,.0f} tokens/s served, "
                    f"{ratio:.2f} x decode() (medians of {arguments.repeats})"
                )
        for length in (arguments.input_len, limit - 16):
            gap, with_prompts, firsts = asyncio.run(disturb(url, prompts, [prompt(length) for _ in range(5)]))
            print(
                f"{arguments.batch_size - 1} rows running, prompts of {length} tokens arrive: first token after "
                f"{1e3 * statistics.median(firsts):.0f} ms; longest wait of the others {1e3 * with_prompts:.0f} ms, "
                f"without them {1e3 * gap:.0f} ms"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", "-b", type=int, default=16)
    parser.add_argument("--input-len", "-p", type=int, default=32)
    parser.add_argument("--output-len", "-n", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


@contextmanager
def serving(checkpoint: str, flags: list[str]) -> Iterator[str]:
    """The URL of a server that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moejax", "serve", checkpoint, "--port", str(port), *flags]
    with subprocess.Popen(command) as process:
        try:
            while True:
                assert process.poll() is None, "the server did not start"
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1/completions"
        finally:
            process.terminate()


def compare(
    model: "moejax.Model", url: str, prompts: list[list[int]], asked: dict[str, Any], repeats: int
) -> tuple[float, float]:
    """Tokens per second that the server makes of these prompts, and as a multiple of what one `decode` makes."""
    speeds, ratios = [], []
    for _ in range(repeats + 1):  # the first is warm-up
        served = asyncio.run(serve_all(url, prompts, asked))
        began = time.perf_counter()
        moejax.decode(model, prompts, **asked)
        ratios.append((time.perf_counter() - began) / served)
        speeds.append(len(prompts) * asked["max_tokens"] / served)
    return statistics.median(speeds[1:]), statistics.median(ratios[1:])


async def serve_all(url: str, prompts: list[list[int]], asked: dict[str, Any]) -> float:
    """Seconds for all prompts, sent at once."""
    async with httpx.AsyncClient(timeout=600) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(client.post(url, json={"prompt": one, **asked}) for one in prompts))
        seconds = time.perf_counter() - began
    assert all(answer.status_code == 200 for answer in answers), answers
    return seconds


async def disturb(url: str, prompts: list[list[int]], new: list[list[int]]) -> tuple[float, float, list[float]]:
    """Longest time between two chunks of running streams, without and with new requests; their first tokens' times."""
    gaps: list[float] = []
    async with httpx.AsyncClient(timeout=600) as client:

        async def stream(prompt: list[int], asked: dict[str, Any], gaps: list[float]) -> float:
            began = last = time.perf_counter()
            first = 0.0
            body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, "stream": True, **asked}
            async with client.stream("POST", url, json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and "error" not in json.loads(line[6:]):
                        now = time.perf_counter()
                        if first:
                            gaps.append(now - last)
                        first = first or now - began
                        last = now
            return first

        async def keep_running(prompt: list[int]) -> None:
            while True:
                await stream(prompt, {"max_tokens": 256}, gaps)

        running = [asyncio.create_task(keep_running(prompt)) for prompt in prompts[:-1]]
        await asyncio.sleep(SETTLE_SECONDS)
        gaps.clear()
        await asyncio.sleep(SETTLE_SECONDS)
        without = max(gaps)
        gaps.clear()
        firsts = []
        for prompt in new:
            firsts.append(await stream(prompt, {"max_tokens": 8}, []))
            await asyncio.sleep(0.03)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return without, max(gaps), firsts


if __name__ == "__main__":
    main()
