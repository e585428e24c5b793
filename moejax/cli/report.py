"""What `moejax decode` prints besides text: tables of log-probabilities and routing, a line of statistics, JSON."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.cli.amounts import size
from moejax.cli.console import printable
from moejax.decoding.results import DecodeEvent, DecodeResult, Output, Stats, TokenLogprobs
from moejax.runtime.huge_pages import in_huge_pages, why_none

if TYPE_CHECKING:  # rich is imported where a table is made: plain text needs none
    import jax
    from rich.table import Table


def as_json(results: Sequence[DecodeResult]) -> str:
    """A JSON array with every field of every result.

    Token ids that are keys become strings; numbers that JSON does not have (NaN, infinities) become null.
    """
    return json.dumps([_as_json(dataclasses.asdict(result)) for result in results], allow_nan=False, ensure_ascii=False)


def as_object(result: DecodeResult) -> dict[str, Any]:
    """What `as_json` says of one result; of the statistics what is its own."""
    stats = {"prompt_tokens": result.stats.prompt_tokens, "generated_tokens": result.stats.generated_tokens}
    return _as_json(dataclasses.asdict(result)) | {"stats": stats}


def logprob_table(title: str, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> "Table":
    """One row per token: its log-probability and rank, and the most probable tokens there."""
    table = _table(title)
    table.add_column("place", justify="right")
    table.add_column("token", overflow="fold")
    table.add_column("id", justify="right")
    table.add_column("logprob", justify="right")
    table.add_column("rank", justify="right")
    table.add_column("most probable", overflow="fold")
    for place, (token, entry) in enumerate(zip(token_ids, entries, strict=True)):
        if entry is None:  # nothing comes before a prompt's first token
            table.add_row(str(place), "", str(token), "", "", "")
            continue
        chosen = entry[token]
        best = sorted(entry.values(), key=lambda candidate: candidate.rank)
        table.add_row(
            str(place),
            _quoted(chosen.decoded_token),
            str(token),
            f"{chosen.logprob:.3f}",
            str(chosen.rank),
            "  ".join(f"{_quoted(one.decoded_token)} {one.logprob:.2f}" for one in best if one is not chosen),
        )
    return table


def routing_table(routed: np.ndarray, num_experts: int) -> "Table":
    """How often each layer chose each expert, from `routed` [tokens, L, A]; one row per layer."""
    table = _table("how often each expert was chosen")
    table.add_column("layer", justify="right")
    for expert in range(num_experts):
        table.add_column(str(expert), justify="right")
    table.add_column("max/mean", justify="right")
    for layer in range(routed.shape[1]):
        counts = np.bincount(routed[:, layer].reshape(-1), minlength=num_experts)
        table.add_row(str(layer), *map(str, counts), f"{counts.max() / counts.mean():.2f}")
    return table


def statistics(stats: Sequence[Stats], endings: Sequence[str]) -> tuple[str, str]:
    """Two lines about a whole call, what was done and how fast; `endings` has the `ending` of each output."""
    generated = sum(one.generated_tokens for one in stats)
    seconds = max(one.call_decode_seconds for one in stats)
    later = sum(one.decode_tokens_per_second * one.decode_seconds for one in stats)
    counts = Counter(endings).most_common()
    ended = endings[0] if len(endings) == 1 else ", ".join(f"{count} {name}" for name, count in counts)
    done = [
        *([f"{len(stats)} prompts"] if len(stats) > 1 else []),
        f"prompt {_tokens(sum(one.prompt_tokens for one in stats))}",
        f"generated {generated:,} ({ended})",
    ]
    speed = [
        f"first token {min(one.ttft_seconds for one in stats):.3f} s",
        f"decode {later / seconds:,.1f} tokens/s" if later else "decode -",
        f"compile {max(one.compile_seconds for one in stats):.1f} s",
    ]
    return " | ".join(done), " | ".join(speed)


def memory_of_weights(arrays: "Iterable[np.ndarray | jax.Array]") -> str:
    """A line about weights in a CPU's memory: their bytes, and how much of them is in huge pages, or why nothing is."""
    huge, total = in_huge_pages(arrays)
    if huge:
        return f"weights {size(total)}, {100 * huge // total}% in huge pages"
    reason = why_none()
    return f"weights {size(total)}, none in huge pages" + (f" ({reason})" if reason else "")


def ending(output: Output | DecodeEvent) -> str:
    """Why an output ended: "length", "stop" for EOS, or "stop at" a text or token id."""
    assert output.finish_reason is not None, "the output has not ended"
    return output.finish_reason if output.stop_reason is None else f"{output.finish_reason} at {output.stop_reason!r}"


def _tokens(count: int) -> str:
    return f"{count:,} token" + ("" if count == 1 else "s")


def _table(title: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, expand=False)


def _quoted(token: str) -> str:
    """A token so that its spaces and line breaks can be seen."""
    return printable(repr(token))


def _as_json(value: Any) -> Any:
    """`value` with lists for tuples and arrays, and null for floats that JSON cannot express."""
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
