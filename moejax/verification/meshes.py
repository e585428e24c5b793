"""Compares a model on meshes with itself on one device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import moejax
from moejax.config import ModelConfig
from moejax.layout import choose_dispatch, dispatch_name
from moejax.verification.logits import ROUNDED_TOLERANCE, Comparison, compare_logits
from sharding import MeshConfig, mesh_shapes

FLOAT32_TOLERANCE = 1e-4  # what summing in another order leaves in float32
PROMPT_LENGTHS = (5, 1, 20)  # a ragged batch, which divides over no mesh: padding is compared as well
NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class MeshComparison:
    """How far a model on a mesh is from itself on one device.

    mesh, dispatch: what was compared.  reason: why "auto" took that dispatch, None where it was named.
    logits: along prompts and the tokens that one device generated.  same_tokens: whether decoding the whole batch
    greedily gave the same tokens.  tolerance: largest difference of logits with which it passes.
    """

    mesh: str
    dispatch: str
    reason: str | None
    logits: Comparison
    same_tokens: bool
    tolerance: float


def fitting_meshes(config: ModelConfig, devices: int) -> list[MeshConfig]:
    """Every mesh of 2 to `devices` devices over which this model can be split."""
    meshes = [mesh for size in range(2, devices + 1) for mesh in mesh_shapes(size)]
    return [m for m in meshes if config.num_experts % m.expert == 0 and config.expert_dim % m.tensor == 0]


@dataclass(frozen=True, kw_only=True)
class OneDevice:
    """What a model computes on one device, for comparing meshes with it.

    options: what it was loaded with, and will be on each mesh.
    tokens: the greedy continuation of each prompt.  logits: along prompts and continuations, [T, V] each.
    tolerance: the largest difference of logits with which a mesh passes.
    """

    source: str
    options: Mapping[str, Any]
    config: ModelConfig
    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[np.ndarray]
    tolerance: float


def on_one_device(source: str, *, dtype: str = "float32", **options: Any) -> OneDevice:
    """Loads the model on one device, with the `options` of `moejax.load`, and computes what meshes are compared with.

    Raises:
        ValueError: when it cannot be loaded.
    """
    options = {"dtype": dtype, **options}
    model = moejax.load(source, **options)
    prompts = _prompts(model.config.vocab_size, model.max_seq_len)
    tokens = _greedy(model, prompts, min(NEW_TOKENS, model.max_seq_len - max(map(len, prompts))))
    logits = moejax.logits(model, [prompt + new for prompt, new in zip(prompts, tokens, strict=True)])
    exact = model.dtype == "float32"
    return OneDevice(
        source=source,
        options=options,
        config=model.config,
        prompts=prompts,
        tokens=tokens,
        logits=logits,
        tolerance=FLOAT32_TOLERANCE if exact else ROUNDED_TOLERANCE * float(np.concatenate(logits).std()),
    )


def compare_mesh(reference: OneDevice, mesh: MeshConfig, dispatch: str = "auto") -> MeshComparison:
    """Loads the same model on a mesh and compares it.

    Raises:
        ValueError: when the mesh cannot serve the model or is larger than the devices.
    """
    name, reason = choose_dispatch(reference.config, mesh) if dispatch == "auto" else (dispatch_name(dispatch), None)
    model = moejax.load(reference.source, mesh=mesh, dispatch=name, **reference.options)
    sequences = [prompt + new for prompt, new in zip(reference.prompts, reference.tokens, strict=True)]
    compared = compare_logits(reference.logits, moejax.logits(model, sequences), tolerance=reference.tolerance)
    tokens = _greedy(model, reference.prompts, len(reference.tokens[0]))
    return MeshComparison(
        mesh=str(mesh),
        dispatch=name,
        reason=reason,
        logits=compared,
        same_tokens=tokens == reference.tokens,
        tolerance=reference.tolerance,
    )


def _prompts(vocab_size: int, max_seq_len: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, min(length, max_seq_len - 1)).tolist() for length in PROMPT_LENGTHS]


def _greedy(model: moejax.Model, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    results = moejax.decode(model, prompts, max_tokens=new_tokens, ignore_eos=True)
    return [result.token_ids for result in results]
