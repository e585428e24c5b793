"""Finds a model in the Hugging Face cache, or downloads what is needed of it. huggingface_hub is imported then.

Its settings hold: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE. The cache is asked first, and what is
whole there is used without a request: a newer commit of a branch is downloaded by `hf download`.
"""

import glob
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from moejax.families.mistral_release import PARAMS
from moejax.hub.failures import HubError, explained
from moejax.hub.files import (
    HF,
    SIDES,
    about_other_weights,
    has_tokenizer,
    is_whole,
    weight_files,
    weight_form,
)
from moejax.hub.names import HubModel

_logger = logging.getLogger(__name__)

# Given the folder with the small files and whether it is in Mistral's own form: refuses what moejax cannot use.
Check = Callable[[Path, bool], object]


def snapshot(wanted: HubModel, check: Check) -> Path:
    """The folder in the cache that holds a model's weights and the files beside them.

    check: is called before any weight is downloaded.

    Raises:
        HubError: when it cannot be had, in one line that says what to do.
        ValueError: what `check` raises.
    """
    found = cached(wanted)
    whole = found is not None and is_whole(found)
    if found is not None and whole and has_tokenizer(found):
        return found
    try:
        return _downloaded(wanted, check)
    except HubError:
        if found is not None and whole:  # only a tokenizer was looked for
            return found
        raise


def config_file(wanted: HubModel) -> Path:
    """The config.json of a model, or the params.json of one in Mistral's own form: nothing else is downloaded.

    Raises:
        HubError: when it cannot be had.
    """
    if (found := cached(wanted)) is not None:
        return next(path for name in ("config.json", PARAMS) if (path := found / name).exists())
    with explained(wanted, "looking for"):
        folder = _fetch(wanted.repo, wanted.revision, ("config.json", PARAMS))
    files = (folder / "config.json", folder / PARAMS)
    if (there := next((path for path in files if path.exists()), None)) is None:
        raise HubError(f"{wanted.repo} has no config.json, which says what a model is")
    return there


def cached(wanted: HubModel) -> Path | None:
    """The folder in the cache that has the configuration of a model, whole or not; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", PARAMS):
        found = try_to_load_from_cache(wanted.repo, name, revision=wanted.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _downloaded(wanted: HubModel, check: Check) -> Path:
    from huggingface_hub import HfApi

    with explained(wanted, "looking for"):
        folder = _fetch(wanted.repo, wanted.revision, SIDES)
        commit = folder.name
        files = HfApi().model_info(wanted.repo, revision=commit, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in files}
    form = weight_form(sizes)
    if form is None:
        raise HubError(f"{wanted.repo} has no weights in safetensors: {about_other_weights(sizes)}")
    described = "config.json" if form == HF else PARAMS
    if described not in sizes:
        raise HubError(f"{wanted.repo} has no {described}, which says what its weights are")
    check(folder, form != HF)
    missing = {name: sizes[name] for name in weight_files(folder, form, sizes) if not (folder / name).exists()}
    _check_room(wanted, folder, missing)
    _logger.info("downloading %s, %s, to %s", wanted, _size(sum(missing.values())), folder)
    with explained(wanted, "downloading"):
        return _fetch(wanted.repo, commit, map(glob.escape, missing)) if missing else folder


def _fetch(repo: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """Downloads the files of those names and returns their folder, which is called after the commit."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def _check_room(wanted: HubModel, folder: Path, missing: Mapping[str, int]) -> None:
    """Raises HubError when the files are larger than the disk's free space."""
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{wanted} needs {_size(needed)} more, but {_size(free)} are free on the disk of {folder.parents[2]}; free "
            "some, or set HF_HOME to a folder on a larger disk"
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
