"""What the commands that time one model share: which model, what stands beside its numbers, where they are written."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moejax.cli import bench_options as flags
from moejax.cli import console
from moejax.families.table import parameters_of

if TYPE_CHECKING:
    from moejax import Model
    from moejax.bench.works import Work


def works_of(
    source: str,
    batch_sizes: flags.Numbers,
    input_lens: flags.Numbers,
    output_lens: flags.Numbers,
    prefill_lens: flags.Numbers,
) -> "list[Work]":
    """Every combination, and one prompt of each prefill length with a single token after it.

    Raises:
        ValueError: for a size below 1, a length that the model has no positions for, or prompts that would not fit
            memory, before JAX starts; for a model that does not exist.
    """
    from moejax.bench.works import Work, check_amount, cross_product

    works = cross_product(batch_sizes, input_lens, output_lens)
    if prefill_lens and min(prefill_lens) < 1:
        raise ValueError(f"--prefill-len must be at least 1, got {min(prefill_lens)}")
    limit = check_length(source, max(input_lens) + max(output_lens))
    if prefill_lens and max(prefill_lens) >= limit:
        raise ValueError(
            f"--prefill-len must be at most {limit - 1}, got {max(prefill_lens)}: the model has {limit} positions, and "
            "one is the generated token's"
        )
    check_amount("--batch-size", max(batch_sizes), max(input_lens))
    alone = [Work(batch_size=1, input_len=length, output_len=1) for length in prefill_lens]
    return list(dict.fromkeys(works + alone))


def check_length(source: str, longest: int) -> int:
    """The model's positions; ValueError before JAX starts when they are fewer than `longest`, or there is no model."""
    from moejax.cli.facts import read_facts

    limit = read_facts(source, None).max_seq_len
    if longest > limit:
        raise ValueError(
            f"prompt and output of {longest} tokens are more than the model's {limit} positions: lower --input-len or "
            "--output-len"
        )
    return limit


def check_real(devices: int) -> None:
    """Raises ValueError for simulated devices: they share this machine's cores, so their times say nothing."""
    import jax

    if devices > 1 and jax.devices()[0].platform == "cpu":
        raise ValueError(
            "CPU devices of a mesh are simulated and not timed; moejax bench compare --mesh counts what they exchange"
        )


def load_timed(
    source: str,
    mesh: str | None,
    dispatch: str,
    *,
    dtype: str,
    expert_backend: str,
    seed: int,
    batch_size: int,
    quiet: bool,
) -> "Model":
    """Loads a model on real devices, once JAX has started; "auto" is the best mesh for `batch_size` sequences.

    Raises:
        ValueError: for a mesh of simulated devices, before anything is loaded.
    """
    import moejax
    from moejax.bench.source import source_name
    from moejax.cli.facts import read_facts
    from moejax.planning.auto import asked_split
    from moejax.runtime.buckets import MAX_ROWS

    facts = read_facts(source, None)
    split = asked_split(
        facts.config,
        mesh,
        dispatch,
        dtype=dtype,
        stored=facts.dtype,
        max_seq_len=facts.max_seq_len,
        batch_size=min(MAX_ROWS, batch_size),
    )
    check_real(split.mesh.size)
    if split.remark and not quiet:
        console.remark(split.remark)
    with console.progress(f"loading {source_name(source)}", quiet=quiet):
        return moejax.load(
            source, mesh=split.mesh, dtype=dtype, expert_backend=expert_backend, dispatch=split.dispatch, seed=seed
        )


def describe_model(model: "Model", source: str) -> dict[str, Any]:
    """What stands beside every number of a model."""
    from moejax.bench.source import source_name

    return {
        "name": source_name(source),
        "parameters": parameters_of(model.config).total,
        "active_parameters": parameters_of(model.config).active,
        "dtype": model.dtype,
        "expert_backend": model.expert_backend,
        "mesh": str(model.mesh),
        "dispatch": model.dispatch,
    }


def headline(result: dict[str, Any]) -> str:
    """The machine, the model and what the machine can do, in three lines."""
    from moejax.bench.machine import machine_line

    model, roofline = result["model"], result.get("roofline")
    lines = [
        f"machine: {machine_line(result['machine'])}",
        f"model: {model['name']}, {model['parameters'] / 1e6:,.0f} M parameters ({model['dtype']}, experts "
        f"{model['expert_backend']}, {model['mesh']})",
    ]
    if roofline:
        lines.append(
            f"measured: copy {roofline['copy_bytes_per_second'] / 1e9:.1f} GB/s, read "
            f"{roofline['read_bytes_per_second'] / 1e9:.1f} GB/s, products "
            f"{roofline['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s"
        )
    return "\n".join(lines)


def write_result(result: dict[str, Any], report: Path | None, *, json: bool) -> bool:
    """Writes the report that was asked for, then the result as JSON, or its headline; whether a table has to follow."""
    if report is not None:
        from moejax.bench.report import write_report

        write_report(report, result)
        console.remark(f"report written to {report}")
    console.write(f"{json_format.dumps(result) if json else headline(result)}\n")
    return not json
