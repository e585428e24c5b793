"""`moejax decode`: continues prompts."""

import time
from pathlib import Path

from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags
from moejax.decoding.sampling_params import SamplingParams
from sharding import MeshConfig

EXAMPLES = (
    'moejax decode demo --prompt "The import statement"',
    'moejax decode path/to/checkpoint --chat --prompt "What is a list?" --temperature 0.7 -n 200',
    'moejax decode demo --prompt "A list is" --mesh expert=4,tensor=2 --simulate-devices 8',
    r'cat notes.txt | moejax decode demo --prompt - --stop "\n\n" --json',
)

_DEFAULT = SamplingParams()


def decode(
    checkpoint: options.Checkpoint,
    prompt: options.Prompt = None,
    token_ids: options.TokenIds = None,
    chat: options.Chat = False,
    system: options.System = None,
    stream: options.Stream = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    max_tokens: options.MaxTokens = _DEFAULT.max_tokens,
    min_tokens: options.MinTokens = _DEFAULT.min_tokens,
    stop: options.Stop = None,
    stop_token_id: options.StopTokenId = None,
    ignore_eos: options.IgnoreEos = False,
    include_stop_str_in_output: options.IncludeStop = False,
    temperature: options.Temperature = _DEFAULT.temperature,
    top_k: options.TopK = _DEFAULT.top_k,
    top_p: options.TopP = _DEFAULT.top_p,
    min_p: options.MinP = _DEFAULT.min_p,
    repetition_penalty: options.RepetitionPenalty = _DEFAULT.repetition_penalty,
    presence_penalty: options.PresencePenalty = _DEFAULT.presence_penalty,
    frequency_penalty: options.FrequencyPenalty = _DEFAULT.frequency_penalty,
    seed: options.Seed = None,
    n: options.N = _DEFAULT.n,
    logprobs: options.Logprobs = None,
    prompt_logprobs: options.PromptLogprobs = None,
    return_routed_experts: options.RoutedExperts = False,
    save_expert_load: options.SaveExpertLoad = None,
    no_skip_special_tokens: options.KeepSpecial = False,
    dtype: options.Dtype = "bfloat16",
    expert_backend: options.ExpertBackend = "auto",
    max_seq_len: options.MaxSeqLen = None,
    model_seed: options.ModelSeed = None,
    no_compile_cache: options.NoCompileCache = False,
    mesh: device_flags.Mesh = None,
    dispatch: device_flags.Dispatch = "auto",
    simulate_devices: device_flags.SimulateDevices = None,
    coordinator_address: device_flags.CoordinatorAddress = None,
    num_processes: device_flags.NumProcesses = None,
    process_id: device_flags.ProcessId = None,
    distributed: device_flags.Distributed = False,
) -> None:
    """Continue prompts with a checkpoint. Text goes to stdout, statistics and warnings to stderr."""
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        n=n,
        stop=stop or (),
        stop_token_ids=stop_token_id or (),
        ignore_eos=ignore_eos,
        include_stop_str_in_output=include_stop_str_in_output,
        skip_special_tokens=not no_skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        return_routed_experts=return_routed_experts,
    )
    if model_seed is not None and not checkpoint.startswith(options.RANDOM):
        raise ValueError(
            f"--model-seed is for {options.RANDOM}NAME, but {checkpoint} has weights of its own; to sample, use --seed"
        )
    devices = device_flags.Devices(
        simulate_devices=simulate_devices,
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
        distributed=distributed,
    )
    if mesh is None and dispatch != "auto":
        raise ValueError(f"--dispatch {dispatch} says how tokens travel on a mesh; add --mesh, as in --mesh expert=4")
    live = _is_live(stream, len(prompt or []) + len(token_ids or []), params, json=json)
    startup.enter(devices, debug=debug)
    from moejax.cli.facts import read_facts  # here, so that --help does not import numpy
    from moejax.cli.prompts import check_flags, encode_prompts, read_prompts
    from moejax.decoding.requests import make_requests
    from moejax.planning.auto import asked_split, check_split
    from moejax.planning.expert_load import check_new_file, recorded_load, write_expert_load
    from moejax.runtime.buckets import MAX_ROWS

    if save_expert_load is not None:
        check_new_file(Path(save_expert_load))
    given = read_prompts(prompt or [], token_ids or [])
    check_flags(given, chat=chat, system=system)
    facts = read_facts(checkpoint, max_seq_len)
    check_split(facts.config, mesh, dispatch)
    prompts = encode_prompts(facts, given, chat=chat, system=system)
    make_requests(facts, prompts, params, {})  # only to tell mistakes before the weights are read
    began = time.perf_counter()
    with console.progress("starting JAX", quiet=quiet):
        startup.prepare_jax(devices, compile_cache=not no_compile_cache, quiet=quiet)
    split = asked_split(
        facts.config,
        mesh,
        dispatch,
        dtype=dtype,
        stored=facts.dtype,
        max_seq_len=facts.max_seq_len,
        batch_size=min(MAX_ROWS, len(prompts) * params.n),
    )
    if split.remark and not quiet:  # of several processes, only now is it known which prints
        console.remark(split.remark)
    if mesh is not None and not quiet:
        _remark_idle_devices(split.mesh)
    with console.progress(f"loading {checkpoint}", quiet=quiet):
        import jax

        import moejax
        from moejax.cli import output

        model = moejax.load(
            facts.source,
            mesh=split,
            dtype=dtype,
            max_seq_len=max_seq_len,
            expert_backend=expert_backend,
            seed=model_seed or 0,
        )
    load_seconds = time.perf_counter() - began
    if live:
        printed = output.stream(model, prompts[0], params, quiet=quiet)
    else:
        printed = output.decode_all(model, prompts, params, json=json, quiet=quiet)
    if not quiet:
        console.remark(printed.done)
        console.remark(f"{printed.speed} | load {load_seconds:.1f} s")
    if save_expert_load is not None and jax.process_index() == 0:
        write_expert_load(Path(save_expert_load), recorded_load(checkpoint, model.config, printed.expert_rows))
        if not quiet:
            console.remark(f"expert load written to {save_expert_load}")


def _remark_idle_devices(mesh: MeshConfig) -> None:
    import jax

    if mesh.size < jax.device_count():
        console.remark(f"mesh {mesh} uses {mesh.size} of the {jax.device_count()} devices that there are")


def _is_live(stream: bool | None, prompts: int, params: SamplingParams, *, json: bool) -> bool:
    """Whether text is printed as it is generated: asked for, or else wherever that is possible."""
    obstacles = {
        "--json": json,
        "several prompts": prompts > 1,
        f"--n {params.n}": params.n > 1,
        "--prompt-logprobs": params.prompt_logprobs is not None,
        "--return-routed-experts": params.return_routed_experts,
    }
    obstacle = next((name for name, there in obstacles.items() if there), None)
    if stream and obstacle:
        raise ValueError(f"--stream prints one text while it is generated; it cannot be used with {obstacle}")
    return obstacle is None if stream is None else stream
