"""`moejax decode`: continues prompts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from moejax.cli import console, conversation, options, startup
from moejax.cli.bulk import BulkFlags
from moejax.cli.devices import Devices, Processes
from moejax.cli.groups import grouped
from moejax.cli.sources import Revision, pinned, short_name
from moejax.decoding.sampling_params import SamplingParams
from moejax.runtime.buckets import MAX_SEQUENCES

if TYPE_CHECKING:
    from moejax.cli.facts import SourceFacts
    from moejax.cli.output import Printed
    from moejax.loading import Model

EXAMPLES = (
    'moejax decode demo --prompt "The import statement"',
    'moejax decode path/to/checkpoint --chat --prompt "What is a list?" --temperature 0.7 -n 200',
    'moejax decode demo --prompt "A list is" --mesh expert=4,tensor=2 --simulate-devices 8',
    'moejax decode path/to/checkpoint --chat --system "Be brief."',
    "moejax decode demo --input prompts.jsonl --output answers.jsonl",
    r'cat notes.txt | moejax decode demo --prompt - --stop "\n\n" --json',
)

Stream = Annotated[
    bool | None,
    options.option(
        "--stream/--no-stream",
        help="Print text as it is generated. On by default for one prompt with one output.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, options.option("--json", help="Print a JSON array and no text: for each prompt everything that is known.")
]
SaveExpertLoad = Annotated[
    str | None,
    options.option(
        "--save-expert-load",
        panel=options.REPORTS,
        metavar="FILE",
        help="Write how often each layer chose each expert to a new file, for moejax mesh compare --expert-load.",
    ),
]
MaxSeqLen = Annotated[
    int | None,
    options.whole(
        "--max-seq-len", panel=options.MODEL, help="Limit for prompt and output together, below the model's own."
    ),
]


@grouped
def decode(
    checkpoint: options.Checkpoint,
    prompts: options.PromptFlags,
    bulk: BulkFlags,
    sampling: options.SamplingFlags,
    model: options.ModelFlags,
    mesh: options.MeshFlags,
    devices: Devices,
    processes: Processes,
    revision: Revision = None,
    max_seq_len: MaxSeqLen = None,
    save_expert_load: SaveExpertLoad = None,
    stream: Stream = None,
    json: Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Continue prompts with a checkpoint. Text goes to stdout, statistics and warnings to stderr.

    With --input: exit code 1 where a line failed.
    """
    params = sampling.params()
    model.check(checkpoint)
    given, checkpoint = checkpoint, pinned(checkpoint, revision, quiet=quiet)
    unfit = dict(json=json, save_expert_load=save_expert_load is not None, num_processes=processes.several)
    asked = bulk.survey(params, prompts, short_name(given), stream=bool(stream), **unfit) if bulk.given else None
    talks, piped = prompts.chat and not prompts.count and not bulk.given, None
    if talks:
        conversation.check_flags(params, no_stream=stream is False, **unfit)
        piped = conversation.piped_lines()
    live = _is_live(stream, prompts.count, params, json=json)
    startup.enter(processes, debug=debug)
    from moejax.cli.facts import read_facts  # here and below, so that --help starts quickly
    from moejax.planning.auto import check_split
    from moejax.planning.expert_load import check_new_file

    if save_expert_load is not None:
        check_new_file(Path(save_expert_load))
    facts = read_facts(checkpoint, max_seq_len)
    check_split(facts.config, mesh.mesh, mesh.dispatch)
    encoded = [] if asked else _encoded(facts, prompts, params, talks=talks)
    began = time.perf_counter()
    with console.progress("starting JAX", quiet=quiet):
        startup.prepare_jax(devices, processes, compile_cache=not model.no_compile_cache, quiet=quiet)
    from moejax.cli.load import load_model

    loaded = load_model(facts, mesh, model, batch_size=MAX_SEQUENCES if asked else len(encoded) * params.n, quiet=quiet)
    if asked:
        return bulk.run(loaded, asked, prompts, params, [short_name(given), given], quiet=quiet)
    if talks:
        talk = conversation.Talk(model=loaded, params=params, system=prompts.system, quiet=quiet)
        return conversation.converse(talk, piped)
    load_seconds = time.perf_counter() - began
    printed = _answered(loaded, encoded, params, live=live, json=json, quiet=quiet)
    if not quiet:
        _tell(printed, load_seconds)
    if save_expert_load is not None:
        _save_expert_load(Path(save_expert_load), checkpoint, loaded, printed, quiet=quiet)
    return 0


def _encoded(
    facts: "SourceFacts", prompts: options.PromptFlags, params: SamplingParams, *, talks: bool
) -> list[list[int]]:
    """The prompts' tokens, of a conversation those of any; mistakes in them are told before the weights are read."""
    from moejax.cli.prompts import encode, encode_prompts
    from moejax.decoding.requests import make_requests

    encoded = [encode(facts, "any", chat=True, system=prompts.system)] if talks else encode_prompts(facts, prompts)
    make_requests(facts, encoded, params, {})
    return encoded


def _answered(
    model: "Model", encoded: list[list[int]], params: SamplingParams, *, live: bool, json: bool, quiet: bool
) -> "Printed":
    from moejax.cli import output

    if live:
        return output.stream(model, encoded[0], params, quiet=quiet)
    return output.decode_all(model, encoded, params, json=json, quiet=quiet)


def _tell(printed: "Printed", load_seconds: float) -> None:
    """How it went, on stderr."""
    console.remark(printed.done)
    console.remark(f"{printed.speed} | load {load_seconds:.1f} s")
    if printed.memory:
        console.remark(printed.memory)


def _save_expert_load(path: Path, checkpoint: str, model: "Model", printed: "Printed", *, quiet: bool) -> None:
    import jax

    from moejax.planning.expert_load import recorded_load, write_expert_load

    if jax.process_index() != 0:
        return
    write_expert_load(path, recorded_load(checkpoint, model.config, printed.expert_rows))
    if not quiet:
        console.remark(f"expert load written to {path}")


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
