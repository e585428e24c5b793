"""`moejax verify --reference`: a checkpoint against transformers."""

import dataclasses
import json as json_format
from typing import TYPE_CHECKING

from moejax.cli import console, startup

if TYPE_CHECKING:
    from moejax.measuring.logits import Comparison
    from moejax.measuring.reference import Passes


def run(checkpoint: str, reference: str, *, dtype: str, json: bool, quiet: bool) -> bool:
    """Prints the numbers and a verdict, or a JSON object; returns whether they are the same."""
    from moejax.measuring.reference import verify_reference  # here, so that --help starts quickly

    with console.progress(f"comparing {checkpoint} with {reference}", quiet=quiet) as step:
        startup.prepare_jax(quiet=quiet)
        compared, passes = verify_reference(checkpoint, reference, dtype=dtype, on_step=step)
    if json:
        console.write(f"{json_format.dumps(dataclasses.asdict(compared) | {'passes': dataclasses.asdict(passes)})}\n")
    else:
        console.write("".join(f"{line}\n" for line in _lines(compared, passes)))
    return compared.passed


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
