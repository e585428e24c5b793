"""Compares a checkpoint with what transformers computes from a Hugging Face folder: the only file that imports it."""

import gc
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moejax._convert import OrbaxFolder
from moejax.checkpoint import open_checkpoint
from moejax.measuring.logits import ROUNDED_KL, Comparison, compare_logits, fixed_prompts
from moejax.weights.dtypes import resolve_dtype

NEW_TOKENS = 16


# Measured in float32: below 3e-5 standard deviations of the logits (docs/decisions.md, "Parity with transformers").
FLOAT32_SHARE, FLOAT32_KL = 2e-4, 1e-6


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What passes: the largest difference of logits (None: any), and the mean divergence in nats."""

    max_abs: float | None
    mean_kl: float


def verify_reference(
    checkpoint: str | Path,
    reference: str | Path,
    *,
    dtype: str = "float32",
    on_step: Callable[[str], None] = lambda what: None,
) -> tuple[Comparison, Passes]:
    """Compares logits along the reference's own greedy continuations of fixed prompts, one model after the other.

    on_step: is told what is about to be done.

    Returns: the comparison, and what it was judged by.

    Raises:
        ValueError: when transformers is not installed, or one of the two cannot be loaded.
    """
    wanted_dtype = resolve_dtype(dtype, auto="float32")
    opened = open_checkpoint(checkpoint), open_checkpoint(reference)
    if isinstance(opened[1].tensors, OrbaxFolder):
        raise ValueError(
            f"{reference} is a converted folder, which transformers does not read; give the Hugging Face folder that "
            f"it was made from, or make one: {shlex.join(['moejax', 'convert', str(reference), f'{reference}-hf'])}"
        )
    if not opened[1].has_config:
        between, made = f"{reference}-orbax", f"{reference}-hf"
        commands = (["moejax", "convert", str(reference), between], ["moejax", "convert", between, made])
        raise ValueError(
            f"{reference} is in Mistral's own layout, which transformers does not read; give {made}, made by: "
            f"{' && '.join(map(shlex.join, commands))}"
        )
    if opened[0].config != opened[1].config:
        ours, theirs = (vars(one.config) for one in opened)
        key = next(key for key in ours if ours[key] != theirs[key])
        raise ValueError(
            f"{checkpoint} and {reference} are different models: {key} is {ours[key]!r} and {theirs[key]!r}; "
            "give the folder that the checkpoint was converted from"
        )
    config = opened[1].config
    on_step(f"computing {reference} with transformers")
    room = max(1, config.max_position_embeddings - NEW_TOKENS)
    sequences, wanted = _reference_logits(opened[1].folder, fixed_prompts(config.vocab_size, room), wanted_dtype)
    gc.collect()  # frees the reference's memory
    import moejax

    on_step(f"computing {checkpoint} with moejax")
    model = moejax.load(opened[0].folder, dtype=wanted_dtype)
    got = [np.asarray(array) for array in moejax.logits(model, sequences)]
    passes = Passes(max_abs=None, mean_kl=ROUNDED_KL)
    if wanted_dtype == "float32":
        passes = Passes(max_abs=FLOAT32_SHARE * float(np.concatenate(wanted).std()), mean_kl=FLOAT32_KL)
    limit = np.inf if passes.max_abs is None else passes.max_abs
    return compare_logits(wanted, got, tolerance=limit, kl_tolerance=passes.mean_kl), passes


def _reference_logits(folder: Path, prompts: list[list[int]], dtype: str) -> tuple[list[list[int]], list[np.ndarray]]:
    """Greedy continuations of `prompts` by transformers, and its logits [T, V] of each whole sequence."""
    try:
        import torch
        import transformers
        from transformers import MixtralForCausalLM
    except ImportError as error:
        raise ValueError(
            f"verify --reference computes with transformers and torch, and {error.name} is not installed; run: "
            "pip install 'moejax[torch]' (5 GB with torch's CUDA libraries; its CPU build, installed before, is kept)"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    loader: Any = MixtralForCausalLM  # its own annotations reject its methods
    try:
        model = loader.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"transformers cannot load {folder} ({reason}); give a Hugging Face folder") from error
    sequences, logits = [], []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            for _ in range(NEW_TOKENS):  # without a cache: what is compared is one plain forward pass
                following = model(ids, use_cache=False).logits[0, -1].argmax()
                ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
            sequences.append(ids[0].tolist())
            logits.append(model(ids, use_cache=False).logits[0].float().numpy())
    return sequences, logits
