"""What both forms of transformers share: loading, and greedy batches of ragged requests."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from moejax.bench.peers import Served, Settings

SERVE_BATCH = 32  # requests per padded batch: 15% faster than 16, 10% faster than 64 (docs/decisions.md)
Generate = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # (ids, attention mask, new tokens) -> all ids


def load_model(settings: Settings) -> Any:
    """A MixtralForCausalLM on the GPU if there is one, else on `settings.threads` threads."""
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loader: Any = transformers.MixtralForCausalLM  # its own annotations reject its methods
    dtype = getattr(torch, settings.dtype)
    model = loader.from_pretrained(settings.folder, dtype=dtype, local_files_only=True).eval()
    return model.to(device())


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the GPU has done what it was given; a CPU has when a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def serve_padded(generate: Generate, prompts: list[list[int]], output_lens: list[int]) -> Served:
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
        out = generate(ids.to(device()), mask.to(device()), most)[:, width:].tolist()
        for row, index in enumerate(group):
            tokens[index] = out[row][: output_lens[index]]
    return Served(tokens=tokens, seconds=time.perf_counter() - began)


SERVE_HOW = f"sorted by output length, batches of {SERVE_BATCH} padded on the left, each to its longest output"
