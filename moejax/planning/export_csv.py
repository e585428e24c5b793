"""Rows of a comparison as CSV: a line for each split, units in the header. Imports no JAX."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moejax.planning.question import Question
from moejax.planning.rows import MeshRow, Phase

Cell = Callable[[MeshRow], Any]


def _phase(name: str, field: str) -> Cell:
    def cell(row: MeshRow) -> Any:
        phase: Phase | None = getattr(row, name)
        return None if phase is None else getattr(phase, field)

    return cell


def _held(field: str) -> Cell:
    return lambda row: None if row.footprint is None else getattr(row.footprint, field)


# The name of a column, and its unit in brackets where it has one -> what it holds; None is an empty cell.
COLUMNS: Mapping[str, Cell] = {
    "devices": lambda row: row.devices,
    "data": lambda row: row.split.mesh.data,
    "expert": lambda row: row.split.mesh.expert,
    "tensor": lambda row: row.split.mesh.tensor,
    "dispatch": lambda row: row.dispatch,
    "batch_size": lambda row: row.batch_size,
    "input_len [tokens]": lambda row: row.workload.input_len,
    "context [tokens]": lambda row: row.workload.context,
    "dtype": lambda row: row.workload.dtype,
    "usable": lambda row: _word(row.fits and row.built),
    "why_not": lambda row: row.why_not,
    "meets_targets": lambda row: None if row.meets_targets is None else _word(row.meets_targets),
    "best_for": lambda row: " ".join(row.best_for) or None,
    "weights [bytes/device]": _held("weights"),
    "kv [bytes/device]": _held("kv"),
    "activations [bytes/device]": _held("activations"),
    "memory [bytes/device]": _held("total"),
    "step [s]": _phase("decode", "seconds"),
    "step_weights [s]": _phase("decode", "weights_seconds"),
    "step_kv [s]": _phase("decode", "kv_seconds"),
    "step_compute_beyond_reading [s]": _phase("decode", "exposed_compute_seconds"),
    "step_latency [s]": _phase("decode", "latency_seconds"),
    "step_exchange [s]": _phase("decode", "bandwidth_seconds"),
    "step_overhead [s]": _phase("decode", "overhead_seconds"),
    "prefill [s]": _phase("prefill", "seconds"),
    "experts_read [experts/layer]": _phase("decode", "experts_read"),
    "imbalance_step": _phase("decode", "imbalance"),
    "imbalance_prefill": _phase("prefill", "imbalance"),
    "speed [tokens/s]": lambda row: row.tokens_per_second_total or None,
    "speed_per_request [tokens/s]": lambda row: row.tokens_per_second_per_request or None,
    "speed_per_device [tokens/s]": lambda row: row.tokens_per_second_per_device or None,
    "largest_batch": lambda row: row.largest_batch,
    "peak_speed [tokens/s]": lambda row: row.peak_tokens_per_second or None,
    "ttft_target [s]": lambda row: row.targets.ttft,
    "tpot_target [s]": lambda row: row.targets.tpot,
}
# Behind them, the same in every line: fields of `Question`, so that lines of several files can be put together.
ASKED = ("model", "hardware", "software", "times", "micro_batches", "skew", "expert_load", "efficiency", "objective")
ASKED += ("usable_fraction",)


def comparison_csv(rows: Sequence[MeshRow], question: Question) -> str:
    """A header, and a line for each row in the order of the table; numbers as JSON has them, empty what does not exist.

    As RFC 4180 has it, but for lines that end as files here do.
    """
    text, asked = io.StringIO(), [question.values[name] for name in ASKED]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *ASKED])
    writer.writerows([*(cell(row) for cell in COLUMNS.values()), *asked] for row in rows)
    return text.getvalue()


def _word(value: bool) -> str:
    return "true" if value else "false"
