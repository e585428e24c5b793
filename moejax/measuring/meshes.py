"""Compares a model on meshes with itself on one device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import moejax
from moejax._sharding import MeshConfig, mesh_shapes
from moejax.families.config import ModelConfig
from moejax.measuring.logits import ROUNDED_KL, Comparison, compare_logits
from moejax.moe.split import can_split

FLOAT32_TOLERANCE = 1e-4  # what summing in another order leaves in float32
PROMPT_LENGTHS = (5, 1, 20)  # a ragged batch, which divides over no mesh: padding is compared as well
NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class MeshComparison:
    """How far a model on a mesh is from itself on one device.

    mesh, dispatch: what was compared.
    logits: along prompts and the tokens that one device generated.
    token_gap: where decoding the whole batch greedily gave another token first, by how much one device's logit of its
    own token is above that of the other one; None where all tokens are the same.
    tolerance: largest difference of float32 logits with which it passes; None in 16 bits, where a close choice of
    experts may turn: there the mean divergence decides.
    """

    mesh: str
    dispatch: str
    logits: Comparison
    token_gap: float | None
    tolerance: float | None

    @property
    def passed(self) -> bool:
        """Whether the logits are the same up to rounding, and tokens differ at most by a tie within it."""
        if self.token_gap is None or self.tolerance is None:
            return self.logits.passed
        return self.logits.passed and self.token_gap <= 2 * self.tolerance  # two logits, each that far off


def fitting_meshes(config: ModelConfig, devices: int) -> list[MeshConfig]:
    """Every mesh of 2 to `devices` devices over which this model can be split."""
    meshes = [mesh for size in range(2, devices + 1) for mesh in mesh_shapes(size)]
    return [mesh for mesh in meshes if can_split(config, mesh)]


@dataclass(frozen=True, kw_only=True)
class OneDevice:
    """What a model computes on one device, for comparing meshes with it.

    options: what it was loaded with, and will be on each mesh.
    tokens: the greedy continuation of each prompt.  logits: along prompts and continuations, [T, V] each.
    tolerance: as in `MeshComparison`.
    """

    source: str
    options: Mapping[str, Any]
    config: ModelConfig
    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[np.ndarray]
    tolerance: float | None


def on_one_device(
    source: str, *, dtype: str = "float32", on_step: Callable[[str], None] = lambda what: None, **options: Any
) -> OneDevice:
    """Loads the model on one device, with the `options` of `moejax.load`, and computes what meshes are compared with.

    on_step: is told what is about to be done.

    Raises:
        ValueError: when it cannot be loaded.
    """
    options = {"dtype": dtype, **options}
    on_step(f"loading {source} on one device")
    model = moejax.load(source, **options)
    prompts = _prompts(model.config.vocab_size, model.max_seq_len)
    on_step("decoding on one device")
    tokens = _greedy(model, prompts, min(NEW_TOKENS, model.max_seq_len - max(map(len, prompts))))
    on_step("computing logits on one device")
    logits = moejax.logits(model, [prompt + new for prompt, new in zip(prompts, tokens, strict=True)])
    return OneDevice(
        source=source,
        options=options,
        config=model.config,
        prompts=prompts,
        tokens=tokens,
        logits=logits,
        tolerance=FLOAT32_TOLERANCE if model.dtype == "float32" else None,
    )


def compare_model(reference: OneDevice, model: moejax.Model) -> MeshComparison:
    """Compares a model that was loaded with the options of the reference, on another mesh."""
    sequences = [prompt + new for prompt, new in zip(reference.prompts, reference.tokens, strict=True)]
    limits = (np.inf, ROUNDED_KL) if reference.tolerance is None else (reference.tolerance, np.inf)
    compared = compare_logits(
        reference.logits, moejax.logits(model, sequences), tolerance=limits[0], kl_tolerance=limits[1]
    )
    tokens = _greedy(model, reference.prompts, len(reference.tokens[0]))
    return MeshComparison(
        mesh=str(model.mesh),
        dispatch=model.dispatch,
        logits=compared,
        token_gap=_token_gap(reference, tokens),
        tolerance=reference.tolerance,
    )


def _token_gap(reference: OneDevice, tokens: list[list[int]]) -> float | None:
    """The largest gap, over the rows, at a row's first other token."""
    gaps = []
    for row, (wanted, got) in enumerate(zip(reference.tokens, tokens, strict=True)):
        other = next((place for place, pair in enumerate(zip(wanted, got, strict=True)) if pair[0] != pair[1]), None)
        if other is not None:
            logits = reference.logits[row][len(reference.prompts[row]) + other - 1]
            gaps.append(float(logits[wanted[other]] - logits[got[other]]))
    return max(gaps, default=None)


def _prompts(vocab_size: int, max_seq_len: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, min(length, max_seq_len - 1)).tolist() for length in PROMPT_LENGTHS]


def _greedy(model: moejax.Model, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    results = moejax.decode(model, prompts, max_tokens=new_tokens, ignore_eos=True)
    return [result.token_ids for result in results]
