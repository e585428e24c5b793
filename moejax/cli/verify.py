"""`moejax verify`: whether meshes compute what one device computes, or a checkpoint what transformers computes."""

from dataclasses import dataclass
from typing import Annotated

from moejax.cli import options, verify_meshes, verify_reference
from moejax.cli.devices import Devices
from moejax.cli.groups import grouped
from moejax.cli.options import a_name, option
from moejax.cli.sources import Revision, pinned

EXAMPLES = (
    "moejax verify demo --mesh expert=4,tensor=2 --mesh data=2,expert=4 --simulate-devices 8",
    "moejax verify path/to/checkpoint --all --dispatch gather",
    "moejax verify path/to/checkpoint --reference path/to/hf-folder",
)

NOT_EQUAL = 1  # exit code


@dataclass(frozen=True, kw_only=True)
class ComparedFlags:
    """With what a checkpoint is compared.

    Raises:
        ValueError: for nothing, or for meshes and a reference at once.
    """

    reference: Annotated[
        str | None, option("--reference", metavar="FOLDER", help="A Hugging Face folder, computed by transformers.")
    ] = None
    mesh: Annotated[
        list[str] | None,
        option(
            "--mesh",
            metavar="MESH",
            help="Compare this mesh (expert=4,tensor=2 or ep=4,tp=2, or auto) with one device, repeatable.",
        ),
    ] = None
    all_meshes: Annotated[
        bool,
        option("--all", help="Compare every mesh over which the visible devices can split the checkpoint."),
    ] = False
    dispatch: options.Dispatch = "auto"

    def __post_init__(self) -> None:
        meshes = bool(self.mesh) or self.all_meshes
        if self.reference is not None and meshes:
            raise ValueError(
                "--reference compares with transformers on one device; compare meshes in a call of their own"
            )
        if self.reference is None and not meshes:
            raise ValueError(
                "there is nothing to compare with; give --mesh expert=4,tensor=2, --all, or --reference HF_FOLDER"
            )


@grouped
def verify(
    checkpoint: options.Checkpoint,
    compared: ComparedFlags,
    devices: Devices,
    dtype: Annotated[str, a_name("--dtype", help="What all compute in: bfloat16, float16 or float32.")] = "float32",
    expert_backend: options.ExpertBackend = "auto",
    revision: Revision = None,
    json: Annotated[bool, option("--json", help="Print the comparisons as JSON and not as a table.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Compare meshes with one device, or a checkpoint with transformers.

    Exit code 0: the same, or as close as rounding to --dtype leaves them, 1: not the same, 2: an error.
    """
    checkpoint = pinned(checkpoint, revision, quiet=quiet)
    if compared.reference is not None:
        same = verify_reference.run(checkpoint, compared.reference, dtype=dtype, json=json, quiet=quiet)
    else:
        same = verify_meshes.run(
            checkpoint,
            compared.mesh or [],
            compared.dispatch,
            devices,
            every=compared.all_meshes,
            dtype=dtype,
            expert_backend=expert_backend,
            json=json,
            quiet=quiet,
        )
    return 0 if same else NOT_EQUAL
