"""`moejax convert`: Hugging Face safetensors to Orbax, or back."""

import dataclasses
import json as json_format
import os
from typing import TYPE_CHECKING, Annotated

import typer

from moejax.cli import console, options
from moejax.cli.groups import grouped
from moejax.cli.options import a_name, option, whole
from moejax.cli.progress import byte_bars
from moejax.cli.sources import Revision, pinned

if TYPE_CHECKING:
    from moejax import ConversionReport

EXAMPLES = (
    "moejax convert path/to/hf-folder path/to/orbax-folder",
    "moejax convert path/to/orbax-folder path/to/hf-folder --shard-size 2GB",
    "moejax convert demo demo-orbax --dtype float32 --verify-logits",
)

_FIXED_BYTES = 600_000_000  # what the memory bound allows beside three times the largest item


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """The arguments of `moejax.convert` of the same names."""

    dtype: Annotated[str, a_name("--dtype", help="bfloat16, float16 or float32; auto keeps what is stored.")] = "auto"
    restart: Annotated[
        bool, option("--restart", help="Begin anew where a conversion, finished or not, is in TARGET.")
    ] = False
    force: Annotated[
        bool, option("--force", help="Convert into a folder that holds something else; weights there are replaced.")
    ] = False
    allow_nan: Annotated[
        bool, option("--allow-nan", help="Convert NaN and infinite values instead of refusing them.")
    ] = False
    verify: Annotated[bool, option("--verify/--no-verify", help="Read every array back and compare its checksum.")] = (
        True
    )
    verify_logits: Annotated[
        bool, option("--verify-logits", help="Compare the logits of SOURCE and TARGET, one model after the other.")
    ] = False
    workers: Annotated[int, whole("--workers", help="Items in flight, as far as memory allows.")] = 2
    shard_size: Annotated[
        str | None,
        option("--shard-size", metavar="SIZE", help="Most bytes in a safetensors file, as in 500MB; 5GB if not given."),
    ] = None


@grouped
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face folder, a converted folder, the id of a model there (ORG/NAME), or demo.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="The folder to make; an unfinished one is continued.", show_default=False
        ),
    ],
    flags: ConvertFlags,
    revision: Revision = None,
    json: Annotated[bool, option("--json", help="Print the report as a JSON object and not as text.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Convert a checkpoint from Hugging Face's format to Orbax, or back. The same command continues a stopped one."""
    if not flags.verify_logits:
        # Arrays stay on the host: without this JAX, which Orbax starts, would take most of a GPU's memory.
        os.environ["JAX_PLATFORMS"] = "cpu"
    import moejax

    source = pinned(source, revision, quiet=quiet)
    with byte_bars({"convert": "converting", "check": "reading back"}, quiet=quiet) as on_progress:
        report = moejax.convert(source, target, **vars(flags), on_progress=on_progress)
    if not quiet:
        for remark in report.remarks:
            console.warn(remark)
        for path, problem in report.changed.items():
            console.warn(f"{path} {problem}")
    if json:
        console.write(f"{json_format.dumps(_as_json(report), ensure_ascii=False)}\n")
    elif not quiet:
        console.write("".join(f"{console.printable(line)}\n" for line in _lines(report)))
    if report.logits is not None and not report.logits.passed:
        raise ValueError(
            f"the logits of {target} are not those of {source}: they differ by up to {report.logits.max_abs:.3g}; "
            "convert again with --restart"
        )


def _as_json(report: "ConversionReport") -> dict[str, object]:
    fields = dataclasses.asdict(dataclasses.replace(report, ignored=dict(report.ignored), redone=dict(report.redone)))
    return fields | {"target": str(report.target), "memory_bound_bytes": _bound(report)}


def _bound(report: "ConversionReport") -> int:
    return 3 * report.largest_item_bytes + _FIXED_BYTES


def _lines(report: "ConversionReport") -> list[str]:
    """What happened, in a few lines."""
    seconds = f"{report.convert_seconds:.1f} s"
    if not report.converted:
        first = f"already converted, {report.items} items"
    elif report.kept:
        first = f"converted {report.converted} items in {seconds}; {report.kept} were done before and read back"
    else:
        first = f"converted {report.items} items in {seconds}, {report.bytes / report.convert_seconds / 1e6:.0f} MB/s"
    checked = (
        f"every array read back in {report.check_seconds:.1f} s" if report.checked else "not read back (--no-verify)"
    )
    lines = [f"{report.target}: {first}; {_size(report.bytes)} in all", checked]
    lines += [f"written again, because {problem}" for problem in report.redone.values()]
    reasons: dict[str, list[str]] = {}
    for name, reason in report.ignored.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        lines.append(f"left out: {names[0]}{more} ({reason})")
    if report.logits is not None:
        same = "bit-equal" if report.logits.bit_equal else f"within {report.logits.max_abs:.3g}"
        lines.append(f"logits of {report.logits.positions} positions: {same}")
    lines.append(f"peak memory {_size(report.peak_memory_bytes)}, of {_size(_bound(report))} allowed")
    return lines


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
