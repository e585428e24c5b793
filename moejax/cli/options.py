"""Flags that several commands have, in groups: names, help and how their values are read.

Each group is a dataclass whose fields are flags (`moejax.cli.groups`). Ranges are checked by what the values are for.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moejax.decoding.sampling_params import SamplingParams
from moejax.families.table import RANDOM, named_configs
from moejax.moe.split import DISPATCHES

if TYPE_CHECKING:
    from moejax.cli.facts import SourceFacts
    from moejax.moe.split import Split

# Panels of the help text. What has none stands in the first, beside --help.
STOPPING, SAMPLING, REPORTS, MODEL = "Length and stopping", "Sampling", "Reports", "Model"
DEVICES = "Devices and processes"

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.|$)", re.DOTALL)
_DEFAULT = SamplingParams()


def whole_number(value: Any) -> int:
    """An int from the command line (or the default, which is one)."""
    try:
        return int(value)
    except ValueError as error:
        raise typer.BadParameter(f"must be a whole number, got {value!r}") from error


def number(value: Any) -> float:
    """A float from the command line (or the default, which is one)."""
    try:
        return float(value)
    except ValueError as error:
        raise typer.BadParameter(f"must be a number, got {value!r}") from error


def unescaped(value: str) -> str:
    r"""Text in which \n, \t, \r, \\, \xHH and \uHHHH stand for characters that are awkward to type in a shell."""

    if not value:
        raise typer.BadParameter(
            "is empty, and would end every text at once; give a character or more, or leave it out"
        )

    def character(found: re.Match[str]) -> str:
        code = found[1]
        if code[1:]:
            return chr(int(code[1:], 16))
        if code in _ESCAPES:
            return _ESCAPES[code]
        raise typer.BadParameter(
            rf"has an unknown escape {found[0]} in {value}; known are \n \t \r \xHH \uHHHH, and \\ for a backslash"
        )

    return _ESCAPE.sub(character, value)


def option(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """A flag, under the heading `panel` of the help text."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def a_name(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """A flag whose value is one of some names, in any case."""
    return option(*names, help=help, panel=panel, parser=str.lower, metavar="NAME", **settings)


def whole(*names: str, help: str, panel: str | None = None, metavar: str = "N", **settings: Any) -> Any:
    """A flag whose value is a whole number."""
    return option(*names, help=help, panel=panel, parser=whole_number, metavar=metavar, **settings)


def real(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """A flag whose value is a number."""
    return option(*names, help=help, panel=panel, parser=number, metavar="X", **settings)


_CHECKPOINT = (
    "demo, the folder of a Hugging Face Mixtral checkpoint or of a converted one, the id of a model there (ORG/NAME, "
    "hf://ORG/NAME@REVISION or its address), or random:NAME for random weights, with NAME one of "
    f"{', '.join(named_configs())}, or the path of a config.json."
)
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=_CHECKPOINT, show_default=False)]
OptionalCheckpoint = Annotated[
    str | None,
    typer.Argument(metavar="[CHECKPOINT]", help=f"{_CHECKPOINT} Without one: this machine.", show_default=False),
]
Quiet = Annotated[bool, option("--quiet", help="No statistics and no warnings on stderr.")]
Debug = Annotated[bool, option("--debug", help="After an error, show the traceback too.")]
ExpertBackend = Annotated[
    str,
    a_name(
        "--expert-backend",
        panel=MODEL,
        help="How experts are computed: auto, dense, blocked, native, ragged, pallas, tokamax.",
    ),
]
Dispatch = Annotated[
    str,
    a_name(
        "--dispatch",
        panel=DEVICES,
        help=f"How tokens reach their experts on a mesh: auto, {', '.join(DISPATCHES)}.",
    ),
]


def check_dispatch(dispatch: str, *, mesh: bool) -> None:
    """Raises ValueError for a dispatch without a mesh."""
    if not mesh and dispatch != "auto":
        raise ValueError(f"--dispatch {dispatch} says how tokens travel on a mesh; add --mesh, as in --mesh expert=4")


@dataclass(frozen=True, kw_only=True)
class PromptFlags:
    """What is continued."""

    prompt: Annotated[
        list[str] | None,
        option(
            "--prompt",
            metavar="TEXT",
            help="Text to continue, repeatable. - reads standard input, @FILE a file.",
        ),
    ] = None
    token_ids: Annotated[
        list[str] | None,
        option("--token-ids", metavar="IDS", help='A prompt of token ids, "0 17 42", repeatable.'),
    ] = None
    chat: Annotated[
        bool,
        option(
            "--chat",
            help="Each prompt is a user's message, put into the chat template. Without a prompt: a conversation, a "
            "message per line that is typed or piped.",
        ),
    ] = False
    system: Annotated[str | None, option("--system", metavar="TEXT", help="System message, with --chat.")] = None

    @property
    def count(self) -> int:
        """Prompts that were given."""
        return len(self.prompt or []) + len(self.token_ids or [])


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """The fields of `SamplingParams`."""

    max_tokens: Annotated[
        int, whole("--max-tokens", "--max-new-tokens", "-n", panel=STOPPING, help="Most tokens to generate.")
    ] = _DEFAULT.max_tokens
    min_tokens: Annotated[
        int, whole("--min-tokens", panel=STOPPING, help="Neither EOS nor a stop ends the text before this many tokens.")
    ] = _DEFAULT.min_tokens
    stop: Annotated[
        list[str] | None,
        option(
            "--stop",
            panel=STOPPING,
            metavar="TEXT",
            parser=unescaped,
            help=r"A text that ends the output, repeatable. Escapes: \n \t \r \xHH \uHHHH, \\ for a backslash.",
        ),
    ] = None
    stop_token_id: Annotated[
        list[int] | None,
        whole("--stop-token-id", panel=STOPPING, metavar="ID", help="A token that ends the output, repeatable."),
    ] = None
    ignore_eos: Annotated[
        bool, option("--ignore-eos", panel=STOPPING, help="Go on after the end-of-sequence token.")
    ] = False
    include_stop_str_in_output: Annotated[
        bool, option("--include-stop-str-in-output", panel=STOPPING, help="Keep the stop text in the output.")
    ] = False
    temperature: Annotated[
        float, real("--temperature", panel=SAMPLING, help="0 takes the most probable token; above 0 is sampling.")
    ] = _DEFAULT.temperature
    top_k: Annotated[
        int, whole("--top-k", panel=SAMPLING, help="Sample from the N most probable tokens; 0 is all.")
    ] = _DEFAULT.top_k
    top_p: Annotated[
        float, real("--top-p", panel=SAMPLING, help="Sample from the fewest tokens whose probabilities add up to X.")
    ] = _DEFAULT.top_p
    min_p: Annotated[
        float, real("--min-p", panel=SAMPLING, help="Sample from tokens at least X times as probable as the best.")
    ] = _DEFAULT.min_p
    repetition_penalty: Annotated[
        float,
        real("--repetition-penalty", panel=SAMPLING, help="Above 1: tokens of prompt and output become less likely."),
    ] = _DEFAULT.repetition_penalty
    presence_penalty: Annotated[
        float,
        real("--presence-penalty", panel=SAMPLING, help="Subtracted once from the logits of tokens in the output."),
    ] = _DEFAULT.presence_penalty
    frequency_penalty: Annotated[
        float, real("--frequency-penalty", panel=SAMPLING, help="Subtracted for every time a token is in the output.")
    ] = _DEFAULT.frequency_penalty
    logit_bias: Annotated[
        list[str] | None,
        option(
            "--logit-bias",
            panel=SAMPLING,
            metavar="ID=BIAS",
            help="Added to the logit of a token, -100 to 100; repeatable.",
        ),
    ] = None
    seed: Annotated[int | None, whole("--seed", panel=SAMPLING, help="Makes sampling reproducible.")] = None
    n: Annotated[int, whole("--n", panel=SAMPLING, help="Outputs per prompt (not to be confused with -n).")] = (
        _DEFAULT.n
    )
    logprobs: Annotated[
        int | None,
        whole("--logprobs", panel=REPORTS, help="Show the N most probable tokens at each place of the output."),
    ] = None
    prompt_logprobs: Annotated[
        int | None,
        whole("--prompt-logprobs", panel=REPORTS, help="Show the N most probable tokens along the prompt."),
    ] = None
    return_routed_experts: Annotated[
        bool, option("--return-routed-experts", panel=REPORTS, help="Show how often each layer chose each expert.")
    ] = False
    no_skip_special_tokens: Annotated[
        bool, option("--no-skip-special-tokens", panel=REPORTS, help="Leave special tokens in the text.")
    ] = False

    def params(self) -> SamplingParams:
        """The parameters that the flags say.

        Raises:
            ValueError: for values out of range.
        """
        given = dict(vars(self))
        given["stop"] = given["stop"] or ()
        given["stop_token_ids"] = given.pop("stop_token_id") or ()
        given["logit_bias"] = dict(map(_bias, given["logit_bias"] or ()))
        given["skip_special_tokens"] = not given.pop("no_skip_special_tokens")
        return SamplingParams(**given)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise ValueError(f"--logit-bias must be ID=BIAS, as in 17=-100, got {text!r}") from error


@dataclass(frozen=True, kw_only=True)
class WeightFlags:
    """How a model's weights are loaded, beside its mesh."""

    dtype: Annotated[
        str,
        a_name(
            "--dtype",
            panel=MODEL,
            help="Of the weights: bfloat16, float16, float32, or auto, as stored.",
        ),
    ] = "bfloat16"
    expert_backend: ExpertBackend = "auto"
    model_seed: Annotated[
        int | None, whole("--model-seed", panel=MODEL, help="Seed of the weights of random:NAME.")
    ] = None

    @property
    def seed(self) -> int:
        """Of random weights."""
        return self.model_seed or 0

    def check(self, checkpoint: str) -> None:
        """Raises ValueError for a flag that says nothing about `checkpoint`."""
        if self.model_seed is not None and not checkpoint.startswith(RANDOM):
            raise ValueError(
                f"--model-seed is for {RANDOM}NAME, but {checkpoint} has weights of its own; to sample, use --seed"
            )


@dataclass(frozen=True, kw_only=True)
class ModelFlags(WeightFlags):
    """How a model is loaded and compiled."""

    micro_batches: Annotated[
        int,
        whole(
            "--micro-batches",
            panel=DEVICES,
            help="Pieces of a prefill, or of a large batch, on a mesh, so that what one exchanges overlaps what the "
            "next computes; 1 to 8.",
        ),
    ] = 1
    no_compile_cache: Annotated[
        bool, option("--no-compile-cache", panel=MODEL, help="Do not keep compiled programs for the next run.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class MeshFlags:
    """How a model is split over devices.

    Raises:
        ValueError: for a dispatch without a mesh.
    """

    mesh: Annotated[
        str | None,
        option(
            "--mesh",
            panel=DEVICES,
            metavar="MESH",
            help="How many devices along each axis, as in data=1,expert=4,tensor=2 (or dp, ep, tp), or auto, "
            "what `moejax mesh compare` ranks first. One device by default.",
            show_default=False,
        ),
    ] = None
    dispatch: Dispatch = "auto"

    def __post_init__(self) -> None:
        check_dispatch(self.dispatch, mesh=self.mesh is not None)

    def split(self, facts: "SourceFacts", dtype: str, *, batch_size: int, max_seq_len: int | None = None) -> "Split":
        """The split asked for; "auto" is the best for `batch_size` sequences on the devices here. Starts JAX.

        Raises:
            ValueError: for a mesh that cannot be, or that is larger than the devices here.
        """
        from moejax.planning.auto import asked_split  # here, so that --help starts quickly

        split = asked_split(
            facts.config,
            self.mesh,
            self.dispatch,
            dtype=dtype,
            stored=facts.dtype,
            max_seq_len=facts.max_seq_len if max_seq_len is None else max_seq_len,
            batch_size=batch_size,
        )
        split.mesh.build()  # before anything is said of the split
        return split
