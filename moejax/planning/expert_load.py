"""How often each expert was chosen while real prompts were decoded. Imports no JAX."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

RECORD = "moejax decode CHECKPOINT --prompt TEXT --save-expert-load FILE"


@dataclass(frozen=True, kw_only=True)
class ExpertLoad:
    """Rows that each expert of each layer computed.

    model: the name it was recorded from.  tokens: fed to the model, of prompts and outputs.
    counts: [L][E]; every layer's add up to tokens x experts_per_token.
    """

    model: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    tokens: int
    counts: tuple[tuple[int, ...], ...]


def read_expert_load(path: str | Path) -> ExpertLoad:
    """The load in a JSON file, an object with the fields of `ExpertLoad`.

    Raises:
        ValueError: when it is missing or holds anything else, in one line that names it.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); record one with: {RECORD}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); record it again with: {RECORD}") from error
    names = {field.name for field in dataclasses.fields(ExpertLoad)}
    if not isinstance(raw, dict) or set(raw) != names:
        raise ValueError(f"{path}: expected an object with {', '.join(sorted(names))}; record one with: {RECORD}")
    sizes = {name: raw[name] for name in names - {"model", "counts"}}
    if wrong := [name for name, value in sizes.items() if type(value) is not int or value < 1]:
        raise ValueError(f"{path}: {wrong[0]} must be a positive whole number, got {raw[wrong[0]]!r:.60}")
    counts = raw["counts"]
    rows = raw["tokens"] * raw["experts_per_token"]
    if (
        not isinstance(counts, list)
        or len(counts) != raw["num_layers"]
        or not all(isinstance(layer, list) and len(layer) == raw["num_experts"] for layer in counts)
        or not all(type(count) is int and 0 <= count <= raw["tokens"] for layer in counts for count in layer)
        or not all(sum(layer) == rows for layer in counts)
    ):
        raise ValueError(
            f"{path}: counts must be num_layers lists of num_experts counts, each list adding up to "
            f"tokens x experts_per_token = {rows}; record it again with: {RECORD}"
        )
    return ExpertLoad(**sizes, model=str(raw["model"]), counts=tuple(tuple(layer) for layer in counts))
