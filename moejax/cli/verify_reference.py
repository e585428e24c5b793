"""`moejax verify --reference`: a checkpoint against transformers."""

import dataclasses
import json as json_format
from typing import TYPE_CHECKING

from moejax.cli import console, startup

if TYPE_CHECKING:
    from moejax.measuring.logits import Comparison
    from moejax.measuring.reference import Passes


def run(checkpoint: str, reference: str, *, dtype: str, json: bool, quiet: bool) -> bool:
    """Prints the numbers and what follows from them, or a JSON object; returns whether nothing speaks against it that
    they are the same."""
    from moejax.measuring.reference import verify_reference  # here, so that --help starts quickly
    from moejax.weights.dtypes import resolve_dtype

    computed_in = resolve_dtype(dtype, auto="float32")
    with console.progress(f"comparing {checkpoint} with {reference}", quiet=quiet) as step:
        startup.prepare_jax(quiet=quiet)
        compared, passes = verify_reference(checkpoint, reference, dtype=dtype, on_step=step)
    if json:
        found = dataclasses.asdict(compared) | {"dtype": computed_in, "passes": dataclasses.asdict(passes)}
        console.write(f"{json_format.dumps(found)}\n")
    else:
        console.write("".join(f"{line}\n" for line in lines(compared, passes, computed_in)))
    return compared.passed


def lines(compared: "Comparison", passes: "Passes", dtype: str) -> list[str]:
    """What is printed, one line for each number, and what they show at the end."""
    gap = compared.first_difference_gap
    where = "" if gap is None else f"; at the first difference the reference prefers its token by {gap:.3g}"
    limit = "" if passes.max_abs is None else f" (passes up to {passes.max_abs:.3g})"
    return [
        f"compared                  moejax in {dtype} with transformers in {dtype}",
        f"positions compared        {compared.positions}",
        f"largest difference        {compared.max_abs:.3g}{limit}",
        f"mean KL divergence        {compared.mean_kl:.3g} nats (passes up to {passes.mean_kl:.3g})",
        f"overlap of the 10 best    {compared.top10_overlap:.2%}",
        f"greedy agreement          {compared.greedy_agreement:.2%}{where}",
        f"verdict                   {_verdict(compared, passes, dtype)}",
    ]


def _verdict(compared: "Comparison", passes: "Passes", dtype: str) -> str:
    """What the numbers show. Those of a dtype that rounds away small differences cannot show that there are none."""
    if not compared.passed:
        return "NOT the same"
    if compared.bit_equal:
        return "the same, bit by bit"
    if passes.max_abs is not None:
        return "the same"
    other = round((1 - compared.greedy_agreement) * compared.positions)
    return (
        f"as close as rounding to {dtype} leaves them, no closer known: the likeliest token is another at {other} of "
        f"{compared.positions} positions; --dtype float32 tells whether they are the same"
    )
