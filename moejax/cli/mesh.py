"""`moejax mesh`: which split of a model over devices, and where each array lives under one. Imports no JAX."""

import json
from typing import Annotated

import typer

from moejax.cli import console, options
from moejax.cli.groups import grouped
from moejax.cli.help import SETTINGS, Command, examples
from moejax.cli.mesh_calibrate import CALIBRATE_EXAMPLES, calibrate
from moejax.cli.mesh_flags import OUTPUT, WORK, CompareFlags, Context, Dtype, SizedModelFlags
from moejax.cli.options import a_name, option, whole
from moejax.moe.split import DISPATCHES

NONE_WILL_DO = 1  # exit code

COMPARE_EXAMPLES = (
    "moejax mesh compare --model mixtral-8x7b --devices 8 --hardware h100-sxm",
    "moejax mesh compare --model path/to/checkpoint --devices 4 --hardware l40s -b 16 --plot a.png",
    "moejax mesh compare --model mixtral-8x7b --devices 1-16 --hardware h200 --ttft 500ms --tpot 20ms",
    "moejax mesh compare --model mixtral-8x22b --devices 16 --hardware my.toml --objective ttft",
    "moejax mesh compare --model demo --devices 1 --hardware here.toml -b 1,8 --measure",
)
SHOW_EXAMPLES = (
    "moejax mesh show --model mixtral-8x7b --mesh expert=4,tensor=2",
    "moejax mesh show --model demo --mesh expert=8 --dispatch gather --batch-size 32 --json",
)

MeshText = Annotated[
    str,
    option("--mesh", metavar="MESH", help="Devices along each axis, as in data=1,expert=4,tensor=2; or dp, ep, tp."),
]
OneDispatch = Annotated[str, a_name("--dispatch", help=f"auto, {', '.join(DISPATCHES)}.")]
WantedDevices = Annotated[int | None, whole("--devices", help="Check that the mesh has so many.")]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print JSON instead, with every array on its own.")]
BatchSize = Annotated[int, whole("--batch-size", "-b", panel=WORK, help="Sequences in the cache.")]

mesh_app = typer.Typer(name="mesh", rich_markup_mode=None, context_settings=SETTINGS)


@grouped
def compare(model: SizedModelFlags, flags: CompareFlags, debug: options.Debug = False) -> int:
    """Rank every data x expert x tensor split of a model over so many devices, and say why.

    Needs no devices: times are predicted from the model's sizes and the figures of a hardware file.
    Exit code 0: some split fits and meets the targets, 1: none does, 2: an error.
    """
    from moejax.cli.mesh_compare import run  # here, so that --help starts quickly

    return 0 if run(model.source(quiet=flags.quiet), flags) else NONE_WILL_DO


@grouped
def show(
    model: SizedModelFlags,
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
    found = placed(model.source(), mesh, dispatch, dtype=dtype, batch_size=batch_size, context=context)
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
