"""The flags of `moejax mesh compare`, some of which `mesh show` has, too. Imports no JAX."""

from dataclasses import dataclass
from typing import Annotated

import typer

from moejax.cli.mesh_values import device_numbers, duration
from moejax.cli.options import a_name, option, real, whole
from moejax.cli.sources import Revision, pinned
from moejax.families.table import named_configs
from moejax.moe.split import DISPATCHES
from moejax.planning.efficiency import PRESETS
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.skew import UNIFORM

WORK, TARGETS, SPLITS, PROOF, OUTPUT = "Workload", "Targets", "Splits", "Checks", "Output"
FORMATS = ("table", "json", "csv")
MOST_LINES = 16  # that one tells apart in a picture

_MODEL = (
    f"A named configuration ({', '.join(named_configs())}), the path of a config.json, demo, a checkpoint, or the id "
    "of a model on Hugging Face, of which only config.json is needed."
)
Context = Annotated[
    int | None,
    whole(
        "--context",
        panel=WORK,
        help="Tokens of each sequence in the cache while a step is timed, 2048 by default; 0 leaves the cache out.",
    ),
]
Dtype = Annotated[
    str,
    a_name(
        "--dtype",
        panel=WORK,
        help="Of weights and cache: bfloat16, float16, float32, or auto, as a checkpoint is stored.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SizedModelFlags:
    """The model whose sizes a command goes by."""

    model: Annotated[str | None, option("--model", metavar="MODEL", help=_MODEL, show_default=False)] = None
    argument: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same without the flag.", show_default=False)
    ] = None
    revision: Revision = None

    def source(self, *, quiet: bool = False) -> str:
        """What names the model, at its revision.

        Raises:
            ValueError: for no model, or two, and for a revision of anything but a model on Hugging Face.
        """
        if self.model is not None and self.argument is not None:
            raise ValueError(f"give one model, got {self.argument} and --model {self.model}")
        asked = self.argument if self.model is None else self.model
        if asked is None:
            raise ValueError(
                "no model was given; name one with --model MODEL: mixtral-8x7b, demo, the path of a checkpoint"
            )
        return pinned(asked, self.revision, quiet=quiet)


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """How the model is compared, how it is checked and where it goes.

    Raises:
        ValueError: for an unknown format, or two; for more numbers of devices than a flag is for.
    """

    devices: Annotated[
        str,
        option("--devices", metavar="N[-M][,N...]", help="How many devices; several to find the fewest that do."),
    ]
    hardware: Annotated[
        str,
        option(
            "--hardware",
            metavar="NAME",
            help="h100-sxm, h200, b200, a100-80gb, l40s, rtx-pro-6000, v100-32gb, tpu-v5e, tpu-v5p, tpu-v6e, tpu7x, "
            "cpu, or a .toml file of yours.",
        ),
    ]
    batch_size: Annotated[
        str,
        option("--batch-size", "-b", panel=WORK, metavar="N[,N...]", help="Sequences at a time, several to compare."),
    ] = "1,8,32"
    input_len: Annotated[
        int | None, whole("--input-len", "-p", panel=WORK, help="Tokens of each prompt; 512 by default.")
    ] = None
    context: Context = None
    dtype: Dtype = "bfloat16"
    expert_load: Annotated[
        str | None,
        option(
            "--expert-load",
            panel=WORK,
            metavar="FILE",
            help="How often each expert was chosen, from moejax decode --save-expert-load; demo. Evenly without it.",
        ),
    ] = None
    skew: Annotated[
        str,
        option(
            "--skew",
            panel=WORK,
            metavar="NAME",
            help="How evenly tokens choose experts: uniform; balanced or power-law:1.01, as layers are benchmarked; "
            "zipf:1.0 or dirichlet:0.5.",
        ),
    ] = UNIFORM
    software: Annotated[
        str,
        option(
            "--software",
            panel=WORK,
            metavar="NAME",
            help="Whose kernels and collectives: moejax, vllm, trtllm, sglang, or ideal for a roofline.",
        ),
    ] = "moejax"
    times: Annotated[
        str,
        option(
            "--times",
            panel=WORK,
            metavar="NAME",
            help="fitted, by the hardware file's terms, or measured: by tables of moejax[silicon], where they have it.",
        ),
    ] = "fitted"
    efficiency: Annotated[
        str | None,
        option(
            "--efficiency",
            panel=WORK,
            metavar="SHARE",
            help="Of the device's bandwidth and matrix rate, that a roofline takes as reached: 0.6 or 60%, one of "
            f"each as in 0.8,0.5, or what was published: {', '.join(PRESETS)}. For --software ideal, and devices "
            "without measured terms.",
        ),
    ] = None
    objective: Annotated[
        str,
        option("--objective", panel=SPLITS, metavar="NAME", help=f"What ranks: {', '.join(OBJECTIVES)}."),
    ] = "latency"
    ttft: Annotated[
        float | None,
        option(
            "--ttft",
            panel=TARGETS,
            metavar="TIME",
            parser=duration,
            help="Most until a whole batch that arrives at once has its first token, as in 200ms or 1.5s.",
        ),
    ] = None
    tpot: Annotated[
        float | None,
        option(
            "--tpot",
            panel=TARGETS,
            metavar="TIME",
            parser=duration,
            help="Most of each token after the first, a decode step, as in 20ms.",
        ),
    ] = None
    dispatch: Annotated[
        str,
        a_name(
            "--dispatch",
            panel=SPLITS,
            help=f"all, auto (what decode would take), {', '.join(DISPATCHES)}.",
        ),
    ] = "all"
    micro_batches: Annotated[
        int,
        whole(
            "--micro-batches",
            panel=SPLITS,
            help="As decode and serve take it: pieces of a prefill or a large batch whose exchange overlaps.",
        ),
    ] = 1
    usable_fraction: Annotated[
        float,
        real(
            "--usable-fraction",
            panel=SPLITS,
            help="Of a device's memory, that the model may take. (JAX itself preallocates 0.75 unless told otherwise.)",
        ),
    ] = 0.9
    format: Annotated[
        str | None, option("--format", panel=OUTPUT, metavar="NAME", help="table (the default), json or csv.")
    ] = None
    json: Annotated[bool, option("--json", panel=OUTPUT, help="The same as --format json.")] = False
    csv: Annotated[
        bool, option("--csv", panel=OUTPUT, help="The same as --format csv: a line per split, units in the header.")
    ] = False
    plot: Annotated[
        str | None,
        option(
            "--plot",
            panel=OUTPUT,
            metavar="FILE",
            help="Draw the steps' parts, and tokens/s against batch size, into a .png, .svg or .pdf file.",
        ),
    ] = None
    pareto: Annotated[
        str | None,
        option(
            "--pareto",
            panel=OUTPUT,
            metavar="FILE",
            help="Draw tokens/s per user against tokens/s per device, the best of each number of devices or kind of "
            "split, into a .png, .svg or .pdf file.",
        ),
    ] = None
    compile: Annotated[
        bool,
        option(
            "--compile",
            panel=PROOF,
            help="Compile every split for simulated devices, and compare its collectives and bytes. Takes about a "
            "minute.",
        ),
    ] = False
    compiled_for: Annotated[
        str | None,
        option(
            "--compiled-for",
            panel=PROOF,
            metavar="TARGET",
            help="Memory and launches as the device's own compiler makes them, of h200, h100, a100, b200, l40s, "
            "rtx-pro-6000 or v5e:2x4; about 3 s a program, four for each split and batch size.",
        ),
    ] = None
    measure: Annotated[
        bool, option("--measure", panel=PROOF, help="Time every split on the devices here, and show how far it is off.")
    ] = False
    quiet: Annotated[bool, option("--quiet", panel=OUTPUT, help="No progress and no remarks on stderr.")] = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format.lower() not in FORMATS:
            raise ValueError(f"--format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {self.format!r}")
        asked = {f"--{name}": name for name in ("json", "csv") if getattr(self, name)}
        asked |= {f"--format {self.format}": self.format.lower()} if self.format else {}
        if len(set(asked.values())) > 1:
            raise ValueError(f"a comparison is printed in one format, got {' and '.join(asked)}; give one of them")
        for name in ("plot", "compile", "compiled-for", "measure"):
            if getattr(self, name.replace("-", "_")) and len(set(self.counts)) > 1:
                hint = "; --pareto draws several" if name == "plot" else ""
                raise ValueError(f"--{name} is for one number of devices, got --devices {self.devices}; give one{hint}")
        if self.pareto and (count := len(set(self.counts))) > MOST_LINES:
            raise ValueError(
                f"--pareto draws at most {MOST_LINES} numbers of devices, got {count} with --devices {self.devices}; "
                "give fewer, as in 1,2,4,8"
            )

    @property
    def counts(self) -> list[int]:
        """Numbers of devices. Raises ValueError where --devices has none."""
        return device_numbers(self.devices)

    @property
    def printed_as(self) -> str:
        """One of FORMATS."""
        return "json" if self.json else "csv" if self.csv else (self.format or "table").lower()
