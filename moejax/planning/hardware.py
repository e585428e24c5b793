"""What a device can do: figures from a TOML file, each with its source. Imports no JAX.

The files that come with moejax are in the folder `devices` beside this one; a user's own has the same form.
"""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

SHIPPED = Path(__file__).parent / "devices"
_SMALLEST, _LARGEST = 1e-12, 1e24  # no device's figure lies outside: seconds, bytes, bytes and FLOP per second
_ROWS = re.compile(r"[0-9]{1,24}")  # int() refuses thousands of digits with a message that names no file
DTYPES = ("bfloat16", "float16", "float32")  # that a model can be computed in

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
    sources: Mapping[str, str] = field(default_factory=dict)

    def speed(self, dtype: str, operation: Operation, rows: float) -> float:
        """FLOP per second of an operation: as measured, straight lines between logarithms, else the matrix rate."""
        if dtype not in self.speeds:
            return self.matrix_rate[dtype]
        points = sorted(self.speeds[dtype][operation].items())
        if rows <= points[0][0]:
            return points[0][1]
        for (fewer, slow), (more, fast) in pairwise(points):
            if rows <= more:
                return slow * (fast / slow) ** (math.log(rows / fewer) / math.log(more / fewer))
        return points[-1][1]


def shipped_hardware() -> tuple[str, ...]:
    """Names of the files that come with moejax."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load_hardware(name: str | Path) -> Hardware:
    """The hardware called `name`, or that of the TOML file whose path it is.

    Raises:
        ValueError: for an unknown name, listing the known ones, and for a file with a missing or impossible figure.
    """
    known = shipped_hardware()
    if str(name) in known:
        return _read(SHIPPED / f"{name}.toml")
    if str(name).endswith(".toml"):
        return _read(Path(name))
    near = [one for one in known if str(name) and one.startswith(str(name))] or get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown hardware {str(name)!r}: the known names are {', '.join(known)}, or the path of a .toml file{hint}"
    )


def hardware_toml(hardware: Hardware) -> str:
    """The text of a file that `load_hardware` reads as `hardware`."""
    lines = [
        f"title = {_quoted(hardware.title)}",
        f"kinds = [{', '.join(map(_quoted, hardware.kinds))}]",
        f"memory_bytes = {hardware.memory_bytes}",
        f"bandwidth = {hardware.bandwidth!r}",
        f"devices_per_node = {hardware.devices_per_node}",
        f"layer_overhead = {hardware.layer_overhead!r}",
        f"expert_overhead = {hardware.expert_overhead!r}",
        f"token_overhead = {hardware.token_overhead!r}",
        "",
        "[matrix_rate]",
        *(f"{dtype} = {rate!r}" for dtype, rate in hardware.matrix_rate.items()),
    ]
    for dtype, curves in hardware.speeds.items():
        lines += ["", f"[speeds.{dtype}]"]
        lines += [
            f"{name} = {{ {', '.join(f'{rows} = {rate!r}' for rows, rate in curves[name].items())} }}"
            for name in curves
        ]
    for name, link in (("link", hardware.link), ("network", hardware.network)):
        if link is not None:
            lines += ["", f"[{name}]", f"bandwidth = {link.bandwidth!r}", f"latency = {link.latency!r}"]
            lines += [f"launch = {link.launch!r}"]
    lines += ["", "[sources]", *(f"{_quoted(key)} = {_quoted(text)}" for key, text in hardware.sources.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> Hardware:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: there is no such file; the hardware that comes with moejax is {', '.join(shipped_hardware())}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # tomllib's and those of the encoding are ValueErrors
        raise ValueError(f"{path}: cannot be read as TOML ({error})") from error
    return _Reader(path, raw).hardware()


@dataclass(frozen=True)
class _Reader:
    """The figures of one file, checked one by one; every complaint names the file and the key."""

    path: Path
    raw: dict[str, Any]

    def hardware(self) -> Hardware:
        linked = ("link",) if self.raw.get("devices_per_node", 1) != 1 else ()
        required = ("title", "memory_bytes", "bandwidth", "matrix_rate", *linked)
        overheads = ("layer_overhead", "expert_overhead", "token_overhead")
        optional = ("kinds", "link", "network", "devices_per_node", *overheads, "speeds", "sources")
        self._check_keys("", self.raw, required, optional)
        sources = self._table("sources", self.raw.get("sources", {}))
        kinds = self.raw.get("kinds", [])
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise self._wrong("kinds", "a list of strings", kinds)
        return Hardware(
            name=self.path.stem,
            title=self._text("title", self.raw["title"]),
            kinds=tuple(kind.lower() for kind in kinds),
            memory_bytes=self._whole("memory_bytes", self.raw["memory_bytes"]),
            bandwidth=self._positive("bandwidth", self.raw["bandwidth"]),
            matrix_rate=self._rates(self._table("matrix_rate", self.raw["matrix_rate"])),
            link=self._link("link", self.raw["link"]) if "link" in self.raw else None,
            network=self._link("network", self.raw["network"]) if "network" in self.raw else None,
            devices_per_node=self._whole("devices_per_node", self.raw.get("devices_per_node", 1)),
            layer_overhead=self._not_negative("layer_overhead", self.raw.get("layer_overhead", 0.0)),
            expert_overhead=self._not_negative("expert_overhead", self.raw.get("expert_overhead", 0.0)),
            token_overhead=self._not_negative("token_overhead", self.raw.get("token_overhead", 0.0)),
            speeds=self._speeds(self._table("speeds", self.raw.get("speeds", {}))),
            sources={key: self._text(f"sources.{key}", text) for key, text in sources.items()},
        )

    def _rates(self, table: dict[str, Any]) -> dict[str, float]:
        if not table:
            raise self._wrong("matrix_rate", f"FLOP/s for at least one of {', '.join(DTYPES)}", table)
        self._check_keys("matrix_rate.", table, (), DTYPES)
        return {dtype: self._positive(f"matrix_rate.{dtype}", rate) for dtype, rate in table.items()}

    def _speeds(self, table: dict[str, Any]) -> dict[str, dict[Operation, Curve]]:
        self._check_keys("speeds.", table, (), DTYPES)
        found: dict[str, dict[Operation, Curve]] = {}
        for dtype, value in table.items():
            curves = self._table(f"speeds.{dtype}", value)
            self._check_keys(f"speeds.{dtype}.", curves, OPERATIONS, ())
            found[dtype] = {name: self._curve(f"speeds.{dtype}.{name}", curves[name]) for name in OPERATIONS}
        return found

    def _curve(self, key: str, value: Any) -> Curve:
        points = self._table(key, value)
        if not points or not all(_ROWS.fullmatch(rows) and int(rows) > 0 for rows in points):
            raise self._wrong(key, "FLOP/s by whole numbers of rows, as in { 1 = 2e10, 8 = 1e11 }", value)
        curve: dict[int, float] = {}
        for rows, rate in points.items():
            if int(rows) in curve:  # 1 and 01 are two keys of TOML
                raise ValueError(f"{self.path}: {key} has the row count {int(rows)} twice; keep one of them")
            curve[int(rows)] = self._positive(f"{key}.{rows}", rate)
        return curve

    def _link(self, key: str, value: Any) -> Link:
        table = self._table(key, value)
        self._check_keys(f"{key}.", table, ("bandwidth", "latency"), ("launch",))
        return Link(
            bandwidth=self._positive(f"{key}.bandwidth", table["bandwidth"]),
            latency=self._not_negative(f"{key}.latency", table["latency"]),
            launch=self._not_negative(f"{key}.launch", table.get("launch", 0.0)),
        )

    def _check_keys(self, prefix: str, table: Mapping[str, Any], required: tuple[str, ...], more: tuple[str, ...]):
        missing = [prefix + key for key in required if key not in table]
        unknown = [self._unknown(prefix, key, (*required, *more)) for key in table if key not in (*required, *more)]
        wrong = [f"{', '.join(missing)} is missing"] if missing else []
        wrong += [f"unknown key {', '.join(unknown)}"] if unknown else []
        if wrong:
            known = ", ".join((*required, *more))
            raise ValueError(f"{self.path}: {'; '.join(wrong)}; the keys there are {known}, as in {SHIPPED}")

    def _unknown(self, prefix: str, key: str, known: tuple[str, ...]) -> str:
        near = get_close_matches(key, known, n=1)
        return f"{prefix}{key} (did you mean {near[0]!r}?)" if near else f"{prefix}{key}"

    def _table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, f"a table, as in [{key}]", value)
        return value

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a text", value)
        return value

    def _positive(self, key: str, value: Any) -> float:
        if not (number := self._number(key, value)) > 0:
            raise self._wrong(key, "a number above 0", value)
        return number

    def _not_negative(self, key: str, value: Any) -> float:
        if (number := self._number(key, value)) < 0:
            raise self._wrong(key, "a number of at least 0", value)
        return number

    def _whole(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, "a whole number of at least 1", value)
        if value > _LARGEST:
            raise self._wrong(key, f"at most {_LARGEST:g}", value)
        return value

    def _number(self, key: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value or abs(value) == math.inf:
            raise self._wrong(key, "a finite number", value)
        if value and not _SMALLEST <= abs(value) <= _LARGEST:
            raise self._wrong(key, f"0 or a number between {_SMALLEST:g} and {_LARGEST:g}", value)
        return float(value)

    def _wrong(self, key: str, expected: str, value: Any) -> ValueError:
        try:
            got = f"{value!r:.80}"
        except ValueError:  # Python writes no integer of thousands of digits; TOML reads one that is in hexadecimal
            got = "a number of thousands of digits"
        return ValueError(f"{self.path}: {key} must be {expected}, got {got}; correct it there")


def _quoted(text: str) -> str:
    """A TOML basic string: what JSON writes is one, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
