"""Rows of a comparison as JSON values. Imports no JAX."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from math import inf
from shlex import join
from typing import Any

from moejax._sharding import MeshConfig
from moejax._sharding.collectives import Collective, wire_elements
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.planning.checks import CompiledCheck, Measured
from moejax.planning.crossovers import gather_crossovers
from moejax.planning.hardware import Hardware
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.question import Question
from moejax.planning.ranking import best
from moejax.planning.rows import MeshRow, Phase
from moejax.planning.serve_command import PLACEHOLDER, serve_command
from moejax.planning.software import basis
from moejax.planning.sweep import SweepAnswer, answer


def comparison_json(
    rows: Sequence[MeshRow],
    question: Question,
    fits_with: Sequence[str] = (),
    *,
    checkpoint: str = PLACEHOLDER,
) -> dict[str, Any]:
    """Everything that a comparison was asked with and found: sizes in bytes, times in seconds.

    Args:
        fits_with: flags of which each makes a model fit that does not.
        checkpoint: what the commands serve.
    """
    by_batch = {batch: [row for row in rows if row.batch_size == batch] for batch in _batches(rows)}
    hardware, software, work = question.hardware, question.software, rows[0].workload
    return {
        "model": question.model,
        "micro_batches": question.micro_batches,
        "asked": question.values | {"input_len": work.input_len, "context": work.context, "dtype": work.dtype},
        "hardware": _hardware_json(hardware),
        "software": {"name": software, "basis": basis(hardware, software, work.dtype, question.times)},
        "routing": {"skew": question.skew, "expert_load": question.expert_load},
        "rows": [row_json(row) for row in rows],
        "winners": {str(batch): winners(some) for batch, some in by_batch.items()},
        "targets": asdict(rows[0].targets),
        "meets_targets": any(row.meets_targets for row in rows) if rows[0].targets else None,
        "answers": {str(batch): _answer_json(answer(some), checkpoint) for batch, some in by_batch.items()},
        "answer": _answer_json(answer(rows), checkpoint),
        "gather_crossovers": [
            {
                "batch_size": one.workload.batch_size,
                "mesh": dict(one.mesh.shape),
                "phase": one.phase,
                "wins_below_link_bandwidth": "any" if one.bandwidth == inf else one.bandwidth,
            }
            for one in gather_crossovers(rows, hardware)
        ],
        "fits": any(row.fits for row in rows),
        "fits_with": list(fits_with),
    }


def _hardware_json(hardware: Hardware) -> dict[str, Any]:
    """Its figures; of what was measured on it, the names."""
    figures = asdict(replace(hardware, software={}, collectives={}))
    names = {name: one.title for name, one in hardware.software.items()}
    return figures | {"software": names, "collectives": sorted(hardware.collectives)}


def _batches(rows: Sequence[MeshRow]) -> list[int]:
    return list(dict.fromkeys(row.batch_size for row in rows))


def winners(rows: Sequence[MeshRow]) -> dict[str, dict[str, Any]]:
    """Picks from the rows of one batch size the best for each objective, and why it is among the splits of as many
    devices; none where nothing fits.
    """
    found = {objective: best((row for row in rows if objective in row.best_for), objective) for objective in OBJECTIVES}
    return {
        objective: {"split": row.label, "devices": row.devices, "reason": row.best_for[objective]}
        for objective, row in found.items()
        if row is not None
    }


def _answer_json(found: SweepAnswer, checkpoint: str) -> dict[str, Any]:
    """The rows that it names, each in short."""
    return {name: None if row is None else _short_json(row, checkpoint) for name, row in vars(found).items()}


def _short_json(row: MeshRow, checkpoint: str) -> dict[str, Any]:
    kept = "mesh dispatch label devices batch_size ttft_seconds tpot_seconds tokens_per_second_per_request "
    kept += "tokens_per_second_per_device misses"
    whole, words = row_json(row), serve_command(row, checkpoint)
    return {name: whole[name] for name in kept.split()} | {"command": None if words is None else join(words)}


def row_json(row: MeshRow) -> dict[str, Any]:
    """One row. Infinite and missing values are null."""
    mesh = row.split.mesh
    return {
        "mesh": dict(mesh.shape),
        "dispatch": row.dispatch,
        "label": row.label,
        "devices": row.devices,
        "batch_size": row.batch_size,
        "input_len": row.workload.input_len,
        "context": row.workload.context,
        "dtype": row.workload.dtype,
        "why_not": row.why_not,
        "built": row.built,
        "best_for": dict(row.best_for),
        "bytes_per_device": None if row.footprint is None else asdict(row.footprint) | {"total": row.footprint.total},
        "usable_bytes": row.usable_bytes,
        "over_bytes": row.over_bytes,
        "decode": None if row.decode is None else phase_json(row.decode, mesh),
        "prefill": None if row.prefill is None else phase_json(row.prefill, mesh),
        "load_imbalance": row.load_imbalance,
        "tokens_per_second_per_request": row.tokens_per_second_per_request or None,
        "tokens_per_second_total": row.tokens_per_second_total or None,
        "tokens_per_second_per_device": row.tokens_per_second_per_device or None,
        "ttft_seconds": row.ttft_seconds if row.fits else None,
        "tpot_seconds": row.tpot_seconds if row.fits else None,
        "meets_targets": row.meets_targets,
        "misses": row.misses if row.targets and row.fits else None,
        "largest_batch": row.largest_batch,
        "peak_tokens_per_second": row.peak_tokens_per_second or None,
        "compiled": None if row.compiled is None else _compiled_json(row.compiled, mesh),
        "measured": None if row.measured is None else _measured_json(row.measured),
        "compiled_for": None if row.compiled_for is None else asdict(row.compiled_for),
    }


def phase_json(phase: Phase, mesh: MeshConfig) -> dict[str, Any]:
    """One phase, equal collectives counted together."""
    values = {name: value for name, value in vars(phase).items() if name != "collectives"}
    return values | {"collectives": _counted(phase.collectives, mesh), "seconds": phase.seconds}


def _compiled_json(check: CompiledCheck, mesh: MeshConfig) -> dict[str, Any]:
    calls = {"decode": check.decode, "prefill": check.prefill}
    counted = {
        name: {"collectives": _counted(call.collectives, mesh), "predicted": _counted(call.predicted, mesh)}
        for name, call in calls.items()
    }
    return vars(check) | counted | {"equal": check.equal}


def _measured_json(measured: Measured) -> dict[str, Any]:
    errors = {"decode_error": measured.decode_error, "prefill_error": measured.prefill_error}
    return asdict(measured) | errors


def _counted(collectives: Iterable[Collective], mesh: MeshConfig) -> list[dict[str, Any]]:
    """Equal ones counted together."""
    return [
        {
            "kind": one.kind,
            "axes": list(one.axes),
            "scope": one.scope,
            "count": count,
            "elements": one.elements,
            "dtype": one.dtype,
            "bytes": one.elements * ITEM_SIZES[one.dtype],
            "wire_bytes": float(wire_elements(one, mesh.shape)) * ITEM_SIZES[one.dtype],
        }
        for one, count in Counter(collectives).items()
    ]
