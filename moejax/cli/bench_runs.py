"""What the commands that time a model share: what is asked of it, and what stands beside its numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moejax.cli.bench_options import WorkFlags
from moejax.families.table import RANDOM, parameters_of

if TYPE_CHECKING:
    from moejax import Model
    from moejax.bench.works import Work
    from moejax.cli.facts import SourceFacts
    from moejax.families.config import ModelConfig


def works_of(facts: "SourceFacts", flags: WorkFlags) -> "list[Work]":
    """Every combination, and one prompt of each prefill length with a single token after it.

    Raises:
        ValueError: for a size below 1, a length that the model has no positions for, or prompts that would not fit
            memory, before JAX starts.
    """
    from moejax.bench.works import Work, check_amount, cross_product

    works = cross_product(flags.batch_size, flags.input_len, flags.output_len)
    lengths = flags.prefill_len
    if lengths and min(lengths) < 1:
        raise ValueError(f"--prefill-len must be at least 1, got {min(lengths)}")
    check_length(facts, max(flags.input_len) + max(flags.output_len))
    if lengths and max(lengths) >= (limit := facts.max_seq_len):
        raise ValueError(
            f"--prefill-len must be at most {limit - 1}, got {max(lengths)}: the model has {limit} positions, and "
            "one is the generated token's"
        )
    check_amount("--batch-size", max(flags.batch_size), max(flags.input_len))
    alone = [Work(batch_size=1, input_len=length, output_len=1) for length in lengths]
    return list(dict.fromkeys(works + alone))


def check_length(facts: "SourceFacts", longest: int) -> None:
    """Raises ValueError before JAX starts when the model has fewer positions than `longest`."""
    if longest > facts.max_seq_len:
        raise ValueError(
            f"prompt and output of {longest} tokens are more than the model's {facts.max_seq_len} positions: lower "
            "--input-len or --output-len"
        )


def describe_config(config: "ModelConfig", source: str) -> dict[str, Any]:
    """What stands beside every number of a model of `config`."""
    parameters = parameters_of(config)
    return {"name": source_name(source), "parameters": parameters.total, "active_parameters": parameters.active}


def source_name(source: str) -> str:
    """A short name for tables: the last part of a path."""
    path = Path(source.removeprefix(RANDOM))
    return (RANDOM if source.startswith(RANDOM) else "") + (path.stem if path.suffix == ".json" else path.name)


def describe_model(model: "Model", source: str) -> dict[str, Any]:
    """What stands beside every number of a loaded model."""
    return describe_config(model.config, source) | {
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
