"""Log-probabilities of tokens and of the best candidates beside them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.model.model import Transformer

POSITIONS_PER_BLOCK = 64  # prompt positions whose logits are in memory at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScores:
    """For each place: the token's log-probability and rank (1 is best), and the k best ids with theirs."""

    logprob: Float[Array, "*places"]
    rank: Int[Array, "*places"]
    best_ids: Int[Array, "*places k"]
    best_logprobs: Float[Array, "*places k"]


def score_tokens(logits: Float[Array, "*places V"], tokens: Int[Array, "*places"], best: int) -> TokenScores:
    """Scores of `tokens` under `logits`, and the `best` tokens of the vocabulary at each place."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)
    rank = 1 + jnp.sum(logprobs > chosen, axis=-1, dtype=jnp.int32)
    best_logprobs, best_ids = lax.top_k(logprobs, best)
    return TokenScores(logprob=chosen[..., 0], rank=rank, best_ids=best_ids, best_logprobs=best_logprobs)


def empty_scores(places: tuple[int, ...], best: int) -> TokenScores:
    """Zeros in the shapes of `score_tokens` for as many places."""
    real, whole = jnp.zeros(places, jnp.float32), jnp.zeros(places, jnp.int32)
    best_ids, best_logprobs = jnp.zeros((*places, best), jnp.int32), jnp.zeros((*places, best), jnp.float32)
    return TokenScores(logprob=real, rank=whole, best_ids=best_ids, best_logprobs=best_logprobs)


def scores_at(scores: TokenScores, place: int | tuple[int | slice, ...]) -> TokenScores:
    """The scores of one place, or of some."""
    return jax.tree.map(lambda leaf: leaf[place], scores)


def score_hidden(
    model: Transformer, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], best: int
) -> TokenScores:
    """Scores of `targets`, the tokens that follow each position, without all T x V logits at once."""
    b, t, d = hidden.shape
    block = min(t, POSITIONS_PER_BLOCK)
    blocks = (hidden.reshape(b, t // block, block, d).swapaxes(0, 1), targets.reshape(b, -1, block).swapaxes(0, 1))

    def one_block(part: tuple[Array, Array]) -> TokenScores:
        hidden, targets = part
        return model.parallel.map_sequences(partial(score_tokens, best=best), model.logits(hidden), targets)

    scores = lax.map(one_block, blocks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, t, *x.shape[3:]), scores)
