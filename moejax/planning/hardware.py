"""What a device can do: figures of a TOML file, each with its source (`hardware_file`). Imports no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from moejax._sharding.collectives import CollectiveKind
from moejax.planning.kernels import DeviceRates, Software, SoftwareKernels, curve_seconds, on_curve

DTYPES = ("bfloat16", "float16", "float32")  # that a model can be computed in
PRODUCT_DTYPES = (*DTYPES, "float8_e4m3fn")  # that a device's products may be measured in

GUESSED = ("assumed", "guess", "estimate")  # how the source of such a figure begins

Operation = Literal["project", "experts", "attend_step", "attend_prompt"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
Curve = Mapping[int, float]  # FLOP per second by the number of rows that share what is read


@dataclass(frozen=True, kw_only=True)
class Link:
    """How devices reach each other.

    bandwidth: bytes per second that a device sends, and at the same time receives.
    latency: seconds of one hop of a ring, however little it carries.
    launch: seconds that every collective takes besides.
    """

    bandwidth: float
    latency: float
    launch: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a datasheet's figures that are reached, each above 0 and at most 1.

    bandwidth: of the memory's.  matrix_rate: of that of products, whatever their dtype.
    """

    bandwidth: float = 1.0
    matrix_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "matrix_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"a share of {name} must be above 0 and at most 1, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device, and how several are connected.

    name: what it is chosen by.  title: what people call it.  kinds: what JAX calls it (`device_kind`), in lower case.
    memory_bytes: what its driver reports.  bandwidth: bytes per second read from its memory.
    matrix_rate: FLOP per second of matrix products, by the dtype of the operands; it computes in no other dtype.
    link: within a node, None where there is but one device.  network: between nodes, None where it is not known.
    devices_per_node: in one node at most.
    layer_overhead: seconds that a layer of any size takes besides (launches, loops); 0 is the ideal.
    expert_overhead: seconds that each expert read on a device takes besides, in each layer; 0 is the ideal.
    token_overhead: seconds that each token takes besides, in each layer (norms, routing); 0 is the ideal.
    speeds: what the engine's own operations reach, by dtype, where that was measured; `matrix_rate` is the ideal.
        `project` by the rows of a product, `experts` by the rows of an expert, `attend_step` (one query per sequence)
        and `attend_prompt` (a whole prompt) by the query heads of a key/value head.
    efficiency: of `bandwidth` and `matrix_rate`, that a roofline takes as reached.
    cache_bytes: of the last cache before the memory; 0 where it is not known.
    software: what computes on the device and how long its kernels take, where that was measured.
    collectives: seconds by bytes, by library, kind and number of devices in a node, where that was measured.
    sources: where each figure is from, by its key in the file.
    """

    name: str
    title: str
    kinds: tuple[str, ...] = ()
    memory_bytes: int
    bandwidth: float
    matrix_rate: Mapping[str, float]
    link: Link | None
    network: Link | None = None
    devices_per_node: int = 1
    layer_overhead: float = 0.0
    expert_overhead: float = 0.0
    token_overhead: float = 0.0
    speeds: Mapping[str, Mapping[Operation, Curve]] = field(default_factory=dict)
    efficiency: Efficiency = Efficiency()
    cache_bytes: int = 0
    software: Mapping[str, Software] = field(default_factory=dict)
    collectives: Mapping[str, Mapping[CollectiveKind, Mapping[int, Curve]]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def guesses(self) -> dict[str, str]:
        """Those of `sources` that say of a figure that nobody measured or published it."""
        return {key: text for key, text in self.sources.items() if text.lower().startswith(GUESSED)}

    def speed(self, dtype: str, operation: Operation, rows: float) -> float:
        """FLOP per second of an operation: as measured, straight lines between logarithms, else the share of the matrix
        rate that is reached.
        """
        if dtype not in self.speeds:
            return self.matrix_rate[dtype] * self.efficiency.matrix_rate
        return on_curve(self.speeds[dtype][operation], rows)

    def kernels(self, software: str, dtype: str) -> SoftwareKernels | None:
        """What `software` runs in `dtype` (float16 as bfloat16), None where it was not measured on this device."""
        if software not in self.software:
            return None
        measured = self.software[software].kernels
        return measured.get("bfloat16" if dtype == "float16" and dtype not in measured else dtype)

    def device(self, dtype: str) -> DeviceRates:
        """What kernels of this dtype run on."""
        return DeviceRates(self.bandwidth, self.matrix_rate[dtype], self.cache_bytes)

    def collective_seconds(self, library: str, kind: CollectiveKind, devices: int, size: float) -> float | None:
        """Seconds of one collective of `size` bytes within a node, None where none of its kind was measured.

        Between measured numbers of devices the next larger one counts; above them nothing does.
        """
        by_devices = self.collectives.get(library, {}).get(kind, {})
        enough = [count for count in by_devices if count >= devices]
        return curve_seconds(by_devices[min(enough)], size) if enough else None
