"""Makes a report of what `moejax bench latency`, `throughput` or `compare` print with --json.

    moejax bench compare demo --peers transformers --json > result.json
    python -m scripts.bench_report result.json DIR

DIR gets report.json with every sample, report.md and the PNG plots that the result has data for; it is made, or written
over. Plots need matplotlib, which `pip install 'moejax[plot]'` brings.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from moejax.bench.machine import machine_line
from scripts.report_plots import draw_plots, plan_plots
from scripts.report_tables import compare_table, latency_table, strategies_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Figures that others published of systems that do not run here: cited, for scale alone.
PUBLISHED = DOCS / "benchmarks_published.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what a command printed")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the report goes")
    args = parser.parse_args()
    try:
        write_report(args.folder, read_result(args.result))
    except (OSError, ValueError) as error:
        parser.error(str(error))


def read_result(path: Path) -> dict[str, Any]:
    """A result that a command printed.

    Raises:
        OSError: when there is no such file.
        ValueError: when it holds something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); moejax bench prints it with --json") from error
    if not isinstance(result, dict) or not {"command", "machine", "model"} <= result.keys():
        raise ValueError(f"{path} is no result of moejax bench latency, throughput or compare with --json")
    return result


def write_report(folder: Path, result: dict[str, Any]) -> None:
    """Writes `report.json`, `report.md` and the plots that `result` has data for to `folder`.

    Raises:
        OSError: when the folder cannot be written, or that which it is in does not exist.
        ValueError: when matplotlib is not installed.
    """
    folder.mkdir(exist_ok=True)
    write_json(folder, result)
    draw_plots(folder, result)
    (folder / "report.md").write_text(markdown(result), encoding="utf-8")


def write_json(folder: Path, result: dict[str, Any]) -> None:
    """Writes `report.json`, every sample."""
    (folder / "report.json").write_text(f"{json.dumps(result, indent=1)}\n", encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    parts = ["# Benchmark\n", circumstances(result), *sections(result, level=2), pictures(result, "")]
    return "\n".join([*parts, PUBLISHED.read_text(encoding="utf-8")])


def pictures(result: dict[str, Any], folder: str) -> str:
    """The plots of a report, which lie in `folder`: a path that ends with a slash, or nothing."""
    return "".join(f"![{plot.what}]({folder}{plot.file})\n\n" for plot in plan_plots(result))


def sections(result: dict[str, Any], *, level: int) -> list[str]:
    """What was measured, a part for each kind, under headings of this level."""
    mark, parts = "#" * level, []
    if latency := result.get("latency"):
        parts += [f"{mark} Latency\n", _roofline(result["roofline"]), latency_table(latency)]
    if throughput := result.get("throughput"):
        parts += [f"{mark} Throughput\n", _throughput(throughput)]
    if compared := result.get("compare"):
        parts += [f"{mark} Beside other systems\n", _rules(compared), compare_table(compared), _systems(compared)]
    if strategies := result.get("strategies"):
        parts += [f"{mark} Parallelism\n", strategies_table(strategies)]
    return parts


def circumstances(result: dict[str, Any]) -> str:
    """Command, date, machine, versions, model."""
    model = result["model"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    details = ", ".join(str(model[key]) for key in ("dtype", "expert_backend", "mesh") if key in model)
    return (
        f"- command: `{result['command']}`\n"
        f"- date: {result['date']}\n"
        f"- machine: {machine_line(result['machine'])}\n"
        f"- versions: {versions}\n"
        f"- model: {model['name']}, {model['parameters'] / 1e6:,.0f} M parameters, of which a token uses "
        f"{model['active_parameters'] / 1e6:,.0f} M; {details}\n"
    )


def _roofline(roofline: dict[str, Any]) -> str:
    return (
        f"Measured in the same run: copy {roofline['copy_bytes_per_second'] / 1e9:.1f} GB/s (read plus written), read "
        f"{roofline['read_bytes_per_second'] / 1e9:.1f} GB/s, matrix products "
        f"{roofline['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s. MBU is of the rate of reading before and after "
        "each round, MFU of the matrix rate; bytes and FLOPs are closed forms, of the experts that were chosen.\n"
    )


def _throughput(one: dict[str, Any]) -> str:
    return (
        f"{one['num_requests']} requests, prompts of {one['input_len'][0]}-{one['input_len'][1]} and outputs of "
        f"{one['output_len'][0]}-{one['output_len'][1]} tokens, all at once: {one['elapsed_time']:.2f} ± "
        f"{one['elapsed_stdev']:.2f} s, {one['requests_per_second']:.2f} requests/s, {one['tokens_per_second']:,.1f} "
        f"tokens/s, of which {one['output_tokens_per_second']:,.1f} generated; compilation "
        f"{one['compile_seconds']:.1f} s, apart.\n"
    )


def _rules(compared: dict[str, Any]) -> str:
    served = compared["throughput"]
    requests = f" ({served['rounds']} of the ragged requests)" if served else ""
    rounds = "1 round" if compared["rounds"] == 1 else f"{compared['rounds']} rounds"
    return (
        f"Every system in a process of its own with {compared['threads']} threads; same weights, prompts and dtype; "
        f"{rounds}{requests}, interleaved, in turning order. Loading, tokenization, compilation and "
        "one warm-up call are in no time and shown below. Greedy tokens were judged first, in float32. The ratio is "
        "moejax's speed over the system's, round by round; **bold** is a loss of moejax.\n"
    )


def _systems(compared: dict[str, Any]) -> str:
    lines = []
    for one in compared["contenders"]:
        served = f"; ragged requests: {one['serve_how']}" if one["serve_how"] and compared["throughput"] else ""
        apart = f"; loading {one['load_seconds']:.1f} s, compiling and warming up {one['warmup_seconds']:.1f} s"
        failed = f"; FAILED: {one['failed']}" if one["failed"] else ""
        lines.append(f"- {one['name']}: {one['how'] or 'did not load'}{served}{apart}{failed}")
    lines += [f"- {name}: {reason}" for name, reason in compared["not_installed"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
