"""Writes docs/schemas/*.schema.json: what moejax prints with --json and keeps in files, as JSON Schema 2020-12.

    python -m scripts.json_schemas

Objects that are dataclasses have their fields; what is put together by hand is here. tests/scripts/test_json_schemas.py
holds real outputs against these, and an output with a key that is not here fails.
"""

import json
from collections.abc import Callable, Mapping

from moejax._convert.manifest import ArrayEntry, Manifest
from moejax._sharding.mesh import MESH_AXES
from moejax.decoding.results import DecodeResult
from moejax.planning.checks import CompiledCheck, Measured
from moejax.planning.compiled_counts import CompiledCounts
from moejax.planning.expert_load import ExpertLoad
from moejax.planning.hardware import Hardware
from moejax.planning.rows import Footprint, Phase
from moejax.planning.targets import Targets
from scripts.bench_report import DOCS
from scripts.json_types import (
    FLAG,
    NULL,
    NUMBER,
    TEXT,
    WHOLE,
    Schema,
    array,
    dataclass_schema,
    either,
    mapping,
    maybe,
    said,
    schema_of,
    thing,
)

FOLDER = DOCS / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
OPTIONAL_NUMBER = either(NUMBER, NULL)
MESH = thing(**dict.fromkeys(MESH_AXES, WHOLE))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        (FOLDER / f"{name}.schema.json").write_text(text(name), encoding="utf-8")
        print(FOLDER / f"{name}.schema.json")


def text(name: str) -> str:
    """The file's text."""
    title, make = SCHEMAS[name]
    return json.dumps({"$schema": DIALECT, "title": title} | make(), indent=1, ensure_ascii=False) + "\n"


def mesh_compare() -> Schema:
    phase = dataclass_schema(Phase, {}, collectives=array(_collective()), seconds=NUMBER)
    best = thing(split=TEXT, devices=WHOLE, reason=TEXT)
    short = {"mesh": MESH, "dispatch": TEXT, "label": TEXT, "devices": WHOLE, "batch_size": WHOLE}
    speeds = ("ttft_seconds", "tpot_seconds", "tokens_per_second_per_request", "tokens_per_second_per_device")
    misses = said(either(mapping(NUMBER), NULL), "seconds over each target; null without targets")
    short |= dict.fromkeys(speeds, OPTIONAL_NUMBER) | {"misses": misses, "command": either(TEXT, NULL)}
    answer = thing(**dict.fromkeys(("fewest", "most", "nearest"), either(thing(**short), NULL)))
    crossover = thing(
        batch_size=WHOLE,
        mesh=MESH,
        phase={"enum": ["decode", "prefill"]},
        wins_below_link_bandwidth=said(either(NUMBER, NULL, {"const": "any"}), "bytes per second each way"),
    )
    hardware = dataclass_schema(Hardware, {}, software=mapping(TEXT), collectives=array(TEXT))
    texts = ("model", "hardware", "software", "times", "objective", "dispatch", "dtype")
    optional = dict.fromkeys(("skew", "expert_load", "efficiency"), either(TEXT, NULL))
    asked = dict.fromkeys(texts, TEXT) | optional | dict.fromkeys(("input_len", "context", "micro_batches"), WHOLE)
    found = thing(
        model=TEXT,
        micro_batches=WHOLE,
        asked=said(thing(**asked, usable_fraction=NUMBER), "by which one saved result is told from another"),
        hardware=hardware,
        software=thing(name=TEXT, basis={"enum": ["measured", "fitted", "calibrated", "roofline"]}),
        routing=said(thing(skew=either(TEXT, NULL), expert_load=either(TEXT, NULL)), "how tokens choose experts"),
        rows=array({"$ref": "#/$defs/row"}),
        winners=said(mapping(mapping(best)), "by batch size, by objective"),
        targets=dataclass_schema(Targets, {}),
        meets_targets=either(FLAG, NULL),
        answers=said(mapping(answer), "by batch size"),
        answer=answer,
        gather_crossovers=array(crossover),
        fits=FLAG,
        fits_with=array(TEXT),
    )
    return said(found, "Sizes in bytes, times in seconds.") | {"$defs": {"phase": phase, "row": _row()}}


def _row() -> Schema:
    phase = either({"$ref": "#/$defs/phase"}, NULL)
    checked = thing(collectives=array(_collective()), predicted=array(_collective()))
    compiled = dataclass_schema(CompiledCheck, {}, decode=checked, prefill=checked, equal=FLAG)
    measured = dataclass_schema(Measured, {}, decode_error=NUMBER, prefill_error=NUMBER)
    return thing(
        mesh=MESH,
        dispatch=TEXT,
        label=TEXT,
        **dict.fromkeys(("devices", "batch_size", "input_len", "context"), WHOLE),
        dtype=TEXT,
        why_not=said(either(TEXT, NULL), "why it cannot be used; null where it can"),
        built=FLAG,
        best_for=said(mapping(TEXT), "objectives, each with the reason"),
        bytes_per_device=either(dataclass_schema(Footprint, {}, total=WHOLE), NULL),
        usable_bytes=WHOLE,
        over_bytes=WHOLE,
        decode=phase,
        prefill=phase,
        load_imbalance=NUMBER,
        tokens_per_second_per_request=OPTIONAL_NUMBER,
        tokens_per_second_total=OPTIONAL_NUMBER,
        tokens_per_second_per_device=OPTIONAL_NUMBER,
        ttft_seconds=OPTIONAL_NUMBER,
        tpot_seconds=OPTIONAL_NUMBER,
        meets_targets=either(FLAG, NULL),
        misses=either(mapping(NUMBER), NULL),
        largest_batch=either(WHOLE, NULL),
        peak_tokens_per_second=OPTIONAL_NUMBER,
        compiled=either(compiled, NULL),
        measured=either(measured, NULL),
        compiled_for=either(dataclass_schema(CompiledCounts, {}), NULL),
    )


def _collective() -> Schema:
    found = thing(kind=TEXT, axes=array(TEXT), scope=TEXT, count=WHOLE, elements=WHOLE, dtype=TEXT, bytes=WHOLE)
    found = thing(**found["properties"], wire_bytes=NUMBER)
    return said(found, "`count` equal ones, each of `elements` per device, of which a device sends `wire_bytes`")


def decode() -> Schema:
    """A result for each prompt; floats that JSON does not have are null."""
    results = schema_of(list[DecodeResult], {float: OPTIONAL_NUMBER})
    return said(results, "A result for each prompt, in their order. Keys of log-probabilities are token ids.")


def bench() -> Schema:
    """`moejax bench latency`, `throughput` and `compare`: what is common, and the part that each has."""
    machine = thing(processor=TEXT, cores=WHOLE, memory_gb=NUMBER, system=TEXT, huge_pages=either(TEXT, NULL))
    model = thing(name=TEXT, parameters=WHOLE, active_parameters=WHOLE, dtype=TEXT)
    common = thing(
        command=TEXT,
        date=said(TEXT, "UTC, as in 2026-01-31T12:00:00Z"),
        machine=thing(**machine["properties"], features=array(TEXT)),
        versions=mapping(TEXT),
        model=maybe(model, expert_backend=TEXT, mesh=TEXT, dispatch=TEXT),
    )
    rates = ("copy_bytes_per_second", "read_bytes_per_second", "matrix_flops_per_second")
    return maybe(
        common,
        roofline=thing(**dict.fromkeys(rates, NUMBER)),
        latency=array(_latency()),
        throughput=_throughput(),
        compare=_compared(),
        strategies=_strategies(),
    )


def _latency() -> Schema:
    percentiles = thing(**dict.fromkeys(("10", "25", "50", "75", "90", "99"), NUMBER))
    timed = thing(seconds=array(NUMBER), percentiles=percentiles, tokens_per_second=NUMBER, stdev=NUMBER)
    step = thing(**dict.fromkeys(("weight_bytes", "cache_bytes", "flops", "bytes"), NUMBER))
    return thing(
        **dict.fromkeys(("batch_size", "input_len", "output_len"), WHOLE),
        avg_latency=NUMBER,
        latencies=array(NUMBER),
        percentiles=percentiles,
        prefill=timed,
        decode=either(timed, NULL),
        compile_seconds=NUMBER,
        counted=thing(how=TEXT, decode_step=either(step, NULL), prefill_flops=NUMBER),
        read_rates=array(NUMBER),
        mbu=OPTIONAL_NUMBER,
        mfu=NUMBER,
        peak_memory_bytes=WHOLE,
    )


def _throughput() -> Schema:
    ends = {"type": "array", "prefixItems": [WHOLE, WHOLE], "items": False}
    rates = ("elapsed_time", "requests_per_second", "tokens_per_second", "output_tokens_per_second")
    return thing(
        input_len=ends,
        output_len=ends,
        **dict.fromkeys(rates, NUMBER),
        num_requests=WHOLE,
        total_num_tokens=WHOLE,
        elapsed_times=array(NUMBER),
        elapsed_stdev=NUMBER,
        compile_seconds=NUMBER,
    )


def _compared() -> Schema:
    samples = thing(
        seconds=array(NUMBER),
        tokens_per_second=array(NUMBER),
        median_tokens_per_second=NUMBER,
        ratios=said(array(NUMBER), "seconds of this system over moejax's, round by round"),
        median_ratio=NUMBER,
    )
    result = thing(contender=TEXT, tokens=TEXT, worst_gap=OPTIONAL_NUMBER, mean_gap=OPTIONAL_NUMBER)
    result = thing(**result["properties"], warmup_seconds=NUMBER)
    work = thing(batch_size=WHOLE, input_len=WHOLE, output_len=WHOLE, name=TEXT)
    served = thing(contender=TEXT, how=TEXT, tokens=TEXT, **samples["properties"])
    counts = dict.fromkeys(("num_requests", "rounds", "prompt_tokens", "output_tokens"), WHOLE)
    contender = thing(
        name=TEXT, how=TEXT, serve_how=TEXT, load_seconds=NUMBER, warmup_seconds=NUMBER, failed=either(TEXT, NULL)
    )
    return thing(
        rounds=WHOLE,
        contenders=array(contender),
        works=array(thing(**work["properties"], results=array(maybe(result, prefill=samples, decode=samples)))),
        throughput=either(thing(**counts, results=array(served)), NULL),
        not_installed=said(mapping(TEXT), "systems, each with the reason"),
        threads=WHOLE,
    )


def _strategies() -> Schema:
    sent = {"collectives": WHOLE, "wire_bytes_per_device": NUMBER}
    work = thing(
        batch_size=WHOLE,
        input_len=WHOLE,
        padded_rows=WHOLE,
        decode_step=thing(**sent, weight_bytes_read=NUMBER),
        prefill=thing(**sent),
    )
    row = thing(strategy=TEXT, mesh=TEXT, dispatch=TEXT, weight_bytes_per_device=WHOLE, works=array(work))
    return thing(how=TEXT, rows=array(row))


def expert_load() -> Schema:
    return dataclass_schema(ExpertLoad, {})


def manifest() -> Schema:
    entry = dataclass_schema(ArrayEntry, {})
    written = {"enum": ["moejax-orbax", "moejax-safetensors"]}
    return dataclass_schema(Manifest, {}, format=written, format_version=WHOLE, arrays=mapping(entry))


# By the name of the file: its title, and what makes it.
SCHEMAS: Mapping[str, tuple[str, Callable[[], Schema]]] = {
    "mesh_compare": ("moejax mesh compare --json", mesh_compare),
    "decode": ("moejax decode --json", decode),
    "bench": ("moejax bench latency, throughput and compare, with --json", bench),
    "expert_load": ("An expert load: moejax decode --save-expert-load", expert_load),
    "manifest": ("manifest.json of a converted folder", manifest),
}


if __name__ == "__main__":
    main()
