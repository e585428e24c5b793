"""The model that a command is given: with --revision, one on Hugging Face; what is shown while it is downloaded."""

from typing import Annotated

from moejax.cli import console, options, startup
from moejax.hub.names import hub_model

Revision = Annotated[
    str | None,
    options.option(
        "--revision",
        panel=options.MODEL,
        metavar="NAME",
        help="Branch, tag or commit of a model on Hugging Face; main by default.",
        show_default=False,
    ),
]


def pinned(checkpoint: str, revision: str | None, *, quiet: bool = False) -> str:
    """What `moejax.load` takes for `checkpoint` at `revision`. A download shows its progress, unless `quiet`.

    Raises:
        ValueError: for a revision of anything but a model on Hugging Face, and for an address that is none.
    """
    wanted = hub_model(checkpoint, revision)
    if wanted is None:
        return checkpoint
    if not quiet:
        startup.show_log("moejax.hub.download")
    if quiet or not console.has_terminal():  # whose bars would be lines there
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars

        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # else the user has said which
            disable_progress_bars()
    return checkpoint if revision is None else str(wanted)


def short_name(checkpoint: str) -> str:
    """The last part of what names a model, without its revision."""
    wanted = hub_model(checkpoint)
    return (wanted.repo if wanted else checkpoint.rstrip("/")).rpartition("/")[2]
