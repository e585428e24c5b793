"""Whole steps and generations predicted as others measured or estimated them.

`python -m scripts.predicted_steps` writes docs/predictions/measured.json, what `--times measured` predicts for the
configurations of docs/predictions/aiconfigurator.json; it needs the extra `silicon`, nothing else here does.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

from moejax.planning import silicon
from moejax.planning.calls import ProgramCall, decode_call, prefill_calls
from moejax.planning.compare import make_plan
from moejax.planning.costs import Setting, expert_layer, predict_decode, predict_prefill
from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import SHIPPED
from moejax.planning.kernels import Shape
from moejax.planning.measured_times import MeasuredTimes
from moejax.planning.rows import Phase
from moejax.planning.workload import Workload
from scripts.layer_exchanges import hardware_file, split_rules
from scripts.measured_layers import MIXTRAL, MODELS, LayerSplit
from scripts.predictions_data import DATA, read

MODEL = "mixtral-8x7b"
BF16 = "bfloat16"
INT8 = "float8_e4m3fn"  # of the planner's dtypes the one whose items are a byte, too
MEASURED = DATA / "measured.json"
AIC_LOAD = "power-law:1.2"  # AIConfigurator's
PHASES = ("decode", "prefill")
LENGTHS = {"decode": (5, 105), "prefill": (512, 512)}  # prompt and context: the mean of 200 tokens after a prompt of 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One configuration in milliseconds.  other: AIConfigurator's.  fitted, measured: ours, by the terms of the
    hardware files and by the tables.  experts: by how much fitted experts are longer than measured ones.
    """

    hardware: str
    software: str
    split: LayerSplit
    batch: int
    phase: str
    other: float
    fitted: float
    measured: float
    experts: float
    untuned: bool
    calls: int

    def error(self, times: str) -> float:
        return getattr(self, times) / self.other - 1


@cache
def _aic_setting(hardware: str, software: str, split: LayerSplit, measured: bool) -> Setting:
    return setting(hardware_file(hardware), software, split, skew=AIC_LOAD, measured=measured)


def setting(
    hardware: Hardware, software: str, split: LayerSplit, *, skew: str = "uniform", measured: bool = False
) -> Setting:
    """Of Mixtral 8x7B in bfloat16; every device has all sequences."""
    plan = make_plan(MODEL, hardware, software=software, skew=skew)
    return Setting(
        config=plan.config,
        rules=split_rules(MIXTRAL, split, "replicated"),
        dispatch="replicated",
        hardware=plan.hardware,
        routing=plan.routing,
        software=plan.software,
        times=MeasuredTimes.of(plan.hardware, software, BF16, plan.routing) if measured else None,
    )


def with_int8(hardware: Hardware) -> Hardware:
    """The same where weights of one byte are multiplied by the kernels of bfloat16 at its rates."""
    software = {
        name: replace(one, kernels={**one.kernels, INT8: one.kernels[BF16]}) for name, one in hardware.software.items()
    }
    rates = {**hardware.matrix_rate, INT8: hardware.matrix_rate[BF16]}
    return replace(hardware, software=software, matrix_rate=rates)


class Generation(NamedTuple):
    """Seconds of a prefill, of a step after it, the mean, and of both together."""

    prefill: float
    step: float
    total: float


def generation(given: Setting, batch: int, input_len: int, output_len: int, weights: str = BF16) -> Generation:
    """A whole batch from its prompts to its last tokens; steps at a few contexts, in which they are linear.

    weights: "bfloat16" or "int8".
    """
    first, last = input_len + 1, input_len + output_len - 1
    contexts = sorted({first, (first + last) // 2, last})
    work = [Workload(batch_size=batch, input_len=input_len, context=context) for context in contexts]
    predict = {BF16: _seconds, "int8": _seconds_int8}[weights]
    prefill = predict(predict_prefill, given, work[0])
    step = sum(predict(predict_decode, given, one) for one in work) / len(work)
    return Generation(prefill, step, prefill + (output_len - 1) * step)


Predict = Callable[[Setting, Workload], Phase]


def _seconds(predict: Predict, given: Setting, work: Workload) -> float:
    return predict(given, work).seconds


def _seconds_int8(predict: Predict, given: Setting, work: Workload) -> float:
    """Where weights have one byte; the cache, and what is exchanged, have two as ever."""
    usual = predict(given, work)
    halved = predict(replace(given, hardware=with_int8(given.hardware)), replace(work, dtype=INT8))
    return halved.seconds - _of_activations(halved) + _of_activations(usual)


def _of_activations(phase: Phase) -> float:
    return phase.kv_seconds + phase.latency_seconds + phase.bandwidth_seconds


def generation_rate(published: dict[str, Any], software: str, weights: str, devices: int) -> float:
    """Tokens per second of a whole generation, its prompt included, as gpt-fast counts them."""
    given = setting(hardware_file(published["hardware"]), software, LayerSplit(tensor=devices))
    batch, length = published["batch"], published["output_len"]
    return batch * length / generation(given, batch, published["input_len"], length, weights).total


def decode_rate(published: dict[str, Any], software: str) -> float:
    """Tokens per second of the steps alone."""
    given = setting(hardware_file(published["hardware"]), software, LayerSplit(tensor=published["devices"]))
    lengths = (published["input_len"], published["output_len"])
    return published["batch"] / generation(given, published["batch"], *lengths, published["weights"]).step


def whole_batch(published: dict[str, Any], batch: int, software: str = "vllm") -> Generation:
    """As vLLM's benchmark of latency counts it."""
    given = setting(hardware_file(published["hardware"]), software, LayerSplit(tensor=published["devices"]))
    return generation(given, batch, published["input_len"], published["output_len"])


def configurations() -> list[dict[str, Any]]:
    return read("aiconfigurator")["rows"]


def phase_milliseconds(row: dict[str, Any], phase: str, *, measured: bool = False) -> float:
    """Of a decode step or a prefill, in one of AIConfigurator's configurations."""
    given = _row_setting(row, measured)
    predict = predict_decode if phase == "decode" else predict_prefill
    return predict(given, _workload(row, phase)).seconds * 1e3


def _row_setting(row: dict[str, Any], measured: bool = False) -> Setting:
    return _aic_setting(row["hardware"], row["software"], LayerSplit(row["tensor"], row["expert"]), measured)


def _workload(row: dict[str, Any], phase: str) -> Workload:
    input_len, context = LENGTHS[phase]
    return Workload(batch_size=row["batch"], input_len=input_len, context=context)


def _calls(given: Setting, work: Workload, phase: str) -> Iterable[ProgramCall]:
    return [decode_call(work, given.rules)] if phase == "decode" else prefill_calls(work, given.rules)


def experts_milliseconds(row: dict[str, Any], phase: str, *, measured: bool) -> float:
    """Of all layers' experts in such a step."""
    split, given = LayerSplit(row["tensor"], row["expert"]), _row_setting(row, measured)
    calls = _calls(given, _workload(row, phase), phase)
    seconds = sum(_experts_measured(given, split, call) if measured else _experts_fitted(given, call) for call in calls)
    return len(given.config.moe_layers) * seconds * 1e3


def _experts_fitted(given: Setting, call: ProgramCall) -> float:
    kernels = given.hardware.kernels(given.software, BF16)
    assert kernels is not None, "AIConfigurator and the hardware files have the same tables"
    return float(expert_layer(given, call, BF16, kernels).seconds)


def _experts_measured(given: Setting, split: LayerSplit, call: ProgramCall) -> float:
    assert given.times is not None
    looked = given.times.expert_layer(
        inputs=given.config.embed_dim,
        width=given.config.expert_dim,
        chosen=given.config.experts_per_token,
        experts=given.config.num_experts,
        tensor=split.tensor,
        parts=split.expert,
        tokens=call.group_tokens(given.rules),
    )
    assert looked is not None, "AIConfigurator estimates only what the tables have"
    return looked.seconds


@lru_cache(maxsize=1)
def estimates() -> list[Estimate]:
    """Every configuration, both phases."""
    measured = read("measured")["rows"]
    return [
        Estimate(
            hardware=row["hardware"],
            software=row["software"],
            split=LayerSplit(row["tensor"], row["expert"]),
            batch=row["batch"],
            phase=phase,
            other=row[f"{phase}_ms"],
            fitted=phase_milliseconds(row, phase),
            measured=table[phase],
            experts=experts_milliseconds(row, phase, measured=False) - table[f"{phase}_experts"],
            untuned=_untuned(row),
            calls=sum(1 for _ in _calls(_row_setting(row), _workload(row, phase), phase)),
        )
        for row, table in zip(configurations(), measured, strict=True)
        for phase in PHASES
    ]


def _untuned(row: dict[str, Any]) -> bool:
    kernels = hardware_file(row["hardware"]).kernels(row["software"], BF16)
    assert kernels is not None
    config = MODELS[MIXTRAL]
    shape = Shape(
        experts=config.num_experts // row["expert"],
        inputs=config.embed_dim,
        width=config.expert_dim // row["tensor"],
    )
    return kernels.experts_for(shape) is kernels.untuned


def digests(names: Iterable[str]) -> dict[str, str]:
    """Of hardware files, so that what was predicted with others is found."""
    return {name: hashlib.sha256((SHIPPED / f"{name}.toml").read_bytes()).hexdigest()[:16] for name in sorted(names)}


def main() -> None:
    rows = []
    for row in configurations():
        found: dict[str, float] = {}
        for phase in PHASES:
            found[phase] = round(phase_milliseconds(row, phase, measured=True), 4)
            found[f"{phase}_experts"] = round(experts_milliseconds(row, phase, measured=True), 4)
        rows.append(json.dumps(found))
    used = {row["hardware"] for row in configurations()}
    head = {"source": f"{silicon.PACKAGE} {silicon.installed()}", "hardware": digests(used)}
    lines = ",\n".join(rows)
    MEASURED.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"wrote {MEASURED}")


if __name__ == "__main__":
    main()
