"""The compiled functions of decoding: feed prompts into their slots, generate tokens, and score for checks.

Each is a pure function of a merged `Transformer` and arrays, which live on the mesh as `place_state` and the model's
rules say; what the host reads is whole on every device. Shapes: B slots of the decode state, Bg prompts of one feeding
call, R slots that it fills, T tokens of each, V vocabulary, L layers, A experts per token, d groups of devices that
together hold all experts.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax.decoding.logprobs import TokenScores, empty_scores, score_hidden, score_tokens
from moejax.decoding.outputs import NOT_ACTIVE, NOT_FINITE, Generated, PromptReport, StepOutput
from moejax.decoding.sampling import add_biases, best_tokens, choose, forbid_stops, penalize
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import DecodeState, Features, SamplingState, place_state
from moejax.families.config import ModelConfig
from moejax.model.cache import KVCache, place_cache, put_sequences, reading, take_sequences
from moejax.model.model import Transformer
from moejax.moe.layer import Routed
from moejax.moe.parallel import Parallel
from moejax.runtime.buckets import STEPS_PER_CALL


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Parts of prompts, and the slots that they fill.

    tokens: of each part.  next_tokens: the same, one place on.  starts: where each part begins in its prompt.
    lengths: of the whole prompts; 0 for padding.  sources: slots that hold what is before each part.
    fed: which prompt each filled slot gets.  slots: their numbers; one past the end of the state is padding.
    in_prompt: which tokens the prompts have, [R, 0] where no sequence is penalised.
    sampling: the sampling parameters of the sequences in the slots.
    """

    tokens: Int[Array, "Bg T"]
    next_tokens: Int[Array, "Bg T"]
    starts: Int[Array, " Bg"]
    lengths: Int[Array, " Bg"]
    sources: Int[Array, " Bg"]
    fed: Int[Array, " R"]
    slots: Int[Array, " R"]
    in_prompt: Bool[Array, "R V"]
    sampling: SamplingState


def extend(
    model: Transformer, features: Features, shape: FeedShape, state: DecodeState, feed: Feed
) -> tuple[DecodeState, StepOutput, PromptReport, Int[Array, "d L E"]]:
    """Feeds a part of each of Bg prompts into slots that do not generate yet.

    A slot whose prompt ends with its part gets its first token, and is active from then on. The results are one per
    filled slot; the last one is how many rows each expert computed.
    """
    parallel, width = model.parallel, shape.width
    here = parallel.constrain(jnp.clip(feed.lengths - feed.starts, 0, width))
    hidden, cache, routed = _feed_cache(model, shape, state.cache, feed, here)
    ends = feed.lengths <= feed.starts + width
    # Of the last token fed where a first one follows; `_accept` moves on by one. A slot that is not complete stands
    # where its next part begins: whatever a step writes there for a slot that is not active is overwritten.
    position = jnp.where(ends, feed.lengths - 1, feed.starts + width)
    fresh = DecodeState(
        cache=(),
        token=jnp.zeros_like(feed.fed),
        position=position[feed.fed],
        generated=jnp.zeros_like(feed.fed),
        active=ends[feed.fed] & (feed.slots < state.token.shape[0]),
        in_prompt=feed.in_prompt,
        in_output=jnp.zeros(feed.in_prompt.shape, jnp.int32),
        sampling=feed.sampling,
    )
    with jax.named_scope("sample"):
        logits = model.logits(parallel.map_sequences(_last_of_each, hidden, here))
        logits = parallel.constrain(logits if shape.one_each else logits[feed.fed], "batch", "vocab")
        fresh, output = _accept(parallel, fresh, logits, features)
    if features.experts:
        last = jnp.maximum(here - 1, 0)[:, None, None, None]
        experts = jnp.take_along_axis(routed.experts, last, axis=1)[:, 0].astype(jnp.int16)
        output = dataclasses.replace(output, experts=experts if shape.one_each else experts[feed.fed])
    report = PromptReport(
        scores=None if shape.logprobs is None else score_hidden(model, hidden, feed.next_tokens, shape.logprobs),
        experts=routed.experts.astype(jnp.int16) if shape.experts else None,
    )
    merged = jax.tree.map(
        lambda old, new: old.at[feed.slots].set(new, mode="drop"), dataclasses.replace(state, cache=()), fresh
    )
    merged = dataclasses.replace(merged, cache=cache)
    return place_state(merged, parallel), *parallel.constrain((output, report, routed.rows))


def _feed_cache(
    model: Transformer, shape: FeedShape, cache: KVCache, feed: Feed, here: Int[Array, " Bg"]
) -> tuple[Float[Array, "Bg T D"], KVCache, Routed]:
    """The forward pass over parts of prompts, and the state's cache with them in it.

    In place, prompt i is in slot i. Otherwise they are fed in a cache of their own, a copy of their first positions,
    which is then copied to every slot that gets it: no slot beside those is read or written.
    """
    if shape.in_place:
        hidden, fed, routed = model(feed.tokens, feed.starts, here, reading(cache, shape.positions))
        return hidden, reading(fed, None), routed
    own = place_cache(take_sequences(cache, feed.sources, shape.positions), model.parallel)
    hidden, own, routed = model(feed.tokens, feed.starts, here, own)
    if not shape.one_each:
        own = take_sequences(own, feed.fed, shape.positions)
    return hidden, put_sequences(cache, own, feed.slots), routed


def generate(
    model: Transformer,
    features: Features,
    state: DecodeState,
    cancelled: Bool[Array, " B"],
    steps: Int[Array, ""],
    least: Int[Array, ""],
    positions: int | None = None,
) -> tuple[DecodeState, Generated]:
    """Up to `steps` (at most STEPS_PER_CALL) tokens for every active sequence that is not `cancelled`.

    Stops early when `least` slots or fewer would do for those that are still active, as many in each part of the
    batch. Active sequences have to stay within the first `positions` positions of the cache.
    """
    parallel, config = model.parallel, model.config
    state = dataclasses.replace(state, active=state.active & ~cancelled, cache=reading(state.cache, positions))
    parts = parallel.rules.parts("batch")
    layers, places = model.placement.get_value().shape[0], model.placement.get_value().shape[-1]
    rows = jnp.zeros((parallel.rules.parts("groups"), layers, places), jnp.int32)
    nothing = Generated(
        outputs=_place_outputs(_no_output(config, features, state.token.shape[0]), parallel),
        taken=jnp.zeros((), jnp.int32),
        rows=parallel.constrain(rows, "groups", None, "experts"),
    )

    def unfinished(carry: tuple[DecodeState, Generated]) -> Array:
        active = carry[0].active.reshape(parts, -1).sum(axis=1, dtype=jnp.int32)
        return (carry[1].taken < steps) & (parts * jnp.max(active) > least)

    def one_step(carry: tuple[DecodeState, Generated]) -> tuple[DecodeState, Generated]:
        state, so_far = carry
        state, output, rows = _step(model, features, place_state(state, parallel))
        outputs = jax.tree.map(
            lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, so_far.taken, 0), so_far.outputs, output
        )
        return place_state(state, parallel), Generated(
            outputs=_place_outputs(outputs, parallel),
            taken=so_far.taken + 1,
            rows=so_far.rows + rows,
        )

    state, generated = lax.while_loop(unfinished, one_step, (place_state(state, parallel), nothing))
    return dataclasses.replace(state, cache=reading(state.cache, None)), parallel.constrain(generated)


def _step(
    model: Transformer, features: Features, state: DecodeState
) -> tuple[DecodeState, StepOutput, Int[Array, "d L E"]]:
    """Feeds each sequence's last token and generates its next one; the last result is what each expert computed."""
    hidden, cache, routed = model(state.token[:, None], state.position, state.active.astype(jnp.int32), state.cache)
    with jax.named_scope("sample"):
        logits = model.logits(hidden[:, 0])
        state, output = _accept(model.parallel, dataclasses.replace(state, cache=cache), logits, features)
    if features.experts:
        output = dataclasses.replace(output, experts=routed.experts[:, 0].astype(jnp.int16))
    return state, output, routed.rows


def _accept(
    parallel: Parallel, state: DecodeState, logits: Float[Array, "B V"], features: Features
) -> tuple[DecodeState, StepOutput]:
    """Chooses each sequence's next token and decides whether it ends with it."""
    in_output = state.in_output
    if features.greedy:
        token, scores = best_tokens(parallel, logits), None
    else:
        # Without penalties there are no counts. XLA of JAX 0.11 crashes on the empty arrays that would be split here.
        seen = (state.in_prompt, state.in_output) if features.penalize else None
        on_device = partial(_choose_on_device, features=features)
        token, counts, scores = parallel.map_sequences(on_device, logits, seen, state.generated, state.sampling)
        in_output = in_output if counts is None else counts
    token = parallel.constrain(token)
    generated, sampling = state.generated + 1, state.sampling
    failed = token == NOT_FINITE
    ended = jnp.any(token[:, None] == sampling.stop_ids, axis=1) | (generated >= sampling.max_tokens) | failed
    advanced = state.active.astype(jnp.int32)
    output = StepOutput(
        token=parallel.constrain(jnp.where(state.active, token, NOT_ACTIVE)), scores=scores, experts=None
    )
    return dataclasses.replace(
        state,
        token=jnp.where(state.active & ~failed, token, state.token),
        position=state.position + advanced,
        generated=state.generated + advanced,
        active=state.active & ~ended,
        in_output=in_output,
    ), output


def _choose_on_device(
    logits: Float[Array, "Bl V"],
    seen: tuple[Bool[Array, "Bl V"], Int[Array, "Bl V"]] | None,
    generated: Int[Array, " Bl"],
    sampling: SamplingState,
    *,
    features: Features,
) -> tuple[Int[Array, " Bl"], Int[Array, "Bl V"] | None, TokenScores | None]:
    """One device's sequences with their whole vocabulary: next tokens, occurrences with them, and their scores.

    seen: which tokens the prompts have, and how often the outputs; None where no sequence is penalised.
    """
    adjusted = logits
    if seen is not None:
        adjusted = penalize(adjusted, *seen, sampling)
    if features.biases:
        adjusted = add_biases(adjusted, sampling)
    if features.min_tokens:
        adjusted = forbid_stops(adjusted, generated < sampling.min_tokens, sampling)
    token = choose(adjusted, generated, sampling, features)
    counts = None if seen is None else seen[1] + jax.nn.one_hot(token, seen[1].shape[1], dtype=jnp.int32)
    scores = None if features.logprobs is None else score_tokens(logits, token, features.logprobs)
    return token, counts, scores


def _no_output(config: ModelConfig, features: Features, batch: int) -> StepOutput:
    """Room for the outputs of all steps of a call."""
    steps = (STEPS_PER_CALL, batch)
    experts = jnp.zeros((*steps, len(config.moe_layers), config.experts_per_token), jnp.int16)
    return StepOutput(
        token=jnp.zeros(steps, jnp.int32),
        scores=None if features.logprobs is None else empty_scores(steps, features.logprobs),
        experts=experts if features.experts else None,
    )


def _place_outputs(outputs: StepOutput, parallel: Parallel) -> StepOutput:
    """Outputs while steps are taken: tokens are whole on every device, reports stay with their sequences."""
    reports = dataclasses.replace(outputs, token=None)
    placed = parallel.constrain(reports, None, "batch")
    return dataclasses.replace(placed, token=parallel.constrain(outputs.token))


def _last_of_each(hidden: Float[Array, "Bl T D"], lengths: Int[Array, " Bl"]) -> Float[Array, "Bl D"]:
    """The hidden state of each sequence's last real token."""
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
