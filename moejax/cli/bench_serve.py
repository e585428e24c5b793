"""`moejax bench serve`: load against a running OpenAI-compatible server."""

import dataclasses
import json as json_format
import math
from typing import TYPE_CHECKING, Annotated

from moejax.cli import console, options
from moejax.cli.groups import grouped
from moejax.cli.options import option, real, whole

if TYPE_CHECKING:
    from moejax.bench.serving_load import Load

EXAMPLES = (
    "moejax bench serve --base-url http://127.0.0.1:8000 --num-prompts 200 --max-concurrency 16",
    "moejax bench serve --request-rate 8 --input-len 512 --output-len 128 --json > result.json",
)

SOME_FAILED = 1  # exit code


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadFlags:
    """The fields of `Load`."""

    base_url: Annotated[str, option("--base-url", metavar="URL", help="Where the server is.")] = "http://127.0.0.1:8000"
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="Its name there; the first of /v1/models by default.")
    ] = None
    api_key: Annotated[
        str | None,
        option("--api-key", metavar="KEY", envvar="MOEJAX_API_KEY", help="What the server was started with."),
    ] = None
    num_prompts: Annotated[int, whole("--num-prompts", help="Requests in all.")] = 100
    request_rate: Annotated[
        float, real("--request-rate", help="Requests per second, at random times; inf sends all at once.")
    ] = math.inf
    max_concurrency: Annotated[int | None, whole("--max-concurrency", help="Most requests under way at a time.")] = None
    input_len: Annotated[int, whole("--input-len", "-p", help="Mean tokens of a prompt.")] = 128
    output_len: Annotated[int, whole("--output-len", "-n", help="Mean tokens of an answer.")] = 128
    range_ratio: Annotated[
        float, real("--range-ratio", help="Lengths differ from their mean by up to this part of it.")
    ] = 0.5
    vocab_size: Annotated[int, whole("--vocab-size", help="Prompts are random token ids below N.")] = 1000
    temperature: Annotated[float, real("--temperature", help="0 takes the most probable token.")] = 0.0
    ignore_eos: Annotated[
        bool, option("--ignore-eos/--no-ignore-eos", help="Whether every answer has its full length.")
    ] = True
    seed: Annotated[int, whole("--seed", help="Of lengths, prompts and times of sending.")] = 0
    timeout: Annotated[float, real("--timeout", help="Seconds of silence after which a request has failed.")] = 600.0


@grouped
def serve(
    flags: LoadFlags,
    json: Annotated[bool, option("--json", help="Print JSON, with the keys of vllm bench serve.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Measure a running server under load. Exit code 0: every request was answered, 1: some failed."""
    from moejax.bench import serving_load, serving_report  # here, so that --help starts quickly

    load = serving_load.Load(**{**vars(flags), "model": flags.model or ""})
    if flags.model is None:  # asked for last: a wrong flag is told without a server
        load = dataclasses.replace(load, model=_model_of(load))
    requests = serving_load.plan(load)
    with console.progress(f"sending {flags.num_prompts} requests", quiet=quiet) as step:
        warning = serving_load.await_programs(load, step)
        step(f"sending {flags.num_prompts} requests")
        outcomes, duration = serving_load.run(load, requests)
    if warning and not quiet:
        console.warn(warning)
    summary = serving_report.summarize(load, outcomes, duration)
    if json:
        console.write(f"{json_format.dumps(summary, allow_nan=False)}\n")
    else:
        console.write(f"{serving_report.counts_line(summary)}\n")
        console.write_rendered(serving_report.latency_table(summary))
    for line in serving_report.error_lines(outcomes):
        console.error(line)
    return SOME_FAILED if summary["failed"] else 0


def _model_of(load: "Load") -> str:
    """The first model that the server lists.

    Raises:
        ValueError: when it does not answer.
    """
    import http.client

    from moejax.bench.serving_request import Refused, get_json

    try:
        return get_json(load.url, "/v1/models", load.headers, timeout=10.0)["data"][0]["id"]
    except Refused as error:
        raise ValueError(
            f"the server at {load.base_url} answers {error}; or give the model's name with --model"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"no model can be found at {load.base_url} ({error}); start a server with: moejax serve CHECKPOINT"
        ) from error
    except (LookupError, TypeError) as error:
        raise ValueError(f"{load.base_url}/v1/models lists no model; give its name with --model") from error
