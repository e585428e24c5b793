"""`decode` and `logits`, the two things to do with a model."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal, overload

import jax
import numpy as np

from moejax.decoding import engine, steps
from moejax.decoding.requests import Prompt, Request, make_requests, prompt_token_ids, split_prompts
from moejax.decoding.results import DecodeEvent, DecodeResult, Stats, TokenLogprobs
from moejax.decoding.rows import Row, token_logprobs
from moejax.decoding.sampling_params import SamplingParams
from moejax.loading import Model
from moejax.runtime import buckets
from moejax.runtime.agreement import check_same

Params = SamplingParams | Sequence[SamplingParams] | None


@overload
def decode(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    params: Params = None,
    *,
    stream: Literal[False] = False,
    **overrides: Any,
) -> list[DecodeResult]: ...
@overload
def decode(
    model: Model, prompts: Prompt | Sequence[Prompt], params: Params = None, *, stream: Literal[True], **overrides: Any
) -> Iterator[DecodeEvent]: ...
def decode(
    model: Model, prompts: Prompt | Sequence[Prompt], params: Params = None, *, stream: bool = False, **overrides: Any
) -> list[DecodeResult] | Iterator[DecodeEvent]:
    """Continues prompts.

    Args:
        model: from `load`.
        prompts: a string, a list of token ids, or a list of either, of different lengths.
        params: one `SamplingParams` for all prompts, or one each.
        stream: return an iterator of events, which arrive as tokens are generated, instead of a list of results.
        overrides: fields of `SamplingParams`, in place of those in `params`.

    Returns:
        A result per prompt, in their order; or the events, of all prompts interleaved.

    Raises:
        ValueError: for a model that was not loaded, a prompt or parameter that cannot be served, `prompt_logprobs` or
            `return_routed_experts` with `stream`, or anything that another process of this run was not given as well.
            It is raised by this call, not by the iterator.
    """
    began = time.perf_counter()
    _check_loaded(model)
    requests = make_requests(model, prompts, params, overrides)
    if stream:
        _check_streamable(requests)
    check_same(
        {
            "prompts": [request.prompt for request in requests],
            "sampling parameters": [(request.params, request.stop_ids) for request in requests],
            "form of output (streamed or not)": stream,  # a stream takes fewer steps per call
        }
    )
    if stream:
        return _stream(model, requests, began)
    return _decode(model, requests, began)


def logits(model: Model, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Next-token logits at every position of every prompt, teacher-forced and without a lasting cache.

    Returns:
        For each prompt of T tokens a float32 array [T, V].

    Raises:
        ValueError: for a model that was not loaded, or a prompt that is empty, too long, or has an id that the model
            does not have.
    """
    _check_loaded(model)
    given = [prompt_token_ids(model, index, prompt) for index, prompt in enumerate(split_prompts(prompts))]
    for index, ids in enumerate(given):
        if len(ids) > model.max_seq_len:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens, past the limit of {model.max_seq_len} (max_seq_len)"
            )
    check_same({"prompts": given})
    results = []
    for ids in given:
        width = buckets.length_bucket(len(ids), buckets.MIN_PROMPT)
        rows = model.parallel.rules.parts("batch")  # one prompt, and padding where a batch is split
        tokens, lengths = np.zeros((rows, width), np.int32), np.zeros((rows,), np.int32)
        tokens[0, : len(ids)], lengths[0] = ids, len(ids)
        values = model.programs.call(
            ("logits", width),
            lambda params, *args: steps.full_logits(model.merged(params), *args),
            model.params,
            tokens,
            lengths,
        )
        results.append(np.asarray(values)[0, : len(ids)])
    return results


def _check_loaded(model: Any) -> None:
    if isinstance(model, str | PathLike):
        raise ValueError(f"model is {str(model)!r}; load it first: model = moejax.load({str(model)!r})")
    if not isinstance(model, Model):
        raise ValueError(f"model must be what moejax.load returns, got a {type(model).__name__}")


def _check_streamable(requests: list[Request]) -> None:
    """Raises ValueError for what events do not carry, rather than leaving it out."""
    for name in ("prompt_logprobs", "return_routed_experts"):
        values = [getattr(request.params, name) for request in requests]
        if any(value is not None and value is not False for value in values):
            raise ValueError(f"{name} is part of a result and not of a stream's events: use stream=False")


def _rows(model: Model, requests: list[Request]) -> list[Row]:
    return [
        Row(request=request, output=output, tokenizer=model.tokenizer, eos_token_ids=model.eos_token_ids)
        for request in requests
        for output in range(request.params.n)
    ]


def _batches(model: Model, rows: list[Row], began: float) -> Iterator[engine.Batch]:
    compiled_before = model.programs.compile_seconds
    for part in engine.split_batches(rows):
        yield engine.Batch(
            rows=part,
            timing=engine.Timing(began=began, compiled_before=compiled_before),
            expert_rows=np.zeros(model.expert_rows_shape, np.int64),
        )


def _decode(model: Model, requests: list[Request], began: float) -> list[DecodeResult]:
    rows = _rows(model, requests)
    batches_of: dict[int, list[engine.Batch]] = {request.index: [] for request in requests}
    call: list[engine.Batch] = []
    for batch in _batches(model, rows, began):
        for _ in engine.run_batch(model, batch, stream=False):
            pass
        call.append(batch)
        for index in {row.request.index for row in batch.rows}:
            batches_of[index].append(batch)
    rows_of: dict[int, list[Row]] = {request.index: [] for request in requests}
    for row in rows:
        rows_of[row.request.index].append(row)
    return [_result(model, r, rows_of[r.index], batches_of[r.index], call) for r in requests]


def _stream(model: Model, requests: list[Request], began: float) -> Iterator[DecodeEvent]:
    rows = _rows(model, requests)
    batches: list[engine.Batch] = []
    for batch in _batches(model, rows, began):
        batches.append(batch)
        for event in engine.run_batch(model, batch, stream=True):
            if event.finish_reason is not None:
                mine = [row for row in rows if row.request.index == event.index]
                event = replace(event, stats=_stats(model, mine, batches[-_batch_count(mine, batch) :], batches))
            yield event


def _batch_count(rows: list[Row], last: engine.Batch) -> int:
    """How many batches, up to `last`, the rows of one prompt were decoded in."""
    earlier = sum(1 for row in rows if row.tokens and row not in last.rows)
    return 1 + -(-earlier // engine.MAX_ROWS)


def _stats(model: Model, rows: list[Row], batches: list[engine.Batch], call: list[engine.Batch]) -> Stats:
    """The statistics of one prompt, from its own batches and all batches of the call."""
    timings = [batch.timing for batch in batches]
    decode_seconds = sum(timing.decode for timing in timings)
    generated = sum(len(row.tokens) for row in rows)
    later = generated - sum(1 for row in rows if row.tokens)
    return Stats(
        prompt_tokens=len(rows[0].request.prompt),
        padded_rows=sum(timing.padded_rows for timing in timings),
        device_rows=_device_rows(model, np.sum([batch.expert_rows for batch in batches], axis=0)),
        expert_rows=tuple(map(tuple, np.sum([batch.expert_rows for batch in call], axis=(0, 1)).tolist())),
        generated_tokens=generated,
        ttft_seconds=timings[0].ttft,
        prefill_seconds=sum(timing.prefill for timing in timings),
        decode_seconds=decode_seconds,
        decode_tokens_per_second=later / decode_seconds if decode_seconds > 0 else 0.0,
        call_decode_seconds=sum(batch.timing.decode for batch in call),
        compile_seconds=model.programs.compile_seconds - timings[0].compiled_before,
    )


def _device_rows(model: Model, expert_rows: np.ndarray) -> tuple[int, ...]:
    """Rows per device from rows per expert [d, L, E]; devices along `tensor` share the rows of their experts."""
    mesh = model.mesh
    by_owner = expert_rows.sum(axis=1).reshape(mesh.data, mesh.expert, -1).sum(axis=-1)
    return tuple(np.repeat(by_owner.reshape(-1), mesh.tensor).tolist())


def _result(
    model: Model, request: Request, rows: list[Row], batches: list[engine.Batch], call: list[engine.Batch]
) -> DecodeResult:
    reports = batches[0].prompt_reports.get(request.index, [])
    if request.params.return_routed_experts:
        fed = np.concatenate([np.asarray(report.experts) for report in reports])[: len(request.prompt)]
        for row in rows:
            row.experts.insert(0, fed)
    return DecodeResult(
        prompt_token_ids=request.prompt,
        prompt_logprobs=_prompt_logprobs(model, request, reports),
        outputs=[row.result() for row in rows],
        stats=_stats(model, rows, batches, call),
    )


def _prompt_logprobs(
    model: Model, request: Request, reports: list[steps.PromptReport]
) -> list[TokenLogprobs | None] | None:
    best = request.params.prompt_logprobs
    if best is None:
        return None
    parts = [report.scores for report in reports if report.scores is not None]
    scores = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)  # [all parts' T], of the token that follows
    entries: list[TokenLogprobs | None] = [None]
    for place, token in enumerate(request.prompt[1:]):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], scores)
        entries.append(token_logprobs(model.tokenizer, token, one, best))
    return entries
