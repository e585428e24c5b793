"""`moejax bench throughput`: many ragged requests at once."""

import json as json_format
from typing import Annotated

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli.bench_runs import check_length, describe_model, headline
from moejax.cli.groups import grouped

EXAMPLES = (
    "moejax bench throughput path/to/checkpoint --num-prompts 64 -p 16-256 -n 16-256",
    "moejax bench throughput --random 186m --json",
)


@grouped
def throughput(
    source: flags.SourceFlags,
    model: options.ModelFlags,
    mesh: options.MeshFlags,
    num_prompts: Annotated[int, options.whole("--num-prompts", panel=flags.WORK, help="Requests in all.")] = 64,
    input_len: Annotated[
        flags.Range, flags.range_option("--input-len", "-p", help="Tokens of each prompt")
    ] = flags.RAGGED,
    output_len: Annotated[
        flags.Range, flags.range_option("--output-len", "-n", help="Tokens generated after each prompt")
    ] = flags.RAGGED,
    num_iters: flags.Rounds = 3,
    json: flags.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time N requests of random lengths, all given at once, after one round that compiles."""
    from moejax.bench.works import ragged_requests
    from moejax.cli.facts import read_facts

    facts = read_facts(source.source(quiet=quiet), None)
    check_length(facts, input_len[1] + output_len[1])
    requests = ragged_requests(num_prompts, input_len, output_len, facts.config.vocab_size)
    startup.prepare_jax(compile_cache=not model.no_compile_cache, quiet=quiet)
    from moejax.bench.latency import check_rounds
    from moejax.bench.machine import describe_run
    from moejax.bench.throughput import measure_throughput
    from moejax.cli.load import load_model

    check_rounds(1, num_iters)
    loaded = load_model(facts, mesh, model, batch_size=num_prompts, timed=True, quiet=quiet)
    with console.progress("timing", quiet=quiet) as step:
        measured = measure_throughput(loaded, requests, rounds=num_iters, on_round=step)
    lengths = {"input_len": list(input_len), "output_len": list(output_len)}
    result = {**describe_run(), "model": describe_model(loaded, facts.name), "throughput": lengths | measured}
    if json:
        console.write(f"{json_format.dumps(result)}\n")
        return
    console.write(
        f"{headline(result)}\n"
        f"{measured['num_requests']} requests, prompts of {input_len[0]}-{input_len[1]} and outputs of "
        f"{output_len[0]}-{output_len[1]} tokens: {measured['elapsed_time']:.2f} ± {measured['elapsed_stdev']:.2f} s\n"
        f"{measured['requests_per_second']:.2f} requests/s, {measured['tokens_per_second']:,.1f} tokens/s, of which "
        f"{measured['output_tokens_per_second']:,.1f} generated | compile {measured['compile_seconds']:.1f} s\n"
    )
