"""`moejax mesh calibrate`: measures the devices here and writes a hardware file."""

from pathlib import Path
from typing import Annotated

import typer

from moejax.cli import console, options, startup

CALIBRATE_EXAMPLES = (
    "moejax mesh calibrate --output here.toml",
    "moejax mesh compare --model demo --devices 1 --hardware here.toml --measure",
)

Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE.toml", help="Write a new file instead of printing it."),
]


def calibrate(output: Output = None, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Measure memory bandwidth, matrix products, layers and exchange of the devices here.

    The result is a hardware file for moejax mesh compare --hardware. It takes about two minutes; nothing else should
    run meanwhile.
    """
    path = None if output is None else Path(output)
    if path is not None:
        _check_new(path)
    startup.prepare_jax(quiet=quiet)
    from moejax.measuring.calibration import calibrate
    from moejax.planning.hardware_toml import hardware_toml

    with console.progress("measuring the devices here", quiet=quiet) as step:
        hardware = calibrate("here" if path is None else path.stem, lambda what: step(f"measuring: {what}"))
    text = hardware_toml(hardware)
    if path is None:
        console.write(text)
        return
    from moejax._convert.durable import write_atomically, writing  # here, because it imports numpy

    with writing(path.parent):
        write_atomically(path, text.encode(), scratch=path.parent)
    if not quiet:
        console.remark(f"written to {path}: moejax mesh compare --model NAME --devices N --hardware {path}")


def _check_new(path: Path) -> None:
    if path.suffix != ".toml":
        raise ValueError(f"--output must end in .toml, as --hardware takes it, got {path}")
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists; name another file, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
