"""How fast an answer has to be: the most seconds to the first token, and of each token after it. Imports no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real

from moejax.planning.units import SECONDS, amount

SHORTEST, LONGEST = 1e-9, 1e9  # seconds that somebody may ask for


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is asked of a split; both are inclusive, and None asks nothing.

    ttft: seconds until the whole batch has its first token.  tpot: seconds of a decode step, which is a token of each
    sequence.

    Raises:
        ValueError: for anything but seconds between SHORTEST and LONGEST.
    """

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.asked.items():
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if not number or not SHORTEST <= limit <= LONGEST:
                wanted = f"seconds above 0, {SHORTEST:g} to {LONGEST:g}"
                raise ValueError(f"{name} must be {wanted}, as in 0.02 for 20 ms, got {limit!r:.80}")
            object.__setattr__(self, name, float(limit))

    def __bool__(self) -> bool:
        return bool(self.asked)

    def __str__(self) -> str:
        """As in "TTFT 200 ms and TPOT 20.0 ms"."""
        return " and ".join(f"{name.upper()} {amount(limit, SECONDS)}" for name, limit in self.asked.items())

    @property
    def asked(self) -> dict[str, float]:
        """The limits that were given."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def misses(self, took: Mapping[str, float]) -> dict[str, float]:
        """Seconds by which `took` exceeds each limit that it exceeds; empty where it exceeds none."""
        return {name: took[name] - limit for name, limit in self.asked.items() if took[name] > limit}

    def worst(self, took: Mapping[str, float]) -> float:
        """What `took` is in multiples of its limit, the worst of them; at most 1 where every target is met."""
        return max((took[name] / limit for name, limit in self.asked.items()), default=0.0)
