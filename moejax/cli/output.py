"""Decodes with a loaded model and prints what comes: a stream of text, finished texts with tables, or JSON."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax

import moejax
from moejax import DecodeResult, Model, SamplingParams
from moejax.cli import console, report
from moejax.decoding.results import TokenLogprobs


class Printed(NamedTuple):
    """What is known of a call when all of it is printed: the lines of statistics, and rows per layer and expert.

    memory: of the weights on a CPU; None elsewhere, and where nobody reads it.
    """

    done: str
    speed: str
    memory: str | None
    expert_rows: tuple[tuple[int, ...], ...]


def stream(model: Model, prompt: list[int], params: SamplingParams, *, quiet: bool) -> Printed:
    """Prints one output while it is generated."""
    events = moejax.decode(model, [prompt], params, stream=True)
    with console.progress("reading the prompt", quiet=quiet):
        last = next(events)
    ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for event in itertools.chain([last], events):
        last = event
        if event.logprob is not None:
            logprobs.append(event.logprob)
        if event.token_id is not None:
            ids.append(event.token_id)
            if not model.tokenizer:
                console.write(_ids_text([event.token_id], first=len(ids) == 1))
        console.write(event.text)
    console.write("\n")
    if logprobs:
        console.write_rendered("", report.logprob_table("log-probabilities", ids, logprobs))
    assert last.stats is not None, "the stream ended without its last event"
    done, speed = report.statistics([last.stats], [report.ending(last)])
    return Printed(done, speed, memory(model, quiet=quiet), last.stats.expert_rows)


def decode_all(
    model: Model, prompts: Sequence[list[int]], params: SamplingParams, *, json: bool, quiet: bool
) -> Printed:
    """Decodes all prompts together, then prints the results."""
    with console.progress("decoding", quiet=quiet):
        results = moejax.decode(model, prompts, params)
    if json:
        console.write(f"{report.as_json(results)}\n")
    else:
        _show(model, results)
    endings = [report.ending(output) for result in results for output in result.outputs]
    done, speed = report.statistics([result.stats for result in results], endings)
    return Printed(done, speed, memory(model, quiet=quiet), results[0].stats.expert_rows)


def memory(model: Model, *, quiet: bool) -> str | None:
    """How the weights lie in a CPU's memory; None on other devices, and unasked when `quiet`."""
    if quiet or model.devices[0].platform != "cpu":
        return None
    return report.memory_of_weights(jax.tree.leaves(model.params))


def _show(model: Model, results: Sequence[DecodeResult]) -> None:
    """Prints finished results: each text, then the tables that were asked for."""
    from rich.text import Text  # here, because streaming needs no rich

    several = sum(len(result.outputs) for result in results) > 1
    for index, result in enumerate(results):
        for output in result.outputs:
            if several:
                name = f"prompt {index}, output {output.index}" if len(result.outputs) > 1 else f"prompt {index}"
                console.write_rendered(
                    *([""] if (index, output.index) > (0, 0) else []), Text(f"--- {name} ---", style="bold")
                )
            console.write(output.text if model.tokenizer else _ids_text(output.token_ids))
            console.write("\n")
            if output.logprobs is not None:
                console.write_rendered("", report.logprob_table("log-probabilities", output.token_ids, output.logprobs))
            if output.routed_experts is not None:
                console.write_rendered("", report.routing_table(output.routed_experts, model.config.num_experts))
        if result.prompt_logprobs is not None:
            console.write_rendered(
                "",
                report.logprob_table(
                    "log-probabilities of the prompt", result.prompt_token_ids, result.prompt_logprobs
                ),
            )


def _ids_text(ids: Sequence[int], *, first: bool = True) -> str:
    """What stands for text where there is no tokenizer: ids as --token-ids takes them."""
    return ("" if first else " ") + " ".join(map(str, ids))
