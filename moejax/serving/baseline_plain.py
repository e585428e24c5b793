"""The baseline that needs nothing installed: our own model with nothing that makes it fast.

There is no cache, so every token is computed from the whole text again, and every expert computes every token.
"""

import dataclasses
from typing import Any

import numpy as np

import moejax
from moejax.serving.baseline import SHARED, Emit, Implementation, Setup, Task


def load(setup: Setup) -> Implementation:
    """Loads the model onto one device."""
    model = moejax.load(setup.source, dtype=setup.dtype, expert_backend="dense")

    def generate(task: Task, emit: Emit) -> None:
        given: dict[str, Any] = {name: getattr(task, name) for name in SHARED if name != "max_tokens"}
        params = moejax.SamplingParams(**given, max_tokens=1, ignore_eos=True)
        text = list(task.prompt)
        for step in range(task.max_tokens):
            # A token is the first of its text each time, so each needs random numbers of its own.
            seed = None if task.seed is None else int(np.random.SeedSequence([task.seed, step]).generate_state(1)[0])
            (token,) = moejax.decode(model, text, dataclasses.replace(params, seed=seed))[0].token_ids
            emit(token)
            if token in task.stop_ids:
                return
            text.append(token)

    return Implementation(
        description=f"moejax without a cache, every expert computed, {setup.dtype}, {setup.platform}",
        generate=generate,
        excluded_seconds=lambda: model.programs.compile_seconds,
    )
