"""What `moejax info` found, as tables for people."""

import math
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moejax.cli.amounts import count, size
from moejax.cli.console import printable

_MOST_LISTED = 5  # names in one cell; --json has them all


def tables(found: dict[str, Any]) -> list[RenderableType]:
    """The parts to print, in order: the heading, the sizes, the features, and what fits here."""
    total, active = found["parameters"]["total"], found["parameters"]["active"]
    heading = Text(printable(found["source"]), style="bold")
    if found["folder"] is not None:
        heading.append(f"  {printable(found['folder'])}", style="dim")
    summary = f"{found['family'].capitalize()}, {count(total)} parameters, of which a token uses {count(active)}"
    return [heading, Text(summary), *map(_indented, (_sizes(found), _features(found), _fit(found)))]


def _sizes(found: dict[str, Any]) -> Table:
    config = found["config"]
    table = Table.grid(padding=(0, 2))
    for letter, name, field in (
        ("V", "vocabulary", "vocab_size"),
        ("D", "model width", "embed_dim"),
        ("L", "layers", "num_layers"),
        ("N", "query heads", "num_heads"),
        ("K", "key/value heads", "num_kv_heads"),
        ("H", "head width", "head_dim"),
        ("E", "experts", "num_experts"),
        ("A", "experts per token", "experts_per_token"),
        ("F", "expert hidden width", "expert_dim"),
    ):
        table.add_row(Text(letter, style="bold"), name, Text(f"{config[field]:,}", justify="right"))
    return table


def _features(found: dict[str, Any]) -> Table:
    config = found["config"]
    queries = config["num_heads"] // config["num_kv_heads"]
    window = config["sliding_window"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for name, value in (
        ("attention", "full" if window is None else f"sliding window of {window:,} tokens"),
        ("heads", "one key/value head each" if queries == 1 else f"{queries} query heads share a key/value head"),
        ("positions", f"at most {config['max_position_embeddings']:,}, rotary base {config['rope_theta']:,.10g}"),
        ("embeddings", "tied: the head is the embedding" if config["tie_embeddings"] else "head apart from embedding"),
        ("norms", f"epsilon {config['norm_eps']:g}"),
        ("experts", f"{count(found['parameters']['per_expert'])} parameters each, backend on this device: "
         f"{found['device']['expert_backend']}"),
        *_weights(found["weights"]),
        *_huge_pages(found["device"]["huge_pages"]),
        *_text(found),
    ):  # fmt: skip
        table.add_row(name, printable(value))
    return table


def _weights(weights: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if weights is None:
        yield "weights", "random, made when the model is loaded"
        return
    by_dtype, files, ignored = weights["bytes_by_dtype"], weights["bytes_by_file"], weights["ignored"]
    where = next(iter(files)) if len(files) == 1 else f"{len(files):,} {weights['stored_in']}"
    dtypes = (
        f"all {next(iter(by_dtype))}"
        if len(by_dtype) == 1
        else ", ".join(f"{size(nbytes)} {dtype}" for dtype, nbytes in by_dtype.items())
    )
    yield "weights", f"{size(weights['bytes'])} in {where}, {weights['tensors']:,} tensors, {dtypes}"
    if len(files) > 1:
        yield weights["stored_in"], _listed([f"{name} {size(nbytes)}" for name, nbytes in files.items()])
    if ignored:
        yield "ignored", _listed([f"{name} ({reason})" for name, reason in ignored.items()])
    for remark in weights["remarks"]:
        yield "remark", remark


def _huge_pages(pages: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if pages is not None:
        yield "huge pages", "yes, weights are loaded into them" if pages["available"] else f"none: {pages['reason']}"


def _text(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tokenizer = found["tokenizer"]
    if tokenizer is None:
        yield "tokenizer", "none: random weights take token ids"
        return
    if "missing" in tokenizer:
        yield "tokenizer", tokenizer["missing"]
    else:
        bos, eos = tokenizer["bos_token"], tokenizer["eos_token"]
        added = "" if bos is None else " (added to prompts)" if tokenizer["adds_bos"] else " (not added to prompts)"
        yield "tokenizer", f"{tokenizer['vocab_size']:,} tokens, BOS {bos or 'none'}{added}, EOS {eos or 'none'}"
        if tokenizer["remark"]:
            yield "", tokenizer["remark"]
        others = f"no default, only {', '.join(map(repr, tokenizer['chat_templates']))}"
        yield "chat template", "yes" if tokenizer["chat_template"] else others if tokenizer["chat_templates"] else "no"
    ends = [
        str(token_id) if text is None else f"{token_id} {text}"
        for token_id, text in zip(found["eos_token_ids"], found["eos_tokens"], strict=True)
    ]
    yield "text ends at", f"token {_listed(ends)}" if ends else "no token, only at --max-tokens or a stop"


def _fit(found: dict[str, Any]) -> Table:
    device, longest = found["device"], found["config"]["max_position_embeddings"]
    devices = math.prod(found["mesh"].values())
    mesh = ",".join(f"{axis}={parts}" for axis, parts in found["mesh"].items())
    where = "on this device" if devices == 1 else f"on each of {devices} like this device ({mesh}, {found['dispatch']})"
    title = f"{where}: {device['name']}, {size(device['free_bytes'])} free of {size(device['total_bytes'])}"
    table = Table(
        title=printable(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, expand=False
    )
    # Two lines of heading, so that 80 columns are enough.
    for name in ("dtype", "weights", "fits", "cache\nper token", "room for\ntokens", f"or texts\nof {longest:,}"):
        table.add_column(Text(name), justify="left" if name in ("dtype", "fits") else "right", vertical="bottom")
    for dtype, fit in found["fit"].items():
        tokens = fit["cache_tokens"]
        table.add_row(
            dtype,
            size(fit["weight_bytes"]),
            "yes" if fit["fits"] else f"no, {size(fit['weight_bytes'] - device['free_bytes'])} missing",
            size(fit["cache_bytes_per_token"]),
            *([] if tokens is None else [f"{tokens:,}", f"{tokens // longest:,}"]),
        )
    return table


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (1, 0, 0, 2), expand=False)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
