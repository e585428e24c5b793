"""Compares the logits of two models on the same tokens."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

TOP = 10
_PROMPTS, _LENGTH, _SEED = 2, 24, 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the logits of a model are from a reference's.

    positions: how many were compared.  max_abs: the largest difference, and the one that passes.  mean_kl: of the
    reference's next-token distribution to the model's, in nats, the mean over positions.  top10_overlap: share of the
    10 likeliest tokens that are the same.  greedy_agreement: share of positions with the same likeliest token.
    first_difference_gap: at the first other position, by how much the reference prefers its token to the model's; None
    where there is no such position.
    bit_equal: whether all bits are the same.  passed: the verdict.
    """

    positions: int
    max_abs: float
    max_abs_limit: float | None
    mean_kl: float
    top10_overlap: float
    greedy_agreement: float
    first_difference_gap: float | None
    bit_equal: bool
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What passes.

    max_abs_share: the largest difference, in standard deviations of the reference's logits, if it counts.
    """

    max_abs_share: float | None
    mean_kl: float


# Measured against transformers: below 3e-5 standard deviations (docs/decisions.md, "Parity with transformers").
FLOAT32 = Tolerance(max_abs_share=2e-4, mean_kl=1e-6)
# Rounded weights or 16-bit arithmetic turn close choices of experts, and then single logits differ by anything: so what
# counts is the distribution. Measured: 0.006 nats
# (`moejax verify demo --reference demo --dtype bfloat16`).
ROUNDED = Tolerance(max_abs_share=None, mean_kl=0.05)


def compare_logits(
    reference: Sequence[Float[np.ndarray, "T V"]],
    model: Sequence[Float[np.ndarray, "T V"]],
    tolerance: Tolerance | None,
) -> Comparison:
    """Compares float32 logits, one array per prompt. Without a tolerance every bit has to be the same.

    Raises:
        ValueError: when the shapes differ.
    """
    shapes = [array.shape for array in reference], [array.shape for array in model]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"logits of shapes {shapes[1]} cannot be compared with {shapes[0]}: the models are not of one kind"
        )
    wanted, got = np.concatenate(reference), np.concatenate(model)
    difference = np.abs(wanted - got)
    best, chosen = wanted.argmax(-1), got.argmax(-1)
    other = np.flatnonzero(best != chosen)
    first = None if not other.size else wanted[other[0], best[other[0]]] - wanted[other[0], chosen[other[0]]]
    # NaN fails too, as no comparison with it holds.
    max_abs, mean_kl = float(difference.max()), float(_kl(wanted, got).mean())
    bit_equal = wanted.tobytes() == got.tobytes()
    limit = 0.0 if tolerance is None else None
    if tolerance is not None and tolerance.max_abs_share is not None:
        limit = tolerance.max_abs_share * float(wanted.std())
    close = tolerance is not None and (limit is None or max_abs <= limit) and mean_kl <= tolerance.mean_kl
    return Comparison(
        positions=len(wanted),
        max_abs=max_abs,
        max_abs_limit=limit,
        mean_kl=mean_kl,
        top10_overlap=_overlap(wanted, got),
        greedy_agreement=float((best == chosen).mean()),
        first_difference_gap=None if first is None else float(first),
        bit_equal=bit_equal,
        passed=bit_equal if tolerance is None else close,
    )


def fixed_prompts(vocab_size: int, max_seq_len: int) -> list[list[int]]:
    """Token ids that are the same for every model of a size; no tokenizer is needed."""
    rng = np.random.default_rng(_SEED)
    return [rng.integers(0, vocab_size, size=min(_LENGTH, max_seq_len)).tolist() for _ in range(_PROMPTS)]


def compare_checkpoints(reference: Path, checkpoint: Path, *, exact: bool) -> Comparison:
    """Compares two folders with the same program, one model in memory after the other.

    Both compute in the dtype of the reference. `exact`: every bit has to be the same; otherwise they pass as `ROUNDED`.
    """
    from moejax.checkpoint import open_checkpoint

    dtype = open_checkpoint(reference).dtype
    wanted = _logits(reference, dtype)
    return compare_logits(wanted, _logits(checkpoint, dtype), None if exact else ROUNDED)


def _logits(folder: Path, dtype: str) -> list[np.ndarray]:
    import moejax

    model = moejax.load(folder, dtype=dtype)
    computed = moejax.logits(model, fixed_prompts(model.config.vocab_size, model.max_seq_len))
    logits = [np.asarray(array) for array in computed]
    del model
    gc.collect()  # frees its memory before the next model is loaded
    return logits


def _kl(wanted: Float[np.ndarray, "T V"], got: Float[np.ndarray, "T V"]) -> Float[np.ndarray, " T"]:
    log_p, log_q = _log_softmax(wanted), _log_softmax(got)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Float[np.ndarray, "T V"]) -> Float[np.ndarray, "T V"]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _overlap(wanted: Float[np.ndarray, "T V"], got: Float[np.ndarray, "T V"]) -> float:
    top = min(TOP, wanted.shape[-1])
    likeliest = (np.argpartition(-logits, top - 1, axis=-1)[:, :top] for logits in (wanted, got))
    return float(np.mean([len(set(a) & set(b)) / top for a, b in zip(*likeliest, strict=True)]))
