"""`moejax mesh`: which split of a model over devices, and where each array lives under one. Imports no JAX."""

import json
from typing import Annotated, Any

import typer

from moejax.cli import console, options
from moejax.cli.help import SETTINGS, Command, examples
from moejax.cli.mesh_calibrate import CALIBRATE_EXAMPLES, calibrate
from moejax.families.config import NAMED_CONFIGS

DOES_NOT_FIT = 1  # exit code

COMPARE_EXAMPLES = (
    "moejax mesh compare --model mixtral-8x7b --devices 8 --hardware h100-sxm",
    "moejax mesh compare --model path/to/checkpoint --devices 4 --hardware l40s -b 16 --plot a.png",
    "moejax mesh compare --model mixtral-8x22b --devices 16 --hardware my.toml --objective ttft",
    "moejax mesh compare --model demo --devices 1 --hardware here.toml -b 1,8 --measure",
)
SHOW_EXAMPLES = (
    "moejax mesh show --model mixtral-8x7b --mesh expert=4,tensor=2",
    "moejax mesh show --model demo --mesh expert=8 --dispatch gather --batch-size 32 --json",
)

WORK, SPLITS, PROOF, OUTPUT = "Workload", "Splits", "Checks", "Output"


def _option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"A named configuration ({', '.join(NAMED_CONFIGS)}), the path of a config.json, demo, or a checkpoint.",
    ),
]
DeviceCount = Annotated[
    int, typer.Option("--devices", metavar="N", parser=options.whole_number, help="How many devices.")
]
HardwareName = Annotated[
    str,
    typer.Option(
        "--hardware", metavar="NAME", help="h100-sxm, h200, a100-80gb, v100-32gb, l40s, cpu, or a .toml file of yours."
    ),
]
BatchSizes = Annotated[
    str, _option("--batch-size", "-b", panel=WORK, metavar="N[,N...]", help="Sequences at a time, several to compare.")
]
InputLen = Annotated[
    int | None,
    _option(
        "--input-len",
        "-p",
        panel=WORK,
        metavar="N",
        parser=options.whole_number,
        help="Tokens of each prompt; 512 by default.",
    ),
]
Context = Annotated[
    int | None,
    _option(
        "--context",
        panel=WORK,
        metavar="N",
        parser=options.whole_number,
        help="Tokens of each sequence in the cache while a step is timed, 2048 by default; 0 leaves the cache out.",
    ),
]
Dtype = Annotated[
    str,
    _option(
        "--dtype",
        panel=WORK,
        metavar="NAME",
        help="Of weights and cache: bfloat16, float16, float32, or auto, as a checkpoint is stored.",
    ),
]
ExpertLoad = Annotated[
    str | None,
    _option(
        "--expert-load",
        panel=WORK,
        metavar="FILE",
        help="How often each expert was chosen, from moejax decode --save-expert-load; demo. Evenly without it.",
    ),
]
ObjectiveName = Annotated[
    str, _option("--objective", panel=SPLITS, metavar="NAME", help="What ranks: latency, throughput, ttft or memory.")
]
Dispatch = Annotated[
    str,
    _option(
        "--dispatch",
        panel=SPLITS,
        metavar="NAME",
        help="all, auto (what decode would take), replicated, gather or all_to_all.",
    ),
]
UsableFraction = Annotated[
    float,
    _option(
        "--usable-fraction",
        panel=SPLITS,
        metavar="X",
        parser=options.number,
        help="Of a device's memory, that the model may take. (JAX itself preallocates 0.75 unless told otherwise.)",
    ),
]
Format = Annotated[str | None, _option("--format", panel=OUTPUT, metavar="NAME", help="table (the default) or json.")]
FormatJson = Annotated[bool, _option("--json", panel=OUTPUT, help="The same as --format json.")]
Plot = Annotated[
    str | None,
    _option("--plot", panel=OUTPUT, metavar="FILE.png", help="Draw the steps' parts, and tokens/s against batch size."),
]
Compile = Annotated[
    bool,
    _option(
        "--compile",
        panel=PROOF,
        help="Compile every split for simulated devices, and compare its collectives and bytes. Takes about a minute.",
    ),
]
Measure = Annotated[
    bool, _option("--measure", panel=PROOF, help="Time every split on the devices here, and show how far it is off.")
]
CompareQuiet = Annotated[bool, _option("--quiet", panel=OUTPUT, help="No progress and no remarks on stderr.")]
MeshText = Annotated[
    str, typer.Option("--mesh", metavar="MESH", help="Devices along each axis, as in data=1,expert=4,tensor=2.")
]
OneDispatch = Annotated[str, typer.Option("--dispatch", metavar="NAME", help="auto, replicated, gather or all_to_all.")]
WantedDevices = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", parser=options.whole_number, help="Check that the mesh has so many."),
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print JSON instead, with every array on its own.")]
BatchSize = Annotated[
    int,
    _option("--batch-size", "-b", panel=WORK, metavar="N", parser=options.whole_number, help="Sequences in the cache."),
]

mesh_app = typer.Typer(name="mesh", rich_markup_mode=None, context_settings=SETTINGS)


def compare(
    model: Model,
    devices: DeviceCount,
    hardware: HardwareName,
    batch_size: BatchSizes = "1,8,32",
    input_len: InputLen = None,
    context: Context = None,
    dtype: Dtype = "bfloat16",
    expert_load: ExpertLoad = None,
    objective: ObjectiveName = "latency",
    dispatch: Dispatch = "all",
    usable_fraction: UsableFraction = 0.9,
    format: Format = None,
    json_output: FormatJson = False,
    plot: Plot = None,
    compile: Compile = False,
    measure: Measure = False,
    quiet: CompareQuiet = False,
    debug: options.Debug = False,
) -> int:
    """Rank every data x expert x tensor split of a model over so many devices, and say why.

    Needs no devices: times are predicted from the model's sizes and the figures of a hardware file.
    Exit code 0: some split fits, 1: none does, 2: an error.
    """
    from moejax.cli.mesh_compare import Asked, run

    if json_output and format not in (None, "json"):
        raise ValueError(f"--json is --format json, got --format {format} as well; give one of them")
    fits = run(
        Asked(
            model=model,
            devices=devices,
            hardware=hardware,
            batch_sizes=batch_size,
            input_len=input_len,
            context=context,
            dtype=dtype,
            expert_load=expert_load,
            objective=objective,
            dispatch=dispatch,
            usable_fraction=usable_fraction,
            format="json" if json_output else format or "table",
            plot=plot,
            compile=compile,
            measure=measure,
            quiet=quiet,
        )
    )
    return 0 if fits else DOES_NOT_FIT


def show(
    model: Model,
    mesh: MeshText,
    devices: WantedDevices = None,
    dispatch: OneDispatch = "auto",
    dtype: Dtype = "bfloat16",
    batch_size: BatchSize = 1,
    context: Context = None,
    json_output: Json = False,
    debug: options.Debug = False,
) -> None:
    """Show where each parameter and cache lives on a mesh: its axes, its split, bytes per device, what is repeated."""
    from moejax.cli.mesh_show import placed, show_tables
    from moejax.planning.auto import AUTO

    if mesh == AUTO:
        raise ValueError(
            "--mesh auto is for the devices that a command runs on, and mesh show runs on none; name a mesh, as in "
            "--mesh expert=4,tensor=2 (moejax mesh compare ranks them)"
        )
    found = placed(model, mesh, dispatch, dtype=dtype, batch_size=batch_size, context=context)
    if devices is not None and found.split.mesh.size != devices:
        raise ValueError(
            f"mesh {found.split.mesh} has {found.split.mesh.size} devices, not --devices {devices}; change one of them"
        )
    if json_output:
        console.write(f"{json.dumps(found.as_json(), ensure_ascii=False)}\n")
        return
    console.write_rendered(*show_tables(found))


for _function, _line, _examples in (
    (compare, "Rank every split of a model over devices, with reasons.", COMPARE_EXAMPLES),
    (show, "Show where each array lives on a mesh.", SHOW_EXAMPLES),
    (calibrate, "Measure the devices here and write a hardware file.", CALIBRATE_EXAMPLES),
):
    mesh_app.command(cls=Command, short_help=_line, epilog=examples(*_examples), context_settings=SETTINGS)(_function)


@mesh_app.callback(
    invoke_without_command=True, epilog=examples(COMPARE_EXAMPLES[0], SHOW_EXAMPLES[0], "moejax mesh compare --help")
)
def mesh(ctx: typer.Context) -> None:
    """Which split of a model over devices, and why; where each array lives under it."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
