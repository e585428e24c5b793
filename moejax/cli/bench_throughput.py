"""`moejax bench throughput`: many ragged requests at once."""

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags
from moejax.cli.bench_runs import check_length, describe_model, load_timed, write_result

EXAMPLES = (
    "moejax bench throughput path/to/checkpoint --num-prompts 64 -p 16-256 -n 16-256",
    "moejax bench throughput --random 186m --json",
)


def throughput(
    checkpoint: flags.Checkpoint = None,
    random: flags.Random = None,
    num_prompts: flags.NumPrompts = 64,
    input_len: flags.InputRange = flags.RAGGED,
    output_len: flags.OutputRange = flags.RAGGED,
    num_iters: flags.Rounds = 3,
    json: flags.Json = False,
    report: flags.Report = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    dtype: options.Dtype = "bfloat16",
    expert_backend: options.ExpertBackend = "auto",
    model_seed: flags.Seed = 0,
    no_compile_cache: options.NoCompileCache = False,
    mesh: device_flags.Mesh = None,
    dispatch: device_flags.Dispatch = "auto",
) -> None:
    """Time N requests of random lengths, all given at once, after one round that compiles."""
    from moejax.bench.source import resolve_source
    from moejax.bench.works import ragged_requests
    from moejax.cli.facts import read_facts

    source = resolve_source(checkpoint, random)
    check_length(source, input_len[1] + output_len[1])
    requests = ragged_requests(num_prompts, input_len, output_len, read_facts(source, None).config.vocab_size)
    if report is not None:
        from moejax.bench.report import check_report

        check_report(report)
    startup.prepare_jax(compile_cache=not no_compile_cache, quiet=quiet)
    from moejax.bench.latency import check_rounds
    from moejax.bench.machine import describe_run
    from moejax.bench.throughput import measure_throughput

    check_rounds(1, num_iters)
    model = load_timed(
        source,
        mesh,
        dispatch,
        dtype=dtype,
        expert_backend=expert_backend,
        seed=model_seed,
        batch_size=num_prompts,
        quiet=quiet,
    )
    with console.progress("timing", quiet=quiet) as step:
        measured = measure_throughput(model, requests, rounds=num_iters, on_round=step).as_json()
    lengths = {"input_len": list(input_len), "output_len": list(output_len)}
    result = {
        **describe_run(),
        "model": describe_model(model, source),
        "throughput": lengths | measured,
    }
    if not write_result(result, report, json=json):
        return
    console.write(
        f"{measured['num_requests']} requests, prompts of {input_len[0]}-{input_len[1]} and outputs of "
        f"{output_len[0]}-{output_len[1]} tokens: {measured['elapsed_time']:.2f} ± {measured['elapsed_stdev']:.2f} s\n"
        f"{measured['requests_per_second']:.2f} requests/s, {measured['tokens_per_second']:,.1f} tokens/s, of which "
        f"{measured['output_tokens_per_second']:,.1f} generated | compile {measured['compile_seconds']:.1f} s\n"
    )
