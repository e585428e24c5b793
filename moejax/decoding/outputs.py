"""What compiled steps hand to the host."""

import dataclasses

import jax
from jax import Array
from jaxtyping import Int

from moejax.decoding.logprobs import TokenScores

# In place of a token: the slot was not active, or the best of its logits is NaN or infinite.
NOT_ACTIVE, NOT_FINITE = -1, -2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one step generated. None where it was not asked for.

    token: NOT_ACTIVE or NOT_FINITE where there is none.  scores: of the token among the raw logits.
    experts: int16 [B, L, A], of the token that was fed, E for slots that were not active.
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

    scores: [Bg, T] for Bg prompts, of the token after each position.  experts: int16 [Bg, T, L, A].
    """

    scores: TokenScores | None
    experts: Int[Array, "Bg T L A"] | None
