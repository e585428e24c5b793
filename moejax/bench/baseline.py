"""The regression guard: a baseline file, what it says, and how something measured now differs from it. No JAX.

{
  "environment": {"jax": "0.10.2", "platform": "cpu"},
  "machine": "AMD EPYC ..., 2 cores", "tolerance": 0.25,
  "cases": [{"source": "demo", "mesh": "expert=2", ..., "counted": {...}, "times": {"prefill": S, "decode": S}}]
}
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moejax._convert.files import parse_object
from moejax._sharding import MeshConfig
from moejax.bench.works import Work

_EXAMPLE = "docs/bench_baseline.json is one to start from"
_CASE_KEYS = {"source", "mesh", "dispatch", "dtype", "expert_backend", "batch_size", "input_len", "output_len"}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline as read. machine: where its times are from, None where it has none.

    tolerance: by which part of a time the ratio to it may pass 1 before that is a regression.
    """

    path: Path
    environment: Mapping[str, str]
    machine: str | None
    tolerance: float
    cases: tuple[Mapping[str, Any], ...]


def read_baseline(path: Path) -> Baseline:
    """Reads a baseline.

    Raises:
        ValueError: when there is no such file, or it is no baseline.
    """
    try:
        raw: Any = parse_object(str(path), path.read_bytes(), _EXAMPLE)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; copy docs/bench_baseline.json there, keep the cases you want, and write their "
            f"numbers with moejax bench check {path} --update --simulate-devices 8"
        ) from error
    wrong = _wrong(raw)
    if wrong is not None:
        raise ValueError(f"{path} is no baseline: {wrong}; {_EXAMPLE}")
    return Baseline(
        path=path,
        environment=raw["environment"],
        machine=raw.get("machine"),
        tolerance=float(raw["tolerance"]),
        cases=tuple(raw["cases"]),
    )


def _wrong(raw: Any) -> str | None:
    """Why this is no baseline."""
    if missing := {"environment", "tolerance", "cases"} - set(raw):
        return f"it has no {', '.join(sorted(missing))}"
    if not isinstance(raw["environment"], dict) or not _is_number(raw["tolerance"]):
        return "environment has to be an object and tolerance a number"
    if not isinstance(raw["cases"], list) or not raw["cases"]:
        return "cases has to be a list with at least one case"
    for place, case in enumerate(raw["cases"]):
        if not isinstance(case, dict) or set(case) - {"counted", "times"} != _CASE_KEYS:
            return f"case {place} does not say what is run, with {len(_CASE_KEYS)} keys"
        if not all(isinstance(case[key], int) and case[key] >= 1 for key in ("batch_size", "input_len", "output_len")):
            return f"batch size, input and output length of case {place} have to be whole numbers from 1 on"
    return None


def write_baseline(baseline: Baseline) -> None:
    """Writes a baseline to its path."""
    raw = {name: value for name, value in vars(baseline).items() if name != "path"}
    baseline.path.write_text(f"{json.dumps(raw, indent=1)}\n", encoding="utf-8")


def case_work(case: Mapping[str, Any]) -> Work:
    """The work of a case."""
    return Work(batch_size=case["batch_size"], input_len=case["input_len"], output_len=case["output_len"])


def case_name(case: Mapping[str, Any]) -> str:
    """A case in a few words."""
    return f"{case['source']} on {case['mesh']} {case['dispatch']} {case['expert_backend']} b{case['batch_size']}"


def check_devices(baseline: Baseline, devices: int) -> None:
    """Raises ValueError when a case needs more devices than there are: told before any case is run."""
    needed = {str(case["mesh"]): MeshConfig.parse(case["mesh"]).size for case in baseline.cases}
    mesh, most = max(needed.items(), key=lambda pair: pair[1])
    if most > devices:
        raise ValueError(
            f"{baseline.path} has a case on {mesh}, which needs {most} devices, and JAX sees {devices}: add "
            f"--simulate-devices {most}"
        )


def check_environment(baseline: Baseline, environment: Mapping[str, str]) -> None:
    """Raises ValueError where other versions compile other programs: their counts cannot be compared."""
    for name, wanted in baseline.environment.items():
        if environment.get(name) != wanted:
            raise ValueError(
                f"{baseline.path} was counted with {name} {wanted}, here it is {environment.get(name)}: compiled "
                "programs differ; check out a commit that is known to be good and write a new baseline with --update"
            )


def differences(case: str, wanted: Any, got: Any, path: str = "") -> Iterator[str]:
    """Every counted quantity that is not exactly as in the baseline, one line each."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        for key in sorted({*wanted, *got}):
            yield from differences(case, wanted.get(key), got.get(key), f"{path}.{key}" if path else str(key))
    elif wanted != got:
        change = f" ({got / wanted - 1:+.1%})" if _is_number(wanted) and _is_number(got) and wanted else ""
        yield f"{case}: {path} was {_shown(wanted)}, is {_shown(got)}{change}"


def slower(
    case: str, wanted: Mapping[str, float], got: Mapping[str, float], tolerance: float
) -> tuple[list[str], list[str]]:
    """Lines for every time, as its ratio to the baseline's; and those of them that pass 1 + tolerance."""
    lines = {name: got[name] / seconds for name, seconds in wanted.items()}
    told = [f"{case}: {name} takes {ratio:.2f} x the baseline's time" for name, ratio in lines.items()]
    failed = [line for line, ratio in zip(told, lines.values(), strict=True) if not ratio <= 1 + tolerance]
    return told, failed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return "absent" if value is None else f"{value:,}" if _is_number(value) else str(value)
