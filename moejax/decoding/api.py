"""`decode` and `logits`, the two things to do with a model."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal, overload

import numpy as np

from moejax.decoding.engine import DecodeRun
from moejax.decoding.failures import NonFiniteLogitsError, failure_in, failure_of
from moejax.decoding.prompt_reports import prompt_logprobs
from moejax.decoding.requests import Prompts, Request, make_requests, prompt_token_ids, split_prompts
from moejax.decoding.results import DecodeEvent, DecodeResult, Stats
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.sequences import NewTokens, SequenceGroup
from moejax.loading import Model
from moejax.model.scoring import full_logits
from moejax.runtime import buckets
from moejax.runtime.agreement import check_same
from moejax.runtime.ambient import in_settled

Params = SamplingParams | Sequence[SamplingParams] | None


@overload
def decode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: Literal[False] = False, **overrides: Any
) -> list[DecodeResult]: ...
@overload
def decode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: Literal[True], **overrides: Any
) -> Iterator[DecodeEvent]: ...
def decode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: bool = False, **overrides: Any
) -> list[DecodeResult] | Iterator[DecodeEvent]:
    """Continues prompts.

    Args:
        model: from `load`.
        prompts: a string, a list of token ids, a list of either, of different lengths, or an array of token ids [B, T]
            or [T], numpy's or JAX's.
        params: one `SamplingParams` for all prompts, or one each.
        stream: return an iterator of events, which arrive as tokens are generated, instead of a list of results.
        overrides: fields of `SamplingParams`, in place of those in `params`.

    Returns:
        A result per prompt, in their order; or the events, of all prompts interleaved.

    Raises:
        ValueError: for a model that was not loaded, a prompt or parameter that cannot be served, `prompt_logprobs` or
            `return_routed_experts` with `stream`, or anything that another process of this run was not given as well.
            It is raised by this call, not by the iterator.
        NonFiniteLogitsError: where the logits of a prompt's next token are NaN or infinite, as float16 makes them of
            some models; a stream has yielded what came before.
    """
    run = prepared(model, prompts, params, overrides, stream=stream, began=time.perf_counter())
    if stream:
        return streamed(run)
    for gained in run.tokens():
        check_finite(model, gained)
    return [result_of(run, request) for request in run.requests]


def prepared(
    model: Model, prompts: Prompts, params: Params, overrides: Mapping[str, Any], *, stream: bool, began: float
) -> DecodeRun:
    """A call of `decode`, checked and ready to run.

    Raises:
        ValueError: as `decode`.
    """
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
    return DecodeRun(model=model, requests=requests, stream=stream, began=began)


def encode_chat(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The token ids of a chat, through the model's own template: a prompt for `decode`.

    Args:
        model: from `load`.
        messages: mappings with "role" ("system", "user", "assistant") and "content", from the first to the last.
        add_generation_prompt: whether the prompt ends with the beginning of the assistant's answer.
        template_kwargs: further variables for the template.

    Raises:
        ValueError: for a model without a tokenizer or a template, and for messages that the template does not take.
    """
    from moejax.text import chat  # here, because jinja2 is only needed for chats

    _check_loaded(model)
    if model.tokenizer is None:
        raise ValueError(f"a chat is text, but {model.no_tokenizer_reason}")
    return chat.encode_chat(
        model.tokenizer, messages, add_generation_prompt=add_generation_prompt, template_kwargs=template_kwargs
    )


@in_settled
def logits(model: Model, prompts: Prompts) -> list[np.ndarray]:
    """Next-token logits at every position of every prompt, teacher-forced and without a lasting cache.

    Returns:
        For each prompt of T tokens a float32 array [T, V]. They are as they were computed: where the numbers of a model
        overflow, NaN and infinity are among them and no error, for whoever looks for the place; `decode` refuses them.

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
        count = model.parallel.rules.parts("batch")  # one prompt, and padding where a batch is split
        tokens, lengths = np.zeros((count, width), np.int32), np.zeros((count,), np.int32)
        tokens[0, : len(ids)], lengths[0] = ids, len(ids)
        values = model.programs.call(
            ("logits", width),
            lambda params, *args: full_logits(model.merged(params), *args),
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


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request that nothing more comes of.

    groups: its sequences; none where they could not begin.  result: what came of it, or what it failed with.
    """

    request: Request
    groups: Sequence[SequenceGroup]
    result: DecodeResult | Exception


@in_settled
def decode_each(model: Model, requests: Sequence[Request]) -> Iterator[Ended]:
    """Continues many prompts, and yields each when it has ended, in no order; one that fails does not end the others.

    requests: each with an index of its own. Those that have no room together are decoded in parts.
    """
    if not requests:
        return
    run = DecodeRun(model=model, requests=list(requests), stream=False, began=time.perf_counter())
    try:
        run.check_fits()
    except ValueError as error:
        if len(requests) == 1:
            yield Ended(request=requests[0], groups=(), result=error)
            return
        ordered = sorted(requests, key=lambda one: len(one.prompt) + one.params.max_tokens)
        half = len(ordered) // 2
        yield from decode_each(model, ordered[:half])
        yield from decode_each(model, ordered[half:])
        return
    for gained in run.tokens():
        for request in {one.group.request.index: one.group.request for one in gained}.values():
            groups = run.groups[request.index]
            if all(group.finished for group in groups):
                del run.groups[request.index]  # it is told once, and its tokens are not kept
                yield Ended(request=request, groups=groups, result=_outcome(run, request, groups))


def _outcome(run: DecodeRun, request: Request, groups: list[SequenceGroup]) -> DecodeResult | Exception:
    for sequence in (one for group in groups for one in group.sequences):
        if failure := failure_of(sequence, run.model.dtype):
            return failure
    try:
        return _result(run, request, groups)
    except NonFiniteLogitsError as error:  # inside the prompt
        return error


def streamed(run: DecodeRun) -> Iterator[DecodeEvent]:
    """The events of a run that was prepared for a stream."""
    for gained in run.tokens():
        for step in range(max((len(one.events) for one in gained), default=0)):
            for one in gained:
                if step < len(one.events):
                    event = one.events[step]
                    if event.finish_reason is not None:
                        request = one.group.request
                        event = replace(event, stats=_stats(run, request, run.groups[request.index]))
                    yield event
        check_finite(run.model, gained)


def check_finite(model: Model, gained: list[NewTokens]) -> None:
    """Raises NonFiniteLogitsError for the first sequence whose logits are not finite."""
    if failure := failure_in(gained, model.dtype):
        raise failure


def _stats(run: DecodeRun, request: Request, groups: Sequence[SequenceGroup]) -> Stats:
    """The statistics of one prompt that has tokens, so far."""
    times = run.request_times[request.index]
    decode_seconds = times.decode_after - times.decode_before
    sequences = [one for group in groups for one in group.sequences]
    generated = sum(len(one.tokens) for one in sequences)
    later = generated - sum(1 for one in sequences if one.tokens)
    return Stats(
        prompt_tokens=len(request.prompt),
        padded_rows=max(0, run.batch - run.sequences),
        device_rows=_device_rows(run.model, run.expert_rows),
        expert_rows=_expert_rows(run.model, run.expert_rows),
        generated_tokens=generated,
        ttft_seconds=times.ttft,
        prefill_seconds=times.prefill,
        decode_seconds=decode_seconds,
        decode_tokens_per_second=later / decode_seconds if decode_seconds > 0 else 0.0,
        call_decode_seconds=run.times.decode,
        compile_seconds=run.model.programs.compile_seconds - run.times.compiled_before,
    )


def _device_rows(model: Model, rows: np.ndarray) -> tuple[int, ...]:
    """Rows per device from rows per place [d, L, P]; devices along `tensor` share the rows of their experts."""
    mesh = model.mesh
    by_owner = rows.sum(axis=1).reshape(mesh.data, mesh.expert, -1).sum(axis=-1)
    return tuple(np.repeat(by_owner.reshape(-1), mesh.tensor).tolist())


def _expert_rows(model: Model, rows: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Rows per expert [L][E] from rows per place [d, L, P]."""
    return tuple(map(tuple, model.structure.experts.by_expert(rows).sum(axis=0).tolist()))


def result_of(run: DecodeRun, request: Request) -> DecodeResult:
    """What one request of a run that has ended came to."""
    return _result(run, request, run.groups[request.index])


def _result(run: DecodeRun, request: Request, groups: Sequence[SequenceGroup]) -> DecodeResult:
    reports = groups[0].prompt_reports
    experts = None
    if request.params.return_routed_experts:
        experts = np.concatenate([np.asarray(report.experts) for report in reports])[: len(request.prompt)]
    return DecodeResult(
        prompt_token_ids=request.prompt,
        prompt_logprobs=prompt_logprobs(groups[0], index=request.index, dtype=run.model.dtype),
        outputs=[one.result(experts) for group in groups for one in group.sequences],
        stats=_stats(run, request, groups),
    )
