"""`moejax verify`: whether meshes compute what one device computes, or a checkpoint what transformers computes."""

from typing import Annotated

import typer

from moejax.cli import devices as device_flags
from moejax.cli import options, verify_meshes, verify_reference

EXAMPLES = (
    "moejax verify demo --mesh expert=4,tensor=2 --mesh data=2,expert=4 --simulate-devices 8",
    "moejax verify path/to/checkpoint --all --dispatch gather",
    "moejax verify path/to/checkpoint --reference path/to/hf-folder",
)

NOT_EQUAL = 1  # exit code

Reference = Annotated[
    str | None,
    typer.Option("--reference", metavar="FOLDER", help="A Hugging Face folder, computed by transformers."),
]
Meshes = Annotated[
    list[str] | None,
    typer.Option(
        "--mesh", metavar="MESH", help="Compare this mesh (expert=4,tensor=2, or auto) with one device, repeatable."
    ),
]
All = Annotated[
    bool, typer.Option("--all", help="Compare every mesh over which the visible devices can split the checkpoint.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="What all compute in: bfloat16, float16 or float32.")
]


def verify(
    checkpoint: options.Checkpoint,
    reference: Reference = None,
    mesh: Meshes = None,
    all_meshes: All = False,
    dispatch: device_flags.Dispatch = "auto",
    dtype: Dtype = "float32",
    expert_backend: options.ExpertBackend = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the comparisons as JSON and not as a table.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    simulate_devices: device_flags.SimulateDevices = None,
) -> int:
    """Compare meshes with one device, or a checkpoint with transformers.

    Exit code 0: the same, 1: not the same, 2: an error.
    """
    devices = device_flags.Devices(simulate_devices=simulate_devices)
    meshes = list(mesh or [])
    if reference is not None and (meshes or all_meshes):
        raise ValueError("--reference compares with transformers on one device; compare meshes in a call of their own")
    if reference is not None:
        same = verify_reference.run(checkpoint, reference, dtype=dtype, json=json, quiet=quiet)
    elif meshes or all_meshes:
        asked = verify_meshes.Asked(meshes=meshes, all_meshes=all_meshes, dispatch=dispatch)
        same = verify_meshes.run(
            checkpoint, asked, devices, dtype=dtype, expert_backend=expert_backend, json=json, quiet=quiet
        )
    else:
        raise ValueError(
            "there is nothing to compare with; give --mesh expert=4,tensor=2, --all, or --reference HF_FOLDER"
        )
    return 0 if same else NOT_EQUAL
