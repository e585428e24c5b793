"""From logits to a token: nothing here mixes two sequences. All but `best_tokens` sees whole vocabularies."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax.decoding.outputs import NOT_FINITE
from moejax.decoding.state import Features, SamplingState
from moejax.moe.parallel import Parallel


def penalize(
    logits: Float[Array, "B V"], in_prompt: Bool[Array, "B V"], in_output: Int[Array, "B V"], sampling: SamplingState
) -> Float[Array, "B V"]:
    """Repetition penalty over prompt and output, then frequency and presence penalties over the output."""
    repetition = sampling.repetition_penalty[:, None]
    penalized = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(in_prompt | (in_output > 0), penalized, logits)
    logits = logits - sampling.frequency_penalty[:, None] * in_output.astype(jnp.float32)
    return logits - sampling.presence_penalty[:, None] * (in_output > 0).astype(jnp.float32)


def add_biases(logits: Float[Array, "B V"], sampling: SamplingState) -> Float[Array, "B V"]:
    """Logits with each sequence's biases of tokens."""
    ids = jnp.where(sampling.bias_ids < 0, logits.shape[1], sampling.bias_ids)  # past the end: dropped
    return jax.vmap(lambda row, at, bias: row.at[at].add(bias, mode="drop"))(logits, ids, sampling.biases)


def forbid_stops(
    logits: Float[Array, "B V"], too_early: Bool[Array, " B"], sampling: SamplingState
) -> Float[Array, "B V"]:
    """-inf for the stop ids of sequences that are `too_early` to end."""
    ids = jnp.where(too_early[:, None], sampling.stop_ids, -1)
    stops = jnp.where(ids < 0, logits.shape[1], ids)  # past the end: dropped
    return jax.vmap(lambda row, at: row.at[at].set(-jnp.inf, mode="drop"))(logits, stops)


def keep_probable(scaled: Float[Array, "B V"], sampling: SamplingState) -> Float[Array, "B V"]:
    """-inf for tokens that min_p, then top_k, then top_p (of what top_k leaves) exclude. Ties at a bound stay."""
    floor = jnp.max(scaled, axis=-1) + jnp.log(sampling.min_p)  # log 0 = -inf excludes nothing
    scaled = jnp.where(scaled < floor[:, None], -jnp.inf, scaled)
    descending = -jnp.sort(-scaled, axis=-1)
    vocabulary = scaled.shape[1]
    last = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, vocabulary), vocabulary) - 1
    kth = jnp.take_along_axis(descending, last[:, None], axis=-1)
    probabilities = jax.nn.softmax(jnp.where(descending < kth, -jnp.inf, descending), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    top_p = sampling.top_p[:, None]
    best = jnp.arange(vocabulary)[None, :] == 0  # stays even if top_p rounds to 0
    inside = ((before < top_p) | (top_p >= 1) | best) & (descending >= kth)  # at 1 also tokens that round to 0
    bound = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled < bound, -jnp.inf, scaled)


def first_highest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """`jnp.argmax`, the first NaN included, as two passes that XLA:CPU has vectors for: a tenth of the time."""
    vocabulary = logits.shape[-1]
    best = (logits == jnp.max(logits, axis=-1, keepdims=True)) | jnp.isnan(logits)
    return jnp.min(jnp.where(best, jnp.arange(vocabulary, dtype=jnp.int32), vocabulary), axis=-1)


def finite_best(logits: Float[Array, "B V"]) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """`first_highest`, and whether the logit there is a number. None of a row's is NaN or +inf then; -inf forbids."""
    best = first_highest(logits)
    return best, jnp.isfinite(_at(logits, best))


def best_tokens(parallel: Parallel, logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Each sequence's most probable token, the lowest of equal ones, from logits whose vocabulary may be split.

    NOT_FINITE where the best logit is no number. Each device sends its best token and that one's logit, not all its
    logits.
    """
    axes = parallel.axes("vocab")

    def body(logits: Float[Array, "Bl Vl"]) -> Int[Array, " Bl"]:
        best, finite = finite_best(logits)
        if not axes:
            return jnp.where(finite, best, NOT_FINITE)
        values = lax.all_gather(_at(logits, best), axes)  # parts Bl
        tokens = lax.all_gather(best + lax.axis_index(axes) * logits.shape[1], axes)
        part, finite = finite_best(values.T)
        return jnp.where(finite, jnp.take_along_axis(tokens, part[None], axis=0)[0], NOT_FINITE)

    return parallel.map(body, (parallel.spec("batch", "vocab"),), parallel.spec("batch"))(logits)


def choose(
    logits: Float[Array, "B V"], generated: Int[Array, " B"], sampling: SamplingState, features: Features
) -> Array:
    """The next token of each sequence: the best one at temperature 0, else a sample. int32 [B].

    NOT_FINITE where the best logit is no number, which would make a sample of nothing look like an answer.
    A sequence's random numbers depend on its key and on how many tokens it has generated, and on nothing else.
    """
    best, finite = finite_best(logits)
    if not features.sample:
        return jnp.where(finite, best, NOT_FINITE)
    greedy = sampling.temperature == 0
    temperature = jnp.where(greedy, 1.0, sampling.temperature)[:, None]
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature  # at most 0: a tiny temperature is safe
    if features.filter:
        scaled = keep_probable(scaled, sampling)
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(sampling.key), generated)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    chosen = jnp.where(greedy, best, jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32))
    return jnp.where(finite, chosen, NOT_FINITE)


def _at(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
