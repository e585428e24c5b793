"""transformers as most people run it: `generate`, with its default experts implementation."""

import time
from functools import partial
from typing import Any

import torch

from moejax.bench.peers import Run, Runner, Settings
from moejax.bench.peers.torch_model import SERVE_HOW, load_model, serve_padded, wait


class Clock:
    """A stopping criterion that never stops: `generate` calls it after every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        wait()
        self.times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)


def load(settings: Settings) -> Runner:
    model = load_model(settings)
    # Every system goes on after the end of a text; `min_new_tokens` would instead forbid that token and take another.
    model.generation_config.eos_token_id = None

    def generate(ids: torch.Tensor, mask: torch.Tensor, new: int, clock: Clock | None = None) -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=None if clock is None else [clock],
            )

    def run(prompts: list[list[int]], output_len: int) -> Run:
        ids = torch.tensor(prompts, device=model.device)
        clock, began = Clock(), time.perf_counter()
        out = generate(ids, torch.ones_like(ids), output_len, clock)
        return Run(
            tokens=out[:, ids.shape[1] :].tolist(),
            prefill_seconds=clock.times[0] - began,
            decode_seconds=clock.times[-1] - clock.times[0],
        )

    experts = model.config._experts_implementation
    return Runner(
        run=run,
        how=f"generate, experts {experts} (its default), attention {model.config._attn_implementation}",
        serve=partial(serve_padded, generate),
        serve_how=SERVE_HOW,
    )
