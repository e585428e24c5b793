"""What a decode step carries from token to token: every leaf has one entry per slot of the running batch (B)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

from moejax.decoding.sampling_params import SamplingParams
from moejax.families.config import ModelConfig
from moejax.model.cache import KVCache, empty_cache, place_cache
from moejax.moe.parallel import Parallel
from moejax.ops import reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What a compiled step can do; what no sequence of the batch asks for is not compiled in.

    sample: some sequence has a temperature.  filter: some sequence uses top_k, top_p or min_p.
    penalize: some sequence has a penalty.  min_tokens: some sequence has min_tokens.
    biases: most biases of logits that a sequence has.
    logprobs: best tokens reported per step, None for no log-probabilities.  experts: routed experts are reported.
    stop_ids: most stop token ids of a sequence, EOS included.
    """

    sample: bool = False
    filter: bool = False
    penalize: bool = False
    biases: int = 0
    min_tokens: bool = False
    logprobs: int | None = None
    experts: bool = False
    stop_ids: int = 1

    @property
    def greedy(self) -> bool:
        """Whether a sequence's best token is all that is asked for."""
        return not (self.sample or self.penalize or self.biases or self.min_tokens) and self.logprobs is None

    def covers(self, params: SamplingParams) -> bool:
        """Whether a step with these features can serve a request."""
        asked = (
            (not params.greedy, self.sample),
            (params.filtered, self.filter),
            (params.penalized, self.penalize),
            (len(params.logit_bias) > 0, self.biases >= len(params.logit_bias)),
            (params.min_tokens > 0, self.min_tokens),
            (params.return_routed_experts, self.experts),
        )
        enough = params.logprobs is None or (self.logprobs is not None and params.logprobs <= self.logprobs)
        return enough and all(there for wanted, there in asked if wanted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingState:
    """Each sequence's sampling parameters. `key` is the data of a random key; ids are padded with -1."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    presence_penalty: Float[Array, " B"]
    frequency_penalty: Float[Array, " B"]
    bias_ids: Int[Array, "B K"]
    biases: Float[Array, "B K"]
    key: UInt32[Array, "B 2"]
    max_tokens: Int[Array, " B"]
    min_tokens: Int[Array, " B"]
    stop_ids: Int[Array, "B M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeState:
    """Everything about the sequences being decoded.

    cache: keys and values of every token fed so far.
    token: the last generated token, which the next step feeds.
    position: where it stands in its sequence.
    generated: tokens generated so far.
    active: whether the slot's sequence goes on; one that does not is padding for the experts.
    in_prompt, in_output: how often each token of the vocabulary occurred; [B, 0] where no sequence is penalised.
    sampling: the sequences' sampling parameters.

    On a mesh, cache and occurrences are split as the batch; what is one number per slot is whole on every device.
    """

    cache: KVCache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    generated: Int[Array, " B"]
    active: Bool[Array, " B"]
    in_prompt: Bool[Array, "B V"]
    in_output: Int[Array, "B V"]
    sampling: SamplingState


def place_state(state: DecodeState, parallel: Parallel) -> DecodeState:
    """The same state, each array where it lives on the mesh."""
    per_slot = dataclasses.replace(state, cache=(), in_prompt=None, in_output=None)
    return dataclasses.replace(
        parallel.constrain(per_slot),
        cache=place_cache(state.cache, parallel),
        in_prompt=parallel.constrain(state.in_prompt, "batch"),
        in_output=parallel.constrain(state.in_output, "batch"),
    )


def empty_state(
    config: ModelConfig,
    features: Features,
    batch: int,
    length: int,
    dtype: jax.typing.DTypeLike,
    parallel: Parallel,
    zeros: Callable[..., tuple[Array, ...]] = reference.zeros,
) -> DecodeState:
    """A state of `batch` free slots with `length` cache positions each; `zeros`: see `Ops.zeros`."""
    vocabulary = config.vocab_size if features.penalize else 0
    whole = jnp.zeros((batch,), jnp.int32)
    real = jnp.zeros((batch,), jnp.float32)
    state = DecodeState(
        cache=empty_cache(config, batch, length, dtype, parallel, zeros),
        token=whole,
        position=whole,
        generated=whole,
        active=jnp.zeros((batch,), bool),
        in_prompt=jnp.zeros((batch, vocabulary), bool),
        in_output=jnp.zeros((batch, vocabulary), jnp.int32),
        sampling=SamplingState(
            temperature=real,
            top_k=whole,
            top_p=real,
            min_p=real,
            repetition_penalty=real,
            presence_penalty=real,
            frequency_penalty=real,
            bias_ids=jnp.full((batch, features.biases), -1, jnp.int32),
            biases=jnp.zeros((batch, features.biases), jnp.float32),
            key=jnp.zeros((batch, 2), jnp.uint32),
            max_tokens=whole,
            min_tokens=whole,
            stop_ids=jnp.full((batch, features.stop_ids), -1, jnp.int32),
        ),
    )
    return place_state(state, parallel)
