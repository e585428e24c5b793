"""Hardware files: TOML, read with every complaint naming file and key. Imports no JAX.

Those that come with moejax are in the folder `devices` beside this one; a user's own has the same form.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from moejax._sharding.collectives import CollectiveKind
from moejax.planning.hardware import OPERATIONS, PRODUCT_DTYPES, Curve, Efficiency, Hardware, Link, Operation
from moejax.planning.kernels import (
    BetweenTerms,
    ExpertTerms,
    ProductTerms,
    PromptTerms,
    Software,
    SoftwareKernels,
    StepTerms,
)

SHIPPED = Path(__file__).parent / "devices"
_SMALLEST, _LARGEST = 1e-12, 1e24  # no device's figure lies outside: seconds, bytes, bytes and FLOP per second
LARGEST_TILE, MOST_PRODUCTS, LONGEST, LARGEST_CACHE = 4096, 1000, 3600.0, 10**12  # what no kernel and device passes
_ROWS = re.compile(r"[0-9]{1,24}")  # int() refuses thousands of digits with a message that names no file
_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
RANGES = ("inputs", "widths")
TERMS = {"product": ProductTerms, "between": BetweenTerms, "step": StepTerms, "prompt": PromptTerms}


def shipped_hardware() -> tuple[str, ...]:
    """Names of the files that come with moejax."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load_hardware(name: str | Path) -> Hardware:
    """The hardware called `name`, in any case, or that of the TOML file whose path it is.

    Raises:
        ValueError: for an unknown name, listing the known ones, and for a file with a missing or impossible figure.
    """
    known = shipped_hardware()
    if str(name).lower() in known:
        return _read(SHIPPED / f"{str(name).lower()}.toml")
    if str(name).endswith(".toml"):
        return _read(Path(name))
    near = _near(str(name), known)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"unknown hardware {str(name)!r}: the known names are {', '.join(known)}, or the path of a .toml file{hint}"
    )


def _near(asked: str, known: Sequence[str]) -> list[str]:
    """The names that may be meant: of the same chip, however it is spelled and of whatever form; else those alike."""
    word = _bare(asked).removeprefix("nvidia").removeprefix("tesla")
    same = [
        name for name in known if word and (_bare(name).startswith(word) or word.startswith(name.partition("-")[0]))
    ]
    return same or get_close_matches(asked.lower(), known, n=3)


def _bare(name: str) -> str:
    """Its letters and digits: "RTX PRO 6000" and "rtx-pro-6000" are the same."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


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
        measured = ("efficiency", "speeds", "cache_bytes", "software", "collectives")
        optional = ("kinds", "link", "network", "devices_per_node", *overheads, *measured, "sources")
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
            efficiency=self._efficiency(overheads),
            speeds=self._speeds(self._table("speeds", self.raw.get("speeds", {}))),
            cache_bytes=self._at_most(LARGEST_CACHE, "cache_bytes", self.raw["cache_bytes"])
            if "cache_bytes" in self.raw
            else 0,
            software=self._software(),
            collectives=self._collectives(),
            sources={key: self._text(f"sources.{key}", text) for key, text in sources.items()},
        )

    def _rates(self, table: dict[str, Any]) -> dict[str, float]:
        if not table:
            raise self._wrong("matrix_rate", f"FLOP/s for at least one of {', '.join(PRODUCT_DTYPES)}", table)
        self._check_keys("matrix_rate.", table, (), PRODUCT_DTYPES)
        return {dtype: self._positive(f"matrix_rate.{dtype}", rate) for dtype, rate in table.items()}

    def _efficiency(self, overheads: tuple[str, ...]) -> Efficiency:
        table = self._table("efficiency", self.raw.get("efficiency", {}))
        if not table:
            return Efficiency()
        names = ("bandwidth", "matrix_rate")
        self._check_keys("efficiency.", table, names, ())
        if measured := [key for key in ("speeds", *overheads) if self.raw.get(key)]:
            raise ValueError(
                f"{self.path}: efficiency is a share of a datasheet's figures, and {', '.join(measured)} is what was "
                "measured; keep one of them"
            )
        shares = {name: self._number(f"efficiency.{name}", table[name]) for name in names}
        for name, share in shares.items():
            self._within(f"efficiency.{name}", share, {"low": _SMALLEST, "high": 1.0})
        return Efficiency(**shares)

    def _speeds(self, table: dict[str, Any]) -> dict[str, dict[Operation, Curve]]:
        self._check_keys("speeds.", table, (), PRODUCT_DTYPES)
        found: dict[str, dict[Operation, Curve]] = {}
        for dtype, value in table.items():
            curves = self._table(f"speeds.{dtype}", value)
            self._check_keys(f"speeds.{dtype}.", curves, OPERATIONS, ())
            found[dtype] = {name: self._curve(f"speeds.{dtype}.{name}", curves[name]) for name in OPERATIONS}
        return found

    def _curve(self, key: str, value: Any) -> Curve:
        points = self._table(key, value)
        if not points or not all(_ROWS.fullmatch(rows) and int(rows) > 0 for rows in points):
            raise self._wrong(key, "numbers by whole numbers, as in { 1 = 2e10, 8 = 1e11 }", value)
        curve: dict[int, float] = {}
        for rows, rate in points.items():
            if int(rows) in curve:  # 1 and 01 are two keys of TOML
                raise ValueError(f"{self.path}: {key} has the row count {int(rows)} twice; keep one of them")
            curve[int(rows)] = self._positive(f"{key}.{rows}", rate)
        return curve

    def _software(self) -> dict[str, Software]:
        found = {}
        software = self._table("software", self.raw.get("software", {}))
        self._check_keys("software.", software, (), ("moejax", "vllm", "trtllm", "sglang"))
        for name, value in software.items():
            key, table = f"software.{name}", self._table(f"software.{name}", value)
            self._check_keys(f"{key}.", table, ("title", "all_reduce", "collectives", "products"), PRODUCT_DTYPES)
            for role in ("all_reduce", "collectives"):
                self._known_library(f"{key}.{role}", table[role])
            found[name] = Software(
                title=self._text(f"{key}.title", table["title"]),
                kernels={
                    dtype: self._kernels(f"{key}.{dtype}", table[dtype]) for dtype in PRODUCT_DTYPES if dtype in table
                },
                all_reduce=table["all_reduce"],
                collectives=table["collectives"],
                products=self._at_most(MOST_PRODUCTS, f"{key}.products", table["products"]),
            )
            for dtype in found[name].kernels:
                if dtype not in self.raw["matrix_rate"]:
                    raise ValueError(f"{self.path}: {key}.{dtype} needs matrix_rate.{dtype}; add it to the file")
        return found

    def _known_library(self, key: str, name: Any) -> None:
        known = self._table("collectives", self.raw.get("collectives", {}))
        if name not in known:
            raise self._wrong(
                key, f"one of the tables under [collectives] ({', '.join(known) or 'there are none'})", name
            )

    def _kernels(self, key: str, value: Any) -> SoftwareKernels:
        table = self._table(key, value)
        self._check_keys(f"{key}.", table, (*TERMS, "experts"), ("untuned", "tuned", *RANGES))
        if ("untuned" in table) != ("tuned" in table):
            raise ValueError(f"{self.path}: {key} has one of untuned and tuned; it needs both or neither")
        terms = {name: self._terms(f"{key}.{name}", table[name], kind) for name, kind in TERMS.items()}
        return SoftwareKernels(
            **terms,  # type: ignore[arg-type]  # each of the kind that TERMS has for it
            experts=self._terms(f"{key}.experts", table["experts"], ExpertTerms),
            untuned=self._terms(f"{key}.untuned", table["untuned"], ExpertTerms) if "untuned" in table else None,
            tuned=self._shapes(f"{key}.tuned", table.get("tuned", {})),
            **{name: self._range(f"{key}.{name}", table[name]) for name in RANGES if name in table},
        )

    def _terms(self, key: str, value: Any, kind: type) -> Any:
        table = self._table(key, value)
        required = tuple(one.name for one in fields(kind) if one.default is MISSING)
        self._check_keys(f"{key}.", table, required, tuple(one.name for one in fields(kind)))
        found: dict[str, Any] = {}
        for one in fields(kind):
            if one.name == "by_tokens" and one.name in table:
                if not isinstance(table[one.name], bool):
                    raise self._wrong(f"{key}.{one.name}", "true or false", table[one.name])
                found[one.name] = table[one.name]
            elif one.name == "tiles":
                curve = self._curve(f"{key}.tiles", table["tiles"])
                if max(curve) > LARGEST_TILE:
                    raise self._wrong(f"{key}.tiles", f"shares by tiles of at most {LARGEST_TILE} rows", max(curve))
                found[one.name] = {
                    rows: self._within(f"{key}.tiles.{rows}", curve[rows], one.metadata) for rows in curve
                }
            elif one.name in table:
                number = self._number(f"{key}.{one.name}", table[one.name])
                found[one.name] = self._within(f"{key}.{one.name}", number, one.metadata)
        return kind(**found)

    def _within(self, key: str, number: float, bounds: Mapping[str, float]) -> float:
        if not bounds["low"] <= number <= bounds["high"]:
            raise self._wrong(key, f"between {bounds['low']:g} and {bounds['high']:g}", number)
        return number

    def _range(self, key: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, list) or len(value) != 2:
            raise self._wrong(key, "the least and the most, as in [2048, 8192]", value)
        least, most = (self._positive(key, one) for one in value)
        if most < least:
            raise self._wrong(key, "the least and the most, in this order", value)
        return least, most

    def _shapes(self, key: str, value: Any) -> frozenset[tuple[int, int]]:
        """Widths by numbers of experts: { 8 = [7168, 14336] }."""
        found = set()
        table = self._table(key, value)
        self._check_once(key, table)
        for experts, widths in table.items():
            if not _ROWS.fullmatch(experts) or not int(experts) or not isinstance(widths, list):
                raise self._wrong(key, "widths by numbers of experts, as in { 8 = [7168, 14336] }", value)
            found |= {(int(experts), self._whole(f"{key}.{experts}", width)) for width in widths}
        return frozenset(found)

    def _collectives(self) -> dict[str, dict[CollectiveKind, dict[int, Curve]]]:
        found: dict[str, dict[CollectiveKind, dict[int, Curve]]] = {}
        for library, value in self._table("collectives", self.raw.get("collectives", {})).items():
            kinds = self._table(f"collectives.{library}", value)
            self._check_keys(f"collectives.{library}.", kinds, (), _KINDS)
            found[library] = {}
            for kind in _KINDS:
                key = f"collectives.{library}.{kind}"
                by_devices = self._table(key, kinds.get(kind, {}))
                if not all(_ROWS.fullmatch(count) and int(count) > 1 for count in by_devices):
                    raise self._wrong(key, "seconds by bytes, by whole numbers of devices from 2", by_devices)
                self._check_once(key, by_devices)
                curves = {int(count): self._seconds(f"{key}.{count}", curve) for count, curve in by_devices.items()}
                if curves:
                    found[library][kind] = curves
        return found

    def _seconds(self, key: str, value: Any) -> Curve:
        """Seconds by bytes, which do not fall."""
        curve = self._curve(key, value)
        ordered = [curve[size] for size in sorted(curve)]
        if ordered != sorted(ordered) or ordered[-1] > LONGEST:
            raise self._wrong(key, f"seconds of at most {LONGEST:g} that do not fall with more bytes", value)
        return curve

    def _at_most(self, most: int, key: str, value: Any) -> int:
        if (number := self._whole(key, value)) > most:
            raise self._wrong(key, f"at most {most:,}", value)
        return number

    def _check_once(self, key: str, table: Mapping[str, Any]) -> None:
        """Raises ValueError where two keys are one number: 1 and 01 are two keys of TOML."""
        numbers = [int(name) for name in table if _ROWS.fullmatch(name)]
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise ValueError(f"{self.path}: {key} has {twice} twice; keep one of them")

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
            known = ", ".join(dict.fromkeys((*required, *more)))
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
