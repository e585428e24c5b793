"""The flags of `moejax decode`: names, help and how their values are read. Ranges are checked by `SamplingParams`."""

import re
from typing import Annotated, Any

import typer

from moejax.families.config import NAMED_CONFIGS

# Panels of the help text. What has none stands in the first, beside --help.
STOPPING, SAMPLING, REPORTS, MODEL = "Length and stopping", "Sampling", "Reports", "Model"

RANDOM = "random:"  # what a CHECKPOINT that is made of random weights begins with

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.|$)", re.DOTALL)


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


def _option(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def _whole(*names: str, panel: str, help: str, metavar: str = "N") -> Any:
    return _option(*names, panel=panel, help=help, parser=whole_number, metavar=metavar)


def _real(*names: str, panel: str, help: str) -> Any:
    return _option(*names, panel=panel, help=help, parser=number, metavar="X")


# --- prompts ---
Prompt = Annotated[
    list[str] | None,
    _option("--prompt", metavar="TEXT", help='Text to continue, repeatable. "-" reads standard input.'),
]
TokenIds = Annotated[
    list[str] | None,
    _option("--token-ids", metavar="IDS", help='A prompt of token ids, "0 17 42", repeatable.'),
]
Chat = Annotated[bool, _option("--chat", help="Each prompt is a user's message, put into the chat template.")]
System = Annotated[str | None, _option("--system", metavar="TEXT", help="System message, with --chat.")]

# --- length and stopping ---
MaxTokens = Annotated[
    int,
    _whole("--max-tokens", "--max-new-tokens", "-n", panel=STOPPING, help="Most tokens to generate."),
]
MinTokens = Annotated[
    int, _whole("--min-tokens", panel=STOPPING, help="Neither EOS nor a stop ends the text before this many tokens.")
]
Stop = Annotated[
    list[str] | None,
    _option(
        "--stop",
        panel=STOPPING,
        metavar="TEXT",
        parser=unescaped,
        help=r"A text that ends the output, repeatable. Escapes: \n \t \r \xHH \uHHHH, \\ for a backslash.",
    ),
]
StopTokenId = Annotated[
    list[int] | None,
    _whole("--stop-token-id", panel=STOPPING, metavar="ID", help="A token that ends the output, repeatable."),
]
IgnoreEos = Annotated[bool, _option("--ignore-eos", panel=STOPPING, help="Go on after the end-of-sequence token.")]
IncludeStop = Annotated[
    bool, _option("--include-stop-str-in-output", panel=STOPPING, help="Keep the stop text in the output.")
]

# --- sampling ---
Temperature = Annotated[
    float, _real("--temperature", panel=SAMPLING, help="0 takes the most probable token; above 0 is sampling.")
]
TopK = Annotated[int, _whole("--top-k", panel=SAMPLING, help="Sample from the N most probable tokens; 0 is all.")]
TopP = Annotated[
    float, _real("--top-p", panel=SAMPLING, help="Sample from the fewest tokens whose probabilities add up to X.")
]
MinP = Annotated[
    float, _real("--min-p", panel=SAMPLING, help="Sample from tokens at least X times as probable as the best.")
]
RepetitionPenalty = Annotated[
    float,
    _real("--repetition-penalty", panel=SAMPLING, help="Above 1: tokens of prompt and output become less likely."),
]
PresencePenalty = Annotated[
    float, _real("--presence-penalty", panel=SAMPLING, help="Subtracted once from the logits of tokens in the output.")
]
FrequencyPenalty = Annotated[
    float, _real("--frequency-penalty", panel=SAMPLING, help="Subtracted for every time a token is in the output.")
]
Seed = Annotated[int | None, _whole("--seed", panel=SAMPLING, help="Makes sampling reproducible.")]
N = Annotated[int, _whole("--n", panel=SAMPLING, help="Outputs per prompt (not to be confused with -n).")]

# --- output ---
Stream = Annotated[
    bool | None,
    _option(
        "--stream/--no-stream",
        help="Print text as it is generated. On by default for one prompt with one output.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, _option("--json", help="Print a JSON array and no text: for each prompt everything that is known.")
]
Logprobs = Annotated[
    int | None, _whole("--logprobs", panel=REPORTS, help="Show the N most probable tokens at each place of the output.")
]
PromptLogprobs = Annotated[
    int | None, _whole("--prompt-logprobs", panel=REPORTS, help="Show the N most probable tokens along the prompt.")
]
RoutedExperts = Annotated[
    bool, _option("--return-routed-experts", panel=REPORTS, help="Show how often each layer chose each expert.")
]
SaveExpertLoad = Annotated[
    str | None,
    _option(
        "--save-expert-load",
        panel=REPORTS,
        metavar="FILE",
        help="Write how often each layer chose each expert to a new file, for moejax mesh compare --expert-load.",
    ),
]
KeepSpecial = Annotated[
    bool, _option("--no-skip-special-tokens", panel=REPORTS, help="Leave special tokens in the text.")
]
Quiet = Annotated[bool, _option("--quiet", help="No statistics and no warnings on stderr.")]

# --- model ---
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="demo, the folder of a Hugging Face Mixtral checkpoint or of a converted one, or random:NAME for random "
        "weights, "
        f"with NAME one of {', '.join(NAMED_CONFIGS)}, or the path of a config.json.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    _option(
        "--dtype", panel=MODEL, metavar="NAME", help="Of the weights: bfloat16, float16, float32, or auto, as stored."
    ),
]
ExpertBackend = Annotated[
    str,
    _option(
        "--expert-backend",
        panel=MODEL,
        metavar="NAME",
        help="How experts are computed: auto, dense, blocked, native, ragged, pallas, tokamax.",
    ),
]
MaxSeqLen = Annotated[
    int | None,
    _whole("--max-seq-len", panel=MODEL, help="Limit for prompt and output together, below the model's own."),
]
ModelSeed = Annotated[int | None, _whole("--model-seed", panel=MODEL, help="Seed of the weights of random:NAME.")]
NoCompileCache = Annotated[
    bool, _option("--no-compile-cache", panel=MODEL, help="Do not keep compiled programs for the next run.")
]

# --- every command ---
Debug = Annotated[bool, typer.Option("--debug", help="After an error, show the traceback too.")]
