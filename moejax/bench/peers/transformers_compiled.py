"""transformers at its fastest: a static cache and a compiled forward pass for each token."""

import time
from collections.abc import Callable

import torch
import transformers

from moejax.bench.peers import Run, Runner, Settings
from moejax.bench.peers.torch_model import load_model, wait

Step = Callable[[torch.Tensor, transformers.StaticCache, torch.Tensor], torch.Tensor]


def load(settings: Settings, experts: str) -> Runner:
    """`experts` is an implementation of transformers: grouped_mm or batched_mm."""
    model = load_model(settings)
    default = model.config._experts_implementation
    steps: dict[tuple[int, int], Step] = {}

    def step(token: torch.Tensor, cache: transformers.StaticCache, position: torch.Tensor) -> torch.Tensor:
        places = position[None].expand(token.shape[0], 1)
        out = model(token, past_key_values=cache, position_ids=places, use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def run(prompts: list[list[int]], output_len: int) -> Run:
        batch, length = len(prompts), len(prompts[0])
        compiled = steps.setdefault((batch, length + output_len), torch.compile(step, dynamic=False))
        with torch.inference_mode():
            ids = torch.tensor(prompts, device=model.device)
            cache = transformers.StaticCache(config=model.config, max_cache_len=length + output_len)
            model.set_experts_implementation(default)  # batched_mm copies an expert per token: for decoding only
            began = time.perf_counter()
            token = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            tokens = [token.argmax(-1, keepdim=True)]
            wait()
            model.set_experts_implementation(experts)
            first = time.perf_counter()
            for position in range(length, length + output_len - 1):
                tokens.append(compiled(tokens[-1], cache, torch.tensor([position], device=model.device)))
            wait()
            ended = time.perf_counter()
        return Run(
            tokens=torch.cat(tokens, dim=1).tolist(), prefill_seconds=first - began, decode_seconds=ended - first
        )

    # A new shape is a new compilation on purpose: dynamic shapes are slower.
    torch._dynamo.config.recompile_limit = 64
    return Runner(
        run=run, how=f"static cache, torch.compile of the decode step with experts {experts}; prefill with {default}"
    )
