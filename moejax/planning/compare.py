"""Every split of a model over so many devices of one kind, predicted and ranked. Imports no JAX."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path

from moejax.families.config import ModelConfig
from moejax.moe.split import Split, make_rules, micro_batch_count
from moejax.planning.compiled_counts import AllCounts
from moejax.planning.costs import Setting, predict_decode, predict_prefill
from moejax.planning.efficiency import check_efficiency, with_efficiency
from moejax.planning.expert_load import ExpertLoad
from moejax.planning.footprint import footprint
from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware
from moejax.planning.measured_times import MeasuredTimes
from moejax.planning.models import expert_shares, model_config, stored_dtype
from moejax.planning.objectives import check_objective
from moejax.planning.question import USABLE
from moejax.planning.ranking import ranked
from moejax.planning.reasons import with_reasons
from moejax.planning.routing import RoutingModel
from moejax.planning.rows import NOT_BUILT, MeshRow
from moejax.planning.skew import UNIFORM, skewed_routing
from moejax.planning.software import SoftwareName, check_software, check_times, software_name
from moejax.planning.splits import EVERY_DISPATCH, splits
from moejax.planning.sweep import device_counts
from moejax.planning.targets import Targets
from moejax.planning.units import BYTES, amount
from moejax.planning.workload import Workload, default_lengths, whole
from moejax.runtime.buckets import MAX_SERVED_SEQUENCES
from moejax.weights.dtypes import resolve_dtype


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """What all rows of a comparison have in common.

    skew: the name that `routing` follows; None where it follows a recorded load.
    compiled: what a compiler made of splits, which is taken in place of the closed forms.
    """

    config: ModelConfig
    hardware: Hardware
    routing: RoutingModel
    skew: str | None = UNIFORM
    software: SoftwareName = "moejax"
    times: MeasuredTimes | None = None
    micro_batches: int = 1
    compiled: AllCounts = field(default_factory=dict)
    usable: float = USABLE

    @property
    def usable_bytes(self) -> int:
        return int(self.hardware.memory_bytes * self.usable)


def compare_meshes(
    model: str | Path | ModelConfig,
    devices: int | Sequence[int],
    hardware: str | Path | Hardware,
    *,
    batch_size: int | Sequence[int] = (1, 8, 32),
    input_len: int | None = None,
    context: int | None = None,
    dtype: str = "bfloat16",
    objective: str = "latency",
    dispatch: str = EVERY_DISPATCH,
    expert_load: ExpertLoad | str | Path | None = None,
    usable_fraction: float = USABLE,
    ttft: float | None = None,
    tpot: float | None = None,
    software: str = "moejax",
    skew: str = UNIFORM,
    times: str = "fitted",
    efficiency: float | str | None = None,
    micro_batches: int = 1,
    compiled: AllCounts | None = None,
) -> list[MeshRow]:
    """Predicts every split of a model over `devices` devices, the best first for each batch size.

    Args:
        model: a named configuration, the path of a config.json, a checkpoint, or a `ModelConfig`.
        devices: how many; one number, or several to compare.
        hardware: the name of a kind of device, the path of a TOML file, or a `Hardware`.
        batch_size: sequences that are decoded at a time; one, or several to compare for.
        input_len: tokens of each prompt.  context: of each sequence in the cache during the decode step. 512 and
            2,048 by default, or what the model has positions for.
        dtype: of weights, activations and cache; "auto" is a checkpoint's own.  usable_fraction: of a device's memory.
        objective: what decides the order: "latency" (of a decode step), "throughput" (of the largest batch that fits
            and that a server decodes at a time), "ttft" (seconds of the prefill) or "memory" (bytes on a device).
        dispatch: one of the dispatches, "auto" for the one that `moejax.load` would take, or "all".
        expert_load: how often each expert was chosen, as `moejax decode --save-expert-load` records it.
        ttft, tpot: targets in seconds: until the whole batch has its first token, and of a decode step. Rows that meet
            those given come first, by `objective`, then the others, the nearest first (`MeshRow.misses`).
        software: whose kernels and collectives: "moejax", "vllm", "trtllm", "sglang", or "ideal" for a roofline.
        skew: how evenly tokens choose: "uniform", "balanced", "power-law:1.01", "zipf:1.0" or "dirichlet:0.5", as
            docs/performance-model.md#loads defines them. Not with `expert_load`.
        times: "fitted", by the hardware file's terms, or "measured", by tables of the extra `silicon` where they can.
        efficiency: share of the bandwidth and matrix rate that a roofline reaches: 0.6 or "60%"; "0.8,0.5", of each; or
            a preset's name. None is what the hardware file says.  micro_batches: as `moejax.load` takes them.
        compiled: what `moejax.compiling.splits.compile_splits` found: their memory and launches are the compiler's.

    Returns:
        For each number of devices from the fewest, and each batch size in turn: the splits that can be used, those that
        cannot, with the reason, and what an exchange that is not built could bring. `MeshRow.best_for` says why.

    Raises:
        ValueError: for anything unknown, out of range, or that these devices or these times do not have.
    """
    plan = make_plan(model, hardware, expert_load, usable_fraction, software, skew, efficiency)
    goal, name = check_objective(objective), _checked_dtype(plan, model, dtype)
    check_efficiency(plan.hardware, plan.software, name, check_times(times), efficiency)
    plan = replace(plan, micro_batches=micro_batch_count(micro_batches), compiled=compiled or {})
    if check_times(times) == "measured":
        plan = replace(plan, times=MeasuredTimes.of(plan.hardware, plan.software, name, plan.routing))
    workloads = _workloads(plan.config, batch_size, input_len, context, name)
    return list(_rows(plan, device_counts(devices), workloads, dispatch, goal, Targets(ttft=ttft, tpot=tpot)))


def _rows(
    plan: ComparisonInputs,
    counts: Iterable[int],
    workloads: Sequence[Workload],
    dispatch: str,
    objective: str,
    targets: Targets,
) -> Iterator[MeshRow]:
    """The rows of each number of devices and each workload in turn, ranked, with reasons."""
    peak = _Peaks(plan)
    for count in counts:
        found = list(splits(plan.config, count, dispatch))
        for workload in workloads:
            rows = [peak.filled(predict_split(plan, split, workload, why)) for split, why in found]
            rows = [replace(row, targets=targets) for row in rows]
            yield from with_reasons(ranked(rows, objective))
            yield from _not_built(plan, rows, dispatch)


def _checked_dtype(plan: ComparisonInputs, model: str | Path | ModelConfig, dtype: str) -> str:
    """The dtype that is predicted, in which the devices compute and the software was measured."""
    name = resolve_dtype(dtype, auto="bfloat16" if isinstance(model, ModelConfig) else stored_dtype(model))
    check_dtype(plan.hardware, name)
    check_software(plan.hardware, plan.software, name)
    return name


def _workloads(
    config: ModelConfig, batch_size: int | Sequence[int], input_len: int | None, context: int | None, dtype: str
) -> list[Workload]:
    """One for each batch size."""
    sizes = [whole(one) for one in (batch_size if isinstance(batch_size, Sequence) else [batch_size])]
    if not sizes:
        raise ValueError("batch_size names no batch size; give one, or several as in 1,8,32")
    prompt, cached = default_lengths(config, whole(input_len), whole(context))
    workloads = [Workload(batch_size=size, input_len=prompt, context=cached, dtype=dtype) for size in sizes]
    workloads[0].check(config)
    return workloads


def make_plan(
    model: str | Path | ModelConfig,
    hardware: str | Path | Hardware,
    expert_load: ExpertLoad | str | Path | None = None,
    usable_fraction: float = USABLE,
    software: str = "moejax",
    skew: str = UNIFORM,
    efficiency: float | str | None = None,
) -> ComparisonInputs:
    """What `compare_meshes` predicts with, from the same arguments.

    Raises:
        ValueError: for an unknown model, hardware, software, skew or efficiency, the load of another model, or a
            fraction out of range.
    """
    if not isinstance(usable_fraction, Real) or isinstance(usable_fraction, bool) or not 0 < usable_fraction <= 1:
        raise ValueError(f"usable_fraction must be above 0 and at most 1, got {usable_fraction!r}")
    config = model if isinstance(model, ModelConfig) else model_config(model)
    kind = with_efficiency(hardware if isinstance(hardware, Hardware) else load_hardware(hardware), efficiency)
    routing, skew = skewed_routing(config, skew), skew.lower()
    if expert_load is not None:
        if skew != UNIFORM:
            raise ValueError(f"skew={skew} and an expert load both say how tokens choose; give one of them")
        routing = replace(routing, shares=expert_shares(expert_load, config))
    return ComparisonInputs(
        config=config,
        hardware=kind,
        routing=routing,
        skew=skew if expert_load is None else None,
        software=software_name(software),
        usable=float(usable_fraction),
    )


def check_dtype(hardware: Hardware, dtype: str) -> None:
    """Raises ValueError when devices of this kind do not compute in this dtype, naming those in which they do."""
    if dtype not in hardware.matrix_rate:
        others = [name for name in ("float16", "bfloat16", "float32") if name in hardware.matrix_rate]
        if not others:
            raise ValueError(f"hardware {hardware.name} ({hardware.title}) computes in no dtype that a model can have")
        raise ValueError(
            f"hardware {hardware.name} ({hardware.title}) does not compute in {dtype}; use dtype={others[0]}"
            + (f" or {' or '.join(others[1:])}" if others[1:] else "")
        )


def predict_split(plan: ComparisonInputs, split: Split, workload: Workload, why_not: str | None = None) -> MeshRow:
    """The row of one split; `why_not` where the model is known not to divide."""
    usable = plan.usable_bytes
    if why_not is not None:
        return MeshRow(split=split, workload=workload, why_not=why_not, usable_bytes=usable)
    counts = plan.compiled.get((split, workload))
    setting = replace(_setting(plan, split), compiled=counts)
    held = footprint(plan.config, setting.rules, workload)
    if counts is not None:
        held = replace(held, activations=counts.temporary)
    over = max(0, held.total - usable)
    if over:
        sizes = [amount(size, BYTES) for size in (held.total, usable, over)]
        why_not = f"does not fit: {sizes[0]} per device, {sizes[1]} usable, {sizes[2]} over"
    return MeshRow(
        split=split,
        workload=workload,
        why_not=why_not,
        footprint=held,
        decode=predict_decode(setting, workload),
        prefill=predict_prefill(setting, workload),
        over_bytes=over,
        usable_bytes=usable,
        load_imbalance=plan.routing.load_imbalance(setting.rules.parts("experts")),
        compiled_for=counts,
    )


def _setting(plan: ComparisonInputs, split: Split, *, ragged: bool = False) -> Setting:
    return Setting(
        config=plan.config,
        rules=make_rules(plan.config, split.mesh, split.dispatch),
        dispatch=split.dispatch,
        hardware=plan.hardware,
        routing=plan.routing,
        software=plan.software,
        times=plan.times,
        micro_batches=plan.micro_batches,
        ragged=ragged,
    )


class _Peaks:
    """The largest batch that fits each split, and its tokens per second: the same for every batch size compared."""

    def __init__(self, plan: ComparisonInputs) -> None:
        self._plan = plan
        self._found: dict[Split, tuple[int, float]] = {}

    def filled(self, row: MeshRow) -> MeshRow:
        if row.footprint is None:
            return row
        if row.split not in self._found:
            setting = _setting(self._plan, row.split)
            largest = largest_batch(self._plan, setting, row.workload)
            at_peak = replace(row.workload, batch_size=max(1, largest))
            seconds = predict_decode(setting, at_peak).seconds if largest else float("inf")
            self._found[row.split] = largest, largest / seconds
        largest, tokens_per_second = self._found[row.split]
        return replace(row, largest_batch=largest, peak_tokens_per_second=tokens_per_second)


def largest_batch(plan: ComparisonInputs, setting: Setting, workload: Workload) -> int:
    """The most sequences that fit, a power of two since batches are padded to one, as far as a server decodes so many
    at a time; 0 where not even one fits."""
    largest, size = 0, 1
    while size <= MAX_SERVED_SEQUENCES:
        held = footprint(plan.config, setting.rules, replace(workload, batch_size=size))
        if held.total > plan.usable_bytes:
            break
        largest, size = size, 2 * size
    return largest


def _not_built(plan: ComparisonInputs, rows: Iterable[MeshRow], dispatch: str) -> list[MeshRow]:
    """A row for an ideal ragged exchange, on the usable mesh with most devices along expert: what one could bring."""
    if dispatch != EVERY_DISPATCH:
        return []
    apart = [row for row in rows if row.fits and row.split.mesh.expert > 1 and row.split.dispatch == "all_to_all"]
    if not apart:
        return []
    row = max(apart, key=lambda row: row.split.mesh.expert)
    setting = _setting(plan, row.split, ragged=True)
    decode, prefill = predict_decode(setting, row.workload), predict_prefill(setting, row.workload)
    return [replace(row, why_not=NOT_BUILT, built=False, decode=decode, prefill=prefill, peak_tokens_per_second=0.0)]
