"""`moejax verify`: whether a checkpoint computes what a reference computes."""

import dataclasses
import json as json_format
from typing import TYPE_CHECKING, Annotated

import typer

from moejax.cli import console, options, startup

if TYPE_CHECKING:
    from moejax.verification.logits import Comparison
    from moejax.verification.reference import Passes

EXAMPLES = (
    "moejax verify path/to/checkpoint --reference path/to/hf-folder",
    "moejax verify demo-orbax --reference demo --dtype bfloat16 --json",
)

NOT_EQUAL = 1  # exit code


def verify(
    checkpoint: options.Checkpoint,
    reference: Annotated[
        str,
        typer.Option(
            "--reference", metavar="FOLDER", help="A Hugging Face folder, computed by transformers.", show_default=False
        ),
    ],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAME", help="What both compute in: bfloat16, float16 or float32.")
    ] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Compare logits with those of transformers, which has to be installed. Exit code 0: the same, 1: not."""
    from moejax.verification.reference import verify_reference  # here, so that --help imports neither numpy nor JAX

    with console.progress(f"comparing {checkpoint} with {reference}", quiet=quiet):
        startup.prepare_jax(quiet=quiet)
        compared, passes = verify_reference(checkpoint, reference, dtype=dtype)
    if json:
        console.write(f"{json_format.dumps(dataclasses.asdict(compared) | {'passes': dataclasses.asdict(passes)})}\n")
    else:
        console.write("".join(f"{line}\n" for line in _lines(compared, passes)))
    return 0 if compared.passed else NOT_EQUAL


def _lines(compared: "Comparison", passes: "Passes") -> list[str]:
    gap = compared.first_difference_gap
    where = "" if gap is None else f"; at the first difference the reference prefers its token by {gap:.3g}"
    limit = "" if passes.max_abs is None else f" (passes up to {passes.max_abs:.3g})"
    return [
        f"positions compared        {compared.positions}",
        f"largest difference        {compared.max_abs:.3g}{limit}",
        f"mean KL divergence        {compared.mean_kl:.3g} nats (passes up to {passes.mean_kl:.3g})",
        f"overlap of the 10 best    {compared.top10_overlap:.2%}",
        f"greedy agreement          {compared.greedy_agreement:.2%}{where}",
        "verdict                   " + ("the same" if compared.passed else "NOT the same"),
    ]
