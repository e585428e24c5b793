"""The four compiled functions of decoding: feed prompts, admit rows, generate tokens, and score for checks.

Each is a pure function of a merged `Mixtral` and arrays. Shapes: Bg rows of a prefill group, R rows being admitted,
B rows of the decode state, T prompt tokens of one call, V vocabulary, L layers, A experts per token.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax.cache import KVCache, copy_rows, empty_cache
from moejax.decoding.buckets import STEPS_PER_CALL
from moejax.decoding.logprobs import TokenScores, score_hidden, score_tokens
from moejax.decoding.sampling import choose, forbid_stops, penalize
from moejax.decoding.state import DecodeState, Features, RowParams
from moejax.model import Mixtral


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one step generated. None where it was not asked for.

    token: -1 for rows that were not active.  scores: of the token among the raw logits.
    experts: int16 [B, L, A], of the token that was fed, E for rows that were not active.
    """

    token: Int[Array, "*steps B"]
    scores: TokenScores | None
    experts: Int[Array, "*steps B L A"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What is reported of a part of the prompts. None where it was not asked for.

    scores: [Bg, T], of the token after each position.  experts: int16 [Bg, T, L, A].
    """

    scores: TokenScores | None
    experts: Int[Array, "Bg T L A"] | None


def prefill(
    model: Mixtral,
    report_experts: bool,
    prompt_logprobs: int | None,
    cache: KVCache,
    logits: Float[Array, "Bg V"],
    tokens: Int[Array, "Bg T"],
    targets: Int[Array, "Bg T"],
    start: Int[Array, ""],
    lengths: Int[Array, " Bg"],
) -> tuple[KVCache, Float[Array, "Bg V"], PromptReport]:
    """Feeds positions `start` to `start` + T of prompts that are `lengths` long.

    `logits` are those after the last tokens of prompts, as far as fed; those that this part brings are filled in.
    `targets` are the tokens one place on.
    """
    batch, width = tokens.shape
    here = jnp.clip(lengths - start, 0, width)
    hidden, cache, experts = model(tokens, jnp.broadcast_to(start, (batch,)), here, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(here - 1, 0)[:, None, None], axis=1)[:, 0]
    ends_here = (lengths > start) & (lengths <= start + width)
    logits = jnp.where(ends_here[:, None], model.logits(last), logits)
    return (
        cache,
        logits,
        PromptReport(
            scores=None if prompt_logprobs is None else score_hidden(model.logits, hidden, targets, prompt_logprobs),
            experts=experts.astype(jnp.int16) if report_experts else None,
        ),
    )


def admit(
    features: Features,
    state: DecodeState,
    cache: KVCache,
    logits: Float[Array, "Bg V"],
    sources: Int[Array, " R"],
    rows: Int[Array, " R"],
    lengths: Int[Array, " R"],
    in_prompt: Bool[Array, "R V"],
    params: RowParams,
) -> tuple[DecodeState, StepOutput]:
    """Puts prefilled prompts into rows of the state and generates each row's first token.

    Row `rows[i]` becomes a copy of prefilled row `sources[i]`, whose prompt is `lengths[i]` long; a row number past
    the end of the state is padding.
    """
    logits = logits[sources]
    count = rows.shape[0]
    fresh = DecodeState(
        cache=(),
        token=jnp.zeros((count,), jnp.int32),
        position=lengths - 1,  # of the last token fed; `_accept` moves on by one
        generated=jnp.zeros((count,), jnp.int32),
        active=rows < state.token.shape[0],
        in_prompt=in_prompt,
        in_output=jnp.zeros(in_prompt.shape, jnp.int32),
        params=params,
    )
    fresh, output = _accept(fresh, logits, features)
    whole = jax.tree.map(lambda cached: cached[sources], cache)
    merged = jax.tree.map(
        lambda old, new: old.at[rows].set(new, mode="drop"), dataclasses.replace(state, cache=()), fresh
    )
    return dataclasses.replace(merged, cache=copy_rows(state.cache, whole, rows)), output


def generate(
    model: Mixtral, features: Features, state: DecodeState, cancelled: Bool[Array, " B"], steps: Int[Array, ""]
) -> tuple[DecodeState, StepOutput, Int[Array, ""]]:
    """Up to `steps` (at most STEPS_PER_CALL) tokens for every active row that is not `cancelled`.

    Stops early when no row is active. Returns the state, outputs [STEPS_PER_CALL, ...] and the steps taken.
    """
    state = dataclasses.replace(state, active=state.active & ~cancelled)
    shapes = jax.eval_shape(lambda s: _step(model, features, s)[1], state)
    outputs = jax.tree.map(lambda leaf: jnp.zeros((STEPS_PER_CALL, *leaf.shape), leaf.dtype), shapes)

    def unfinished(carry: tuple[DecodeState, StepOutput, Array]) -> Array:
        return (carry[2] < steps) & jnp.any(carry[0].active)

    def one_step(carry: tuple[DecodeState, StepOutput, Array]) -> tuple[DecodeState, StepOutput, Array]:
        state, outputs, taken = carry
        state, output = _step(model, features, state)
        outputs = jax.tree.map(lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, taken, 0), outputs, output)
        return state, outputs, taken + 1

    return lax.while_loop(unfinished, one_step, (state, outputs, jnp.zeros((), jnp.int32)))


def full_logits(model: Mixtral, tokens: Int[Array, "B T"], length: Int[Array, " B"]) -> Float[Array, "B T V"]:
    """Logits at every position, teacher-forced."""
    batch, width = tokens.shape
    dtype = model.embed.table[...].dtype
    cache = empty_cache(model.config, batch, width, dtype)
    hidden, _, _ = model(tokens, jnp.zeros((batch,), jnp.int32), length, cache)
    return model.logits(hidden)


def _step(model: Mixtral, features: Features, state: DecodeState) -> tuple[DecodeState, StepOutput]:
    """Feeds each row's last token and generates its next one."""
    hidden, cache, experts = model(state.token[:, None], state.position, state.active.astype(jnp.int32), state.cache)
    with jax.named_scope("sample"):
        state, output = _accept(dataclasses.replace(state, cache=cache), model.logits(hidden[:, 0]), features)
    if features.experts:
        output = dataclasses.replace(output, experts=experts[:, 0].astype(jnp.int16))
    return state, output


def _accept(state: DecodeState, logits: Float[Array, "B V"], features: Features) -> tuple[DecodeState, StepOutput]:
    """Chooses each row's next token and decides whether the row ends with it."""
    params, adjusted = state.params, logits
    if features.penalize:
        adjusted = penalize(adjusted, state.in_prompt, state.in_output, params)
    if features.min_tokens:
        adjusted = forbid_stops(adjusted, state.generated < params.min_tokens, params)
    token = choose(adjusted, state.generated, params, features)
    generated = state.generated + 1
    ended = jnp.any(token[:, None] == params.stop_ids, axis=1) | (generated >= params.max_tokens)
    in_output = state.in_output
    if features.penalize:
        in_output = in_output + jax.nn.one_hot(token, in_output.shape[1], dtype=jnp.int32)
    advanced = state.active.astype(jnp.int32)
    output = StepOutput(
        token=jnp.where(state.active, token, -1),
        scores=None if features.logprobs is None else score_tokens(logits, token, features.logprobs),
        experts=None,
    )
    return dataclasses.replace(
        state,
        token=jnp.where(state.active, token, state.token),
        position=state.position + advanced,
        generated=state.generated + advanced,
        active=state.active & ~ended,
        in_output=in_output,
    ), output
