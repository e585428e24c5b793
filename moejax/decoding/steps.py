"""The compiled functions of decoding: feed prompts, admit rows, generate tokens, and score for checks.

`decode` feeds all prompts of a batch (`prefill`) and then gives each its row (`admit`). A server's rows come and go: it
feeds parts of prompts straight into their rows (`extend`) between calls of `generate`, which is the same for both.

Each is a pure function of a merged `Mixtral` and arrays, which live on the mesh as `place_state` and the model's rules
say; what the host reads is whole on every device. Shapes: Bg rows of a prefill group, R rows being admitted, B rows of
the decode state, T prompt tokens of one call, V vocabulary, L layers, A experts per token, d groups of devices that
together hold all experts.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax.decoding.logprobs import TokenScores, empty_scores, score_hidden, score_tokens
from moejax.decoding.sampling import best_tokens, choose, forbid_stops, penalize
from moejax.decoding.state import DecodeState, Features, RowParams, place_state
from moejax.families.config import ModelConfig
from moejax.model.cache import KVCache, copy_rows, empty_cache, place_cache, put_rows, reading, take_rows
from moejax.model.model import Mixtral
from moejax.moe.parallel import Parallel
from moejax.runtime.buckets import STEPS_PER_CALL


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
class Generated:
    """What one call of `generate` did: `outputs` [STEPS_PER_CALL, ...], of which the first `taken` steps are real.

    rows: that each expert computed, for each group of devices.
    """

    outputs: StepOutput
    taken: Int[Array, ""]
    rows: Int[Array, "d L E"]


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
) -> tuple[KVCache, Float[Array, "Bg V"], PromptReport, Int[Array, "d L E"]]:
    """Feeds positions `start` to `start` + T of prompts that are `lengths` long.

    `logits` are those after the last tokens of prompts, as far as fed; those that this part brings are filled in.
    `targets` are the tokens one place on. The last result is how many rows each expert computed.
    """
    parallel = model.parallel
    batch, width = tokens.shape
    here = parallel.constrain(jnp.clip(lengths - start, 0, width))
    hidden, cache, routed = model(tokens, jnp.broadcast_to(start, (batch,)), here, cache)
    last = parallel.map_rows(_last_of_each, hidden, here)
    ends_here = (lengths > start) & (lengths <= start + width)
    logits = jnp.where(ends_here[:, None], model.logits(last), logits)
    report = PromptReport(
        scores=None if prompt_logprobs is None else score_hidden(model, hidden, targets, prompt_logprobs),
        experts=routed.experts.astype(jnp.int16) if report_experts else None,
    )
    return cache, parallel.constrain(logits, "batch", "vocab"), *parallel.constrain((report, routed.rows))


def admit(
    parallel: Parallel,
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
    logits = parallel.constrain(logits[sources], "batch", "vocab")
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
    fresh, output = _accept(parallel, fresh, logits, features)
    whole = jax.tree.map(lambda cached: cached[sources], cache)
    merged = jax.tree.map(
        lambda old, new: old.at[rows].set(new, mode="drop"), dataclasses.replace(state, cache=()), fresh
    )
    merged = dataclasses.replace(merged, cache=copy_rows(state.cache, whole, rows))
    return place_state(merged, parallel), parallel.constrain(output)


def extend(
    model: Mixtral,
    features: Features,
    slots: int,
    state: DecodeState,
    tokens: Int[Array, "Bg T"],
    starts: Int[Array, " Bg"],
    lengths: Int[Array, " Bg"],
    sources: Int[Array, " Bg"],
    rows: Int[Array, " Bg"],
    in_prompt: Bool[Array, "Bg V"],
    params: RowParams,
) -> tuple[DecodeState, StepOutput, Int[Array, "d L E"]]:
    """Feeds a part of each of Bg prompts: positions `starts` to `starts` + T, in rows that do not generate yet.

    What came before is in row `sources[i]` of the state, the result is in row `rows[i]`, in their first `slots` slots,
    which must hold `starts` + T. A prompt that is `lengths[i]` long and ends here gets its first token, and its row is
    active from then on. A row number past the end of the state is padding. The last result is how many rows each
    expert computed.
    """
    parallel, width = model.parallel, tokens.shape[1]
    here = parallel.constrain(jnp.clip(lengths - starts, 0, width))
    cache = place_cache(take_rows(state.cache, sources, slots), parallel)
    hidden, cache, routed = model(tokens, starts, here, cache)
    ends = lengths <= starts + width
    fresh = DecodeState(
        cache=(),
        token=jnp.zeros_like(lengths),
        # Of the last token fed where a first one follows; `_accept` moves on by one. A row that is not complete stands
        # where its next part begins: whatever a step writes there for a row that is not active is overwritten.
        position=jnp.where(ends, lengths - 1, starts + width),
        generated=jnp.zeros_like(lengths),
        active=ends & (rows < state.token.shape[0]),
        in_prompt=in_prompt,
        in_output=jnp.zeros(in_prompt.shape, jnp.int32),
        params=params,
    )
    logits = parallel.constrain(model.logits(parallel.map_rows(_last_of_each, hidden, here)), "batch", "vocab")
    fresh, output = _accept(parallel, fresh, logits, features)
    if features.experts:
        last = jnp.maximum(here - 1, 0)[:, None, None, None]
        experts = jnp.take_along_axis(routed.experts, last, axis=1)[:, 0]
        output = dataclasses.replace(output, experts=experts.astype(jnp.int16))
    merged = jax.tree.map(
        lambda old, new: old.at[rows].set(new, mode="drop"), dataclasses.replace(state, cache=()), fresh
    )
    merged = dataclasses.replace(merged, cache=put_rows(state.cache, cache, rows))
    return place_state(merged, parallel), *parallel.constrain((output, routed.rows))


def generate(
    model: Mixtral,
    features: Features,
    state: DecodeState,
    cancelled: Bool[Array, " B"],
    steps: Int[Array, ""],
    slots: int | None = None,
) -> tuple[DecodeState, Generated]:
    """Up to `steps` (at most STEPS_PER_CALL) tokens for every active row that is not `cancelled`.

    Stops early when no row is active. Active rows have to stay within the first `slots` slots of the cache.
    """
    parallel, config = model.parallel, model.config
    state = dataclasses.replace(state, active=state.active & ~cancelled, cache=reading(state.cache, slots))
    rows = jnp.zeros((parallel.rules.parts("groups"), config.num_layers, config.num_experts), jnp.int32)
    nothing = Generated(
        outputs=_place_outputs(_no_output(config, features, state.token.shape[0]), parallel),
        taken=jnp.zeros((), jnp.int32),
        rows=parallel.constrain(rows, "groups", None, "experts"),
    )

    def unfinished(carry: tuple[DecodeState, Generated]) -> Array:
        return (carry[1].taken < steps) & jnp.any(carry[0].active)

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


def full_logits(model: Mixtral, tokens: Int[Array, "B T"], length: Int[Array, " B"]) -> Float[Array, "B T V"]:
    """Logits at every position, teacher-forced."""
    batch, width = tokens.shape
    dtype = model.embed.table[...].dtype
    cache = empty_cache(model.config, batch, width, dtype, model.parallel)
    hidden, _, _ = model(tokens, jnp.zeros((batch,), jnp.int32), length, cache)
    return model.parallel.constrain(model.logits(hidden))


def _step(
    model: Mixtral, features: Features, state: DecodeState
) -> tuple[DecodeState, StepOutput, Int[Array, "d L E"]]:
    """Feeds each row's last token and generates its next one; the last result is what each expert computed."""
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
    """Chooses each row's next token and decides whether the row ends with it."""
    if features.greedy:
        token, in_output, scores = best_tokens(parallel, logits), state.in_output, None
    else:
        token, in_output, scores = parallel.map_rows(
            partial(_choose_row_by_row, features=features),
            logits,
            state.in_prompt,
            state.in_output,
            state.generated,
            state.params,
        )
    token = parallel.constrain(token)
    generated, params = state.generated + 1, state.params
    ended = jnp.any(token[:, None] == params.stop_ids, axis=1) | (generated >= params.max_tokens)
    advanced = state.active.astype(jnp.int32)
    output = StepOutput(token=parallel.constrain(jnp.where(state.active, token, -1)), scores=scores, experts=None)
    return dataclasses.replace(
        state,
        token=jnp.where(state.active, token, state.token),
        position=state.position + advanced,
        generated=state.generated + advanced,
        active=state.active & ~ended,
        in_output=in_output,
    ), output


def _choose_row_by_row(
    logits: Float[Array, "Bl V"],
    in_prompt: Bool[Array, "Bl V"],
    in_output: Int[Array, "Bl V"],
    generated: Int[Array, " Bl"],
    params: RowParams,
    *,
    features: Features,
) -> tuple[Int[Array, " Bl"], Int[Array, "Bl V"], TokenScores | None]:
    """One device's rows with their whole vocabulary: the next tokens, the occurrences with them, and their scores."""
    adjusted = logits
    if features.penalize:
        adjusted = penalize(adjusted, in_prompt, in_output, params)
    if features.min_tokens:
        adjusted = forbid_stops(adjusted, generated < params.min_tokens, params)
    token = choose(adjusted, generated, params, features)
    if features.penalize:
        in_output = in_output + jax.nn.one_hot(token, in_output.shape[1], dtype=jnp.int32)
    scores = None if features.logprobs is None else score_tokens(logits, token, features.logprobs)
    return token, in_output, scores


def _no_output(config: ModelConfig, features: Features, batch: int) -> StepOutput:
    """Room for the outputs of all steps of a call."""
    steps = (STEPS_PER_CALL, batch)
    experts = jnp.zeros((*steps, config.num_layers, config.experts_per_token), jnp.int16)
    return StepOutput(
        token=jnp.zeros(steps, jnp.int32),
        scores=None if features.logprobs is None else empty_scores(steps, features.logprobs),
        experts=experts if features.experts else None,
    )


def _place_outputs(outputs: StepOutput, parallel: Parallel) -> StepOutput:
    """Outputs while steps are taken: tokens are whole on every device, reports stay with their rows until the end."""
    reports = dataclasses.replace(outputs, token=None)
    placed = parallel.constrain(reports, None, "batch")
    return dataclasses.replace(placed, token=parallel.constrain(outputs.token))


def _last_of_each(hidden: Float[Array, "Bl T D"], lengths: Int[Array, " Bl"]) -> Float[Array, "Bl D"]:
    """The hidden state of each row's last real token."""
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
