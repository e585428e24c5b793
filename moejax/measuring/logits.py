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

    positions: how many were compared.  max_abs: the largest difference.  mean_kl: of the reference's next-token
    distribution to the model's, in nats, the mean over positions.  top10_overlap: share of the 10 likeliest tokens that
    are the same.  greedy_agreement: share of positions with the same likeliest token.
    first_difference_gap: at the first other position, by how much the reference prefers its token to the model's; None
    where there is no such position.
    bit_equal: whether all bits are the same.  passed: the verdict, of whoever compared.
    """

    positions: int
    max_abs: float
    mean_kl: float
    top10_overlap: float
    greedy_agreement: float
    first_difference_gap: float | None
    bit_equal: bool
    passed: bool


def compare_logits(
    reference: Sequence[Float[np.ndarray, "T V"]],
    model: Sequence[Float[np.ndarray, "T V"]],
    *,
    tolerance: float,
    kl_tolerance: float = np.inf,
) -> Comparison:
    """Compares float32 logits, one array per prompt.

    It passes when no logit differs by more than `tolerance`, and the mean divergence is at most `kl_tolerance` nats, or
    when every bit is the same.

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
    return Comparison(
        positions=len(wanted),
        max_abs=max_abs,
        mean_kl=mean_kl,
        top10_overlap=_overlap(wanted, got),
        greedy_agreement=float((best == chosen).mean()),
        first_difference_gap=None if first is None else float(first),
        bit_equal=bit_equal,
        passed=bit_equal or (max_abs <= tolerance and mean_kl <= kl_tolerance),
    )


def fixed_prompts(vocab_size: int, max_seq_len: int) -> list[list[int]]:
    """Token ids that are the same for every model of a size; no tokenizer is needed."""
    rng = np.random.default_rng(_SEED)
    return [rng.integers(0, vocab_size, size=min(_LENGTH, max_seq_len)).tolist() for _ in range(_PROMPTS)]


# Against another implementation, or other weights, close choices of experts turn, and then single logits differ by
# anything: what counts is the distribution. Measured: 0.006 nats (`moejax verify demo --reference demo --dtype
# bfloat16`).
ROUNDED_KL = 0.05


def compare_checkpoints(reference: Path, checkpoint: Path, *, exact: bool) -> Comparison:
    """Compares two folders with the same program, one model in memory after the other.

    Both compute in the dtype of the reference. `exact`: every bit has to be the same; otherwise `ROUNDED_KL` passes.
    """
    from moejax.checkpoint import open_checkpoint

    dtype = open_checkpoint(reference).dtype
    wanted = _logits(reference, dtype)
    got = _logits(checkpoint, dtype)
    return compare_logits(wanted, got, tolerance=0.0 if exact else np.inf, kl_tolerance=ROUNDED_KL)


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
