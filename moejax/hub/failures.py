"""What a request to Hugging Face ended with, in one line that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moejax._convert import CheckpointError
from moejax._convert.files import AGAIN
from moejax.hub.names import HubModel

# What huggingface_hub raises, of its own or of json, for answers that are no hub's: a page to log in to a network, say.
_NO_HUB = (ValueError, TypeError, AttributeError, LookupError)
_CACHED = re.compile(r"/models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[\w]+)/(?P<file>[\w./-]+\w)")


class HubError(ValueError):
    """A model cannot be had from Hugging Face or the cache; the message says why, and what to do."""


@contextmanager
def explained(wanted: HubModel, doing: str) -> Iterator[None]:
    """Raises HubError for what huggingface_hub and the system raise in the block. `doing`: "looking for", and the like.

    What other errors tell of is an answer that is no hub's: nothing but huggingface_hub runs there.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What its client raises for whatever a network may do; huggingface_hub does not export it, and has changed clients.
    network_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{wanted.repo} cannot be the id of a model on Hugging Face: {_first_line(error)}") from error
    except (network_error, OSError) as error:
        raise HubError(_explain(wanted, doing, error)) from error
    except _NO_HUB as error:
        from huggingface_hub import constants

        raise HubError(
            f"{doing} {wanted} failed: {constants.ENDPOINT} answers otherwise than a hub ({type(error).__name__}: "
            f"{_first_line(error)}); check HF_ENDPOINT, and whether the network wants a login, and run it again"
        ) from error


@contextmanager
def telling_how_to_download_again() -> Iterator[None]:
    """Where a CheckpointError says to download a file of the Hugging Face cache again, it says by which command.

    What is there is used without asking the hub, so running the same thing again would find the same file.
    """
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        if not message.endswith(AGAIN) or (found := _CACHED.search(message)) is None:
            raise
        command = f"hf download {found['org']}/{found['name']} {found['file']} --revision {found['commit']}"
        raise CheckpointError(f"{message}: {command} --force-download") from error


def _explain(wanted: HubModel, doing: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return (
            f"{wanted} is not wholly in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids a download; "
            "unset it, or give a folder"
        )
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"{wanted.repo} is gated: accept its conditions at {where}/{wanted.repo}, then log in: hf auth login, or "
            "set HF_TOKEN"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{wanted.repo} has no revision {wanted.revision}; {where}/{wanted.repo}/tree/main lists them"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"{where} has no model {wanted.repo}, or shows it only to some: check the name, or log in: hf auth login, "
            "or set HF_TOKEN"
        )
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return f"{where} refuses the token for {wanted.repo} ({status}); log in anew: hf auth login, or set HF_TOKEN"
    if isinstance(cause, OSError) and cause.errno is not None and cause.filename:  # of a disk
        return f"{cause.filename}: {cause.strerror}; HF_HOME says where the cache is"
    reason = f"{type(cause).__name__}: {_first_line(cause)}"
    return (
        f"{doing} {wanted} at {where} failed ({reason}); check the network and run it again: what is whole in the "
        "cache is kept"
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no message"
