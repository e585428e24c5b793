"""What names a model on Hugging Face: `org/name`, `hf://org/name`, `hf://org/name@REVISION`, or its address."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

SCHEME = "hf://"
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
# https://huggingface.co/docs/huggingface_hub: at most 96 characters of these, no -- and no .. in them.
_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]*(?<![.-])/[A-Za-z0-9_][\w.-]*(?<![.-])", re.ASCII)
_MOST = 96
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]*", re.ASCII)
# The first word of addresses there that are no model's.
_OTHERS = {"datasets", "spaces", "docs", "models", "papers", "collections", "api"}


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model there. revision: a branch, a tag or a commit; None is the branch main."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def hub_model(source: str | Path, revision: str | None = None) -> HubModel | None:
    """The model on Hugging Face that `source` names; None where it names none, or a folder or file that is here.

    Raises:
        ValueError: for what is no name, an address or revision that cannot be one, two revisions, and one of what is
            not there.
    """
    if not isinstance(source, str | Path):
        raise ValueError(
            f"got {source!r:.80} as the source of a model; give 'demo', a folder, or the id of a model on Hugging Face"
        )
    if not isinstance(revision, str | None):
        raise ValueError(f"revision must be a branch, a tag or a commit, got {revision!r:.80}")
    found = _named(source)
    if revision is None:
        return found
    if found is None:
        here = f"; the one on Hugging Face is {SCHEME}{source}" if _is_id(str(source)) else ""
        raise ValueError(f"revision={revision} is of a model on Hugging Face, but {source} is none{here}")
    if found.revision not in (None, revision):
        raise ValueError(f"{source} names the revision {found.revision}, and revision={revision} another; give one")
    return HubModel(repo=found.repo, revision=_revision(revision))


def _named(source: str | Path) -> HubModel | None:
    if not isinstance(source, str):
        return None
    if source.startswith(SCHEME):
        repo, at, revision = source.removeprefix(SCHEME).rstrip("/").partition("@")
        if not _is_id(repo) or (at and not revision):
            raise ValueError(f"{source} names no model on Hugging Face; expected {SCHEME}ORG/NAME or ORG/NAME@REVISION")
        return HubModel(repo=repo, revision=_revision(revision) if revision else None)
    if source.startswith(("https://", "http://")):
        return _of_address(source)
    return HubModel(repo=source) if _is_id(source) and not os.path.lexists(source) else None


def _of_address(source: str) -> HubModel:
    address = urlsplit(source)
    own = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    path = unquote(address.path).strip("/").split("/")
    known = address.hostname in _HOSTS or (own.netloc and address.netloc == own.netloc)
    repo, rest = "/".join(path[:2]), path[2:]
    if known and path[0] not in _OTHERS and _is_id(repo):
        if not rest:
            return HubModel(repo=repo)
        if rest[0] == "tree" and rest[1:]:
            return HubModel(repo=repo, revision=_revision("/".join(rest[1:])))
    raise ValueError(
        f"{source} is the address of no model on Hugging Face; expected https://huggingface.co/ORG/NAME, with "
        "/tree/REVISION or without"
    )


def _is_id(name: str) -> bool:
    return len(name) <= _MOST and _ID.fullmatch(name) is not None


def _revision(name: object) -> str:
    if not isinstance(name, str) or not _REVISION.fullmatch(name) or ".." in name:
        raise ValueError(f"revision must be a branch, a tag or a commit, got {name!r:.80}")
    return name
