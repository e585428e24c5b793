"""transformers in two forms: as most people run it, and at its fastest."""

import time
from functools import partial
from typing import Any

import torch
import transformers

from moejax.bench.peers import Run, Runner, Served, Settings

SERVE_BATCH = 32  # requests per padded batch: 15% faster than 16, 10% faster than 64 (docs/decisions.md)
SERVE_HOW = f"sorted by output length, batches of {SERVE_BATCH} padded on the left, each to its longest output"


def load_generate(settings: Settings) -> Runner:
    """`generate`, with its default experts implementation."""
    return generating(load_model(settings))


def load_compiled(settings: Settings, experts: str) -> Runner:
    """A static cache and a compiled forward pass for each token; `experts` is grouped_mm or batched_mm."""
    return compiled(load_model(settings), experts)


def generating(model: Any) -> Runner:
    """`load_generate` of a model that is there."""
    # Every system goes on after the end of a text; `min_new_tokens` would instead forbid that token and take another.
    model.generation_config.eos_token_id = None

    def run(prompts: list[list[int]], output_len: int) -> Run:
        ids = torch.tensor(prompts, device=model.device)
        clock, began = Clock(), time.perf_counter()
        out = generate(model, ids, torch.ones_like(ids), output_len, clock)
        return Run(
            tokens=out[:, ids.shape[1] :].tolist(),
            prefill_seconds=clock.times[0] - began,
            decode_seconds=clock.times[-1] - clock.times[0],
        )

    experts = model.config._experts_implementation
    return Runner(
        run=run,
        how=f"generate, experts {experts} (its default), attention {model.config._attn_implementation}",
        serve=partial(serve_padded, model),
        serve_how=SERVE_HOW,
    )


def compiled(model: Any, experts: str) -> Runner:
    """`load_compiled` of a model that is there."""
    default = model.config._experts_implementation
    steps: dict[tuple[int, int], Any] = {}

    def step(token: torch.Tensor, cache: transformers.StaticCache, position: torch.Tensor) -> torch.Tensor:
        places = position[None].expand(token.shape[0], 1)
        out = model(token, past_key_values=cache, position_ids=places, use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def run(prompts: list[list[int]], output_len: int) -> Run:
        batch, length = len(prompts), len(prompts[0])
        one_token = steps.setdefault((batch, length + output_len), torch.compile(step, dynamic=False))
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
                tokens.append(one_token(tokens[-1], cache, torch.tensor([position], device=model.device)))
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


def load_model(settings: Settings) -> Any:
    """A MixtralForCausalLM on the GPU if there is one, else on `settings.threads` threads."""
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loader: Any = transformers.MixtralForCausalLM  # its own annotations reject its methods
    dtype = getattr(torch, settings.dtype)
    model = loader.from_pretrained(settings.folder, dtype=dtype, local_files_only=True).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


class Clock:
    """A stopping criterion that never stops: `generate` calls it after every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        wait()
        self.times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)


def wait() -> None:
    """Until the GPU has done what it was given; a CPU has when a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def generate(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int, clock: Clock | None = None
) -> torch.Tensor:
    """Prompts and their greedy continuations."""
    with torch.inference_mode():
        return model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=None if clock is None else [clock],
        )


def serve_padded(model: Any, prompts: list[list[int]], output_lens: list[int]) -> Served:
    """Requests sorted by output length, SERVE_BATCH at a time, padded on the left; each batch runs to its longest.

    Sorting is what a careful user does: it leaves the least padding.
    """
    order = sorted(range(len(prompts)), key=lambda index: (output_lens[index], len(prompts[index])))
    tokens: list[list[int]] = [[] for _ in prompts]
    began = time.perf_counter()
    for start in range(0, len(order), SERVE_BATCH):
        group = order[start : start + SERVE_BATCH]
        width = max(len(prompts[index]) for index in group)
        ids = torch.zeros((len(group), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(group):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        most = max(output_lens[index] for index in group)
        out = generate(model, ids.to(model.device), mask.to(model.device), most)[:, width:].tolist()
        for row, index in enumerate(group):
            tokens[index] = out[row][: output_lens[index]]
    return Served(tokens=tokens, seconds=time.perf_counter() - began)
