"""MoE layers that others measured on GPUs: the committed extract, and which split of a layer was the fastest.

docs/intra_vs_inter/layers.csv.gz has them, which scripts/extract_layers.py takes out of the tables of a package.
Reading it needs none. A layer is that of one model on so many devices, in seconds on the busiest of them.
"""

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from moejax.families.config import ModelConfig
from moejax.planning.models import model_config

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "intra_vs_inter"
LAYERS = FOLDER / "layers.csv.gz"
TOKENS = (
    *(1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768),
    *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384),
)
LOADS = {"balanced": "balanced", "power_law_1.01": "power-law:1.01", "power_law_1.2": "power-law:1.2"}  # --skew of each
DEVICES = (1, 2, 4, 8)
BFLOAT16 = "bfloat16"
QWEN_CONFIG = ModelConfig(  # huggingface.co/Qwen/Qwen3-30B-A3B, config.json; moejax does not decode it
    vocab_size=151_936,
    embed_dim=2048,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    num_experts=128,
    experts_per_token=8,
    expert_dim=768,
    max_position_embeddings=40_960,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
)
MIXTRAL, QWEN = "Mixtral 8x7B", "Qwen3-30B-A3B"
MODELS = {MIXTRAL: model_config("mixtral-8x7b"), QWEN: QWEN_CONFIG}
TIE = 0.03  # splits this near to each other count as equally fast
APART = 0.10  # pairs nearer than this are not held against a prediction
Kind = Literal["intra", "inter", "hybrid"]
Winner = Kind | Literal["equal"]


class LayerSplit(NamedTuple):
    """Devices along each axis."""

    tensor: int = 1
    expert: int = 1

    @property
    def kind(self) -> Kind:
        return "hybrid" if min(self) > 1 else "intra" if self.expert == 1 else "inter"

    @property
    def label(self) -> str:
        named = {"tensor": self.tensor, "expert": self.expert}
        return ", ".join(f"{axis}={size}" for axis, size in named.items() if size > 1) or "one device"


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """What was measured: one layer of a model in one dtype, on so many devices, under one load.

    hardware: the name of a hardware file.  engine: whose kernels, "best" for the fastest of each split.
    """

    hardware: str
    engine: str
    dtype: str
    model: str
    load: str
    devices: int

    @property
    def intra(self) -> LayerSplit:
        return LayerSplit(self.devices, 1)

    @property
    def inter(self) -> LayerSplit:
        return LayerSplit(1, self.devices)


class MeasuredLayer(NamedTuple):
    """One case, split so, at so many tokens of the group."""

    case: LayerCase
    split: LayerSplit
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One case at so many tokens of the group: seconds by split, both pure ones among them."""

    case: LayerCase
    tokens: int
    seconds: Mapping[LayerSplit, float]

    @property
    def winner(self) -> LayerSplit:
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def inter_over_intra(self) -> float:
        """Seconds of expert parallelism over those of tensor parallelism."""
        return self.seconds[self.case.inter] / self.seconds[self.case.intra]

    @property
    def slower_by(self) -> float:
        """By how much longer the slower pure split takes than the faster one, as a fraction."""
        return max(self.inter_over_intra, 1 / self.inter_over_intra) - 1

    @property
    def apart(self) -> bool:
        """Whether it matters which pure split is taken."""
        return self.slower_by > APART

    @property
    def verdict(self) -> tuple[Winner, float]:
        """Which kind of split wins by more than `TIE`, and how many times as long the best of the other kinds takes:
        of a pure split that wins the other pure one, of a hybrid the better pure one.
        """
        intra, inter = self.seconds[self.case.intra], self.seconds[self.case.inter]
        faster, slower = sorted((intra, inter))
        mixed = min((seconds for split, seconds in self.seconds.items() if split.kind == "hybrid"), default=slower)
        if mixed * (1 + TIE) < faster:
            return "hybrid", faster / mixed
        if slower <= faster * (1 + TIE):
            return "equal", slower / faster
        return ("intra" if intra < inter else "inter"), slower / faster

    def loss(self, split: LayerSplit) -> float:
        """By how much longer a split takes than the fastest, as a fraction."""
        return self.seconds[split] / self.seconds[self.winner] - 1


def read_layers(path: Path = LAYERS) -> Iterator[MeasuredLayer]:
    """Every layer of the extract."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            split = LayerSplit(int(row["tensor"]), int(row["expert"]))
            same = {key: row[key] for key in ("hardware", "engine", "dtype", "model", "load")}
            case = LayerCase(**same, devices=split.tensor * split.expert)
            for tokens in TOKENS:
                if micros := row[str(tokens)]:
                    yield MeasuredLayer(case, split, tokens, float(micros) * 1e-6)


def read_cells(path: Path = LAYERS) -> list[Cell]:
    """Every cell of the extract in which both pure splits were measured, over two devices or more."""
    found: dict[tuple[LayerCase, int], dict[LayerSplit, float]] = {}
    for layer in read_layers(path):
        if layer.case.devices > 1:
            found.setdefault((layer.case, layer.tokens), {})[layer.split] = layer.seconds
    return _complete(found)


def best_engines(cells: Iterable[Cell]) -> list[Cell]:
    """The same with the fastest engine of each split."""
    found: dict[tuple[LayerCase, int], dict[LayerSplit, float]] = {}
    for cell in cells:
        best = found.setdefault((replace(cell.case, engine="best"), cell.tokens), {})
        for split, seconds in cell.seconds.items():
            best[split] = min(seconds, best.get(split, seconds))
    return _complete(found)


def _complete(found: Mapping[tuple[LayerCase, int], Mapping[LayerSplit, float]]) -> list[Cell]:
    return [
        Cell(case=case, tokens=tokens, seconds=seconds)
        for (case, tokens), seconds in found.items()
        if {case.intra, case.inter} <= set(seconds)
    ]
