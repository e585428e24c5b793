"""What a day on a GPU came to: predictions beside what was measured, the goals, every kernel, transformers beside.

    python -m scripts.gpu_page build/gpu_day            # prints it
    python -m scripts.gpu_page build/gpu_day --docs     # writes docs/gpu.md, of a run on a GPU

Reads kernels.json, latency.json and peer.json, which scripts/gpu_day.sh leaves in that folder; what is missing there is
said to have not run. Runs nothing.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from moejax.families.config import ModelConfig
from moejax.families.table import named_config
from moejax.planning.compare import compare_meshes
from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware, shipped_hardware
from moejax.planning.kernels import DeviceLoad, Shape
from moejax.planning.skew import skewed_routing

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
RIGHT = 0.25  # a prediction is right that is within this share of what was measured
SOFTWARE = ("moejax", "ideal")
Found = Mapping[str, Any]

# Milliseconds of one MoE layer of Mixtral 8x7B in bfloat16 on one H200, by tokens: the best of vLLM, SGLang and
# TensorRT-LLM as NVIDIA measured them (docs/predictions.md has the tables), which ours should reach.
GOALS: Mapping[int, float] = {1: 0.189, 8: 0.65, 64: 0.67, 4096: 3.6}
LAYERS = ("expert_ffn", "grouped layer")  # rows of kernels.json that are whole layers, the first for few tokens
BANDWIDTH_GOAL, PEER_GOAL = 0.75, 3.0  # of the copy bandwidth at batch 1, and times transformers' strongest form

INTRO = """\
# One day on a GPU

Made by `python -m scripts.gpu_page` of what `scripts/gpu_day.sh` measured, on one {device}, jax {jax}. A copy of this
device reads and writes {copy:.2f} TB/s, and a large product of bfloat16 matrices runs at {matrix:.0f} TFLOP/s.
"""


class Judged(NamedTuple):
    """One thing that was predicted by each software, and measured; in seconds. None: nothing predicts it."""

    what: str
    predicted: tuple[float | None, ...]
    measured: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mixtral-8x7b", help="which was run (%(default)s)")
    parser.add_argument("--docs", action="store_true", help="write docs/gpu.md")
    options = parser.parse_args(argv)
    found = {name: read(options.folder / f"{name}.json") for name in ("kernels", "latency", "peer")}
    kernels = found["kernels"]
    if kernels is None:
        print(f"error: {options.folder} has no kernels.json: run scripts/gpu_day.sh first", file=sys.stderr)
        return 2
    text = "\n".join(page(named_config(options.model), kernels, found["latency"], found["peer"]))
    if not options.docs:
        print(text)
        return 0
    if kernels["device"] == "cpu":
        print("error: this ran on a CPU, whose times say nothing of a GPU: docs/gpu.md is left alone", file=sys.stderr)
        return 2
    PAGE.write_text(text + "\n", encoding="utf-8")
    print(f"{PAGE} written")
    return 0


def read(path: Path) -> Any:
    """A file of the run; None where that part did not end."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() and path.stat().st_size else None


def page(config: ModelConfig, kernels: Found, latency: Found | None, peer: Found | None) -> Iterator[str]:
    """The page in lines."""
    rates, hardware = kernels["rates"], hardware_of(kernels["device"])
    yield INTRO.format(
        device=kernels["device"], jax=kernels["jax"], copy=rates["bytes"] / 1e12, matrix=rates["flops"] / 1e12
    )
    yield "## Predicted and measured\n"
    yield f"Right is within {RIGHT:.0%}. Times in milliseconds; a layer's are without its router.\n"
    if hardware is None:
        yield f"No hardware file is of the kind {kernels['device']!r}: nothing is predicted.\n"
    judged = [*layers(config, hardware, kernels), *whole(config, hardware, latency)]
    yield from table(("what", *(f"{name}'s" for name in SOFTWARE), "measured", "error", "right"), map(_judged, judged))
    yield "\n## Goals\n"
    yield from table(("what", "goal", "measured", "met"), goals(kernels, latency, peer))
    yield "\n## Whole model beside transformers\n"
    yield from beside(latency, peer)
    yield "\n## Every kernel\n"
    columns = ("kernel", "tokens", "ms", "GB", "GFLOP", "of copy rate", "of matrix rate", "XLA ms", "max error")
    yield from table(columns, map(partial(_kernel, rates), kernels["rows"]))


def hardware_of(kind: str) -> Hardware | None:
    """The hardware file of a device by what JAX calls it; None where there is none."""
    files = (load_hardware(name) for name in shipped_hardware())
    return next((one for one in files if kind.lower() in one.kinds), None)


def layers(config: ModelConfig, hardware: Hardware | None, kernels: Found) -> Iterator[Judged]:
    """Each MoE layer that was timed, the faster way where both were."""
    for tokens, seconds in layer_times(kernels).items():
        yield Judged(
            f"MoE layer, tokens: {tokens:,}",
            tuple(layer_seconds(config, hardware, name, tokens) for name in SOFTWARE),
            seconds,
        )


def layer_times(kernels: Found) -> dict[int, float]:
    """Seconds of a layer by tokens."""
    times: dict[int, float] = {}
    for row in kernels["rows"]:
        if row["kernel"] in LAYERS:
            times[row["tokens"]] = min(row["seconds"], times.get(row["tokens"], row["seconds"]))
    return dict(sorted(times.items()))


def layer_seconds(config: ModelConfig, hardware: Hardware | None, software: str, tokens: int) -> float | None:
    """The experts of one layer as `mesh compare --software` has them, tokens choosing evenly."""
    if hardware is None:
        return None
    routing, shape = (
        skewed_routing(config, "uniform"),
        Shape(experts=config.num_experts, inputs=config.embed_dim, width=config.expert_dim),
    )
    if (terms := hardware.kernels(software, "bfloat16")) is None:
        reading = routing.experts_read(1, tokens) * shape.elements * 2 / hardware.bandwidth
        flops = 2 * tokens * config.experts_per_token * shape.elements
        return max(reading, flops / hardware.matrix_rate["bfloat16"])
    experts = terms.experts_for(shape)
    load = DeviceLoad.of(tokens, config.experts_per_token, routing.busiest(1, tokens), tuple(experts.tiles))
    return float(experts.spent(hardware.device("bfloat16"), shape, load, 2).seconds)


def whole(config: ModelConfig, hardware: Hardware | None, latency: Found | None) -> Iterator[Judged]:
    """Steps and prefills of the whole model."""
    for row in (latency or {"latency": []})["latency"]:
        batch, length = row["batch_size"], row["input_len"]
        predicted = [phases(config, hardware, name, row) for name in SOFTWARE]
        what = f"batch {batch}, prompts of {length:,}"
        yield Judged(f"step, {what}", tuple(one and one[0] for one in predicted), step_seconds(row))
        yield Judged(
            f"prefill, {what}", tuple(one and one[1] for one in predicted), row["prefill"]["percentiles"]["50"]
        )


def phases(config: ModelConfig, hardware: Hardware | None, software: str, row: Found) -> tuple[float, float] | None:
    """Predicted seconds of a step and of the prefill; None where the model does not fit."""
    if hardware is None:
        return None
    context = row["input_len"] + row["output_len"] // 2
    (found,) = compare_meshes(
        config, 1, hardware, batch_size=row["batch_size"], input_len=row["input_len"], context=context,
        dispatch="auto", software=software,
    )  # fmt: skip
    return (found.decode.seconds, found.prefill.seconds) if found.decode and found.prefill else None


def step_seconds(row: Found) -> float:
    """Median seconds of one step: a prompt's first token is its prefill's."""
    return row["decode"]["percentiles"]["50"] / max(1, row["output_len"] - 1)


def goals(kernels: Found, latency: Found | None, peer: Found | None) -> Iterator[list[str]]:
    """Each goal, what was measured, and whether it was met."""
    times = layer_times(kernels)
    for tokens, goal in GOALS.items():
        got = times.get(tokens)
        yield [f"MoE layer, tokens: {tokens:,}, ms", f"{goal}", *_met(got and 1e3 * got, goal, most=True)]
    first = next(iter((latency or {"latency": []})["latency"]), None)
    yield [
        "whole model at batch 1, of the copy bandwidth", f"{BANDWIDTH_GOAL:.0%}",
        *_met(first and read_rate(first) / kernels["rates"]["bytes"], BANDWIDTH_GOAL, most=False, form="{:.0%}"),
    ]  # fmt: skip
    for batch, ratio in ratios(latency, peer).items():
        yield [
            f"whole model at batch {batch}, times transformers",
            f"{PEER_GOAL:g}",
            *_met(ratio, PEER_GOAL, most=False),
        ]


def read_rate(row: Found) -> float:
    """Bytes a second that a step read."""
    return row["counted"]["decode_step"]["bytes"] / step_seconds(row)


def ratios(latency: Found | None, peer: Found | None) -> dict[int, float]:
    """By how much a step is faster than the fastest form of transformers, by batch."""
    ours = {row["batch_size"]: step_seconds(row) for row in (latency or {"latency": []})["latency"]}
    best: dict[int, float] = {}
    for row in (peer or {"rows": []})["rows"]:
        if "step_seconds" in row:
            best[row["batch_size"]] = min(row["step_seconds"], best.get(row["batch_size"], row["step_seconds"]))
    return {batch: best[batch] / seconds for batch, seconds in ours.items() if batch in best}


def beside(latency: Found | None, peer: Found | None) -> Iterator[str]:
    """Steps and prefills of both."""
    if latency is None:
        yield "moejax's did not run.\n"
    if peer is None:
        yield "transformers' did not run.\n"
    rows = [
        ["moejax", str(row["batch_size"]), *map(_ms, (step_seconds(row), row["prefill"]["percentiles"]["50"])), ""]
        for row in (latency or {"latency": []})["latency"]
    ]
    for row in (peer or {"rows": []})["rows"]:
        times = [_ms(row.get(name)) for name in ("step_seconds", "prefill_seconds")]
        rows.append([f"transformers, {row['form']}", str(row["batch_size"]), *times, row.get("failed", "")])
    yield from table(("system", "batch", "step, ms", "prefill, ms", ""), rows)


def table(columns: Sequence[str], rows: Any) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _judged(one: Judged) -> list[str]:
    first = one.predicted[0]
    error = None if first is None else first / one.measured - 1
    said = ["", ""] if error is None else [f"{error:+.0%}", "yes" if abs(error) <= RIGHT else "NO"]
    return [one.what, *map(_ms, one.predicted), _ms(one.measured), *said]


def _kernel(rates: Found, row: Found) -> list[str]:
    shares = [f"{row[name] / row['seconds'] / rates[name]:.0%}" for name in ("bytes", "flops")]
    return [
        row["kernel"], f"{row['tokens']:,}", _ms(row["seconds"]),
        f"{row['bytes'] / 1e9:.3f}", f"{row['flops'] / 1e9:.1f}", *shares,
        _ms(row["xla_seconds"]), f"{row['error']:.1e}",
    ]  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"


def _met(got: float | None, goal: float, *, most: bool, form: str = "{:.3g}") -> list[str]:
    if got is None:
        return ["not run", ""]
    return [form.format(got), "yes" if (got <= goal if most else got >= goal) else "NO"]


if __name__ == "__main__":
    sys.exit(main())
