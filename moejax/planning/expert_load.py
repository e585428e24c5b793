"""How often each expert was chosen while real prompts were decoded, and the file that says so. Imports no JAX.

`moejax decode --save-expert-load FILE` writes one, `moejax mesh compare --expert-load FILE` reads it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moejax._convert.files import parse_object
from moejax.families.config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEMO_LOAD = Path(__file__).parents[1] / "checkpoints" / "demo" / "expert_load.json"

RECORD = "moejax decode CHECKPOINT --prompt TEXT --save-expert-load FILE"

LARGEST_FILE = 2**24  # bytes; a model of 1,000 layers and 1,000 experts takes half of it


@dataclass(frozen=True, kw_only=True)
class ExpertLoad:
    """Rows that each expert of each layer computed.

    model: the name it was recorded from.  tokens: fed to the model, of prompts and outputs.
    counts: [L][E]; every layer's add up to tokens x experts_per_token.

    Raises:
        ValueError: for sizes or counts that cannot be those of one model.
    """

    model: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    tokens: int
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_experts", "experts_per_token", "tokens"):
            if not _is_count(value := getattr(self, name)) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r:.80}")
        if len(self.counts) != self.num_layers:
            raise ValueError(f"counts must have a row for each of {self.num_layers} layers, got {len(self.counts)}")
        rows = self.tokens * self.experts_per_token
        for layer, counts in enumerate(self.counts):
            if len(counts) != self.num_experts or not all(map(_is_count, counts)):
                raise ValueError(
                    f"counts of layer {layer} must be {self.num_experts} whole numbers of at least 0, got "
                    f"{list(counts)!r:.80}"
                )
            if sum(counts) != rows or max(counts) > self.tokens:
                raise ValueError(
                    f"counts of layer {layer} add up to {sum(counts)}, the largest is {max(counts)}; expected {rows} "
                    f"({self.tokens} tokens x {self.experts_per_token} experts) and at most {self.tokens}"
                )


def recorded_load(model: str, config: ModelConfig, counts: Sequence[Sequence[int]]) -> ExpertLoad:
    """The load of a call that computed `counts` [L][E] rows.

    Raises:
        ValueError: when they are no counts of such a model.
    """
    return ExpertLoad(
        model=model,
        num_layers=config.num_layers,
        num_experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        tokens=sum(counts[0]) // config.experts_per_token,
        counts=tuple(map(tuple, counts)),
    )


def traced_load(model: str, num_experts: int, trace: "ArrayLike") -> ExpertLoad:
    """The load of a trace [tokens, L, A]: the experts that each token chose in each layer, as `routed_experts` of a
    `DecodeResult` has them, or another program.

    Raises:
        ValueError: for anything that is no such trace, or chooses an expert that does not exist, or one twice.
    """
    import numpy as np

    chosen = np.asarray(trace)
    if chosen.ndim != 3 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"a trace must be whole numbers [tokens, layers, experts per token], got {chosen.dtype} "
            f"{list(chosen.shape)}; give the experts that each token chose in each layer"
        )
    if chosen.min() < 0 or chosen.max() >= num_experts:
        raise ValueError(
            f"a trace of {num_experts} experts has those from 0 to {num_experts - 1}, got {chosen.min()} to "
            f"{chosen.max()}; count experts from 0"
        )
    if (np.diff(np.sort(chosen, axis=2), axis=2) == 0).any():
        raise ValueError("a trace has one expert twice for one token in a layer; each of the chosen ones is another")
    tokens, layers, each = chosen.shape
    return ExpertLoad(
        model=model,
        num_layers=layers,
        num_experts=num_experts,
        experts_per_token=each,
        tokens=tokens,
        counts=tuple(
            tuple(np.bincount(chosen[:, layer].ravel(), minlength=num_experts).tolist()) for layer in range(layers)
        ),
    )


def read_expert_load(source: str | Path) -> ExpertLoad:
    """Reads the load in a file; "demo" is that of the bundled checkpoint.

    Raises:
        ValueError: for a file that is missing, or is no expert load, naming what is wrong in it.
    """
    path = DEMO_LOAD if str(source) == "demo" else Path(source)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or pipe"
        raise ValueError(f"{path}: {what} is no file; give the file of an expert load, or record one with: {RECORD}")
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file; record one with: {RECORD} (or give demo, the bundled checkpoint's)"
        )
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are too many for an expert load; give another file")
    try:
        raw = parse_object(str(path), path.read_bytes(), f"record it again with: {RECORD}")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    try:
        return _from_json(raw)
    except ValueError as error:
        raise ValueError(f"{path}: no expert load: {error}; record it again with: {RECORD}") from error


def check_new_file(path: Path) -> None:
    """Raises ValueError when a load cannot be written to `path`: told before anything is decoded, and nothing is
    overwritten.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists; name another file for the expert load, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")


def write_expert_load(path: Path, load: ExpertLoad) -> None:
    """Writes a new file, all of it or nothing, with a line per layer.

    Raises:
        ValueError: when it cannot be written.
    """
    from moejax._convert.durable import write_atomically, writing  # here, because it imports numpy

    check_new_file(path)
    fields = asdict(load)
    lines = [f'  "{name}": {json.dumps(fields[name], ensure_ascii=False)},' for name in fields if name != "counts"]
    counts = ",\n".join(f"    {json.dumps(layer)}" for layer in load.counts)
    text = "\n".join(["{", *lines, '  "counts": [', counts, "  ]", "}"])
    with writing(path.parent):
        write_atomically(path, f"{text}\n".encode(), scratch=path.parent)


def _from_json(raw: Any) -> ExpertLoad:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    wanted = list(ExpertLoad.__dataclass_fields__)
    if wrong := sorted(set(wanted) ^ set(raw)):
        what = "is missing" if wrong[0] in wanted else "is unknown"
        raise ValueError(f"the key {wrong[0]!r:.80} {what}; it has {', '.join(wanted)}")
    if not isinstance(raw["model"], str):
        raise ValueError(f"model must be a name, got {raw['model']!r:.80}")
    counts = raw["counts"]
    if not isinstance(counts, list) or not all(isinstance(layer, list) for layer in counts):
        raise ValueError(f"counts must be a list with a list for each layer, got {counts!r:.80}")
    return ExpertLoad(**{**raw, "counts": tuple(map(tuple, counts))})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
