"""One conversion from its beginning to its manifest: a new one, one that goes on, or one that is there already."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moejax._convert.admission import check_apart, check_room, check_target, is_finished
from moejax._convert.checksums import bytes_checksum
from moejax._convert.durable import remove, sync, write_atomically, writing
from moejax._convert.errors import CheckpointError
from moejax._convert.files import AGAIN, DOWNLOADED, RECONVERT
from moejax._convert.items import Item
from moejax._convert.journal import (
    WORK,
    Header,
    Journal,
    Record,
    begin_journal,
    cut_journal,
    is_begun,
    locked,
    read_journal,
    remove_work,
)
from moejax._convert.manifest import MANIFEST, ArrayEntry, Format, Manifest, read_manifest
from moejax._convert.memory import PeakMemory, items_in_flight
from moejax._convert.previous import previous_weights
from moejax._convert.source import TensorSource
from moejax._convert.source_hashes import SourceHashes
from moejax._convert.streaming import OnProgress, Stream, check_items, convert_items
from moejax._convert.target import Target


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is converted into what.

    source_folder: None where it is not from a folder.
    source_files: name -> path of the files that the result depends on, in the order in which items need them.
    options: words that change the result, by the name of their flag.  side_files: other files of the target, whole.
    ignored: tensors of the source that are left out, with the reason.
    """

    source: TensorSource
    source_folder: Path | None
    source_format: str
    source_files: Mapping[str, Path]
    target: Target
    items: Sequence[Item]
    options: Mapping[str, str]
    side_files: Mapping[str, bytes]
    ignored: Mapping[str, str]
    moejax_version: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a conversion went. Bytes are of arrays in the target; seconds are wall time.

    converted, kept: items written now, and items found done and sound.  redone: of the written ones, those that were
    there and damaged, with what was wrong.  checked: whether every array was read back.  peak_memory_bytes: the most
    that the process held meanwhile, with what it held before.
    """

    target: Path
    items: int
    converted: int
    kept: int
    redone: Mapping[str, str]
    checked: bool
    bytes: int
    convert_seconds: float
    check_seconds: float
    ignored: Mapping[str, str]
    peak_memory_bytes: int = 0
    largest_item_bytes: int = 0


@dataclass
class _Times:
    convert: float = 0.0
    check: float = 0.0
    redone: Mapping[str, str] = field(default_factory=dict)


def run(
    conversion: Conversion,
    *,
    restart: bool = False,
    force: bool = False,
    allow_nan: bool = False,
    check: bool = True,
    workers: int = 2,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> Report:
    """Converts, continues a conversion that was stopped, or checks one that is finished.

    Memory: three times the largest item and what Python and its libraries take, whatever `workers` is.

    Args:
        restart: begin anew where a conversion is there.
        force: convert into a folder that holds something else. Weights there are replaced, other files stay.
        check: read every array back. What was done before the conversion was stopped is read back in any case.

    Raises:
        CheckpointError: for a source, a target or a disk that cannot be used. What is there then is never loadable
            unless it is complete, and the same command continues.
    """
    folder = conversion.target.folder
    with PeakMemory() as peak:
        if conversion.source_folder is not None:
            check_apart(conversion.source_folder, folder)
        check_target(folder, restart=restart, force=force)
        previous = previous_weights(folder, _previous_formats(conversion))
        if restart or not (
            is_begun(folder) or is_finished(folder, restart=restart)
        ):  # so that nothing is made or removed where it cannot be finished
            check_room(folder, conversion.items, previous)
        largest = max(item.nbytes for item in conversion.items)
        with writing(folder), locked(folder), SourceHashes(conversion.source_files) as hashes:

            def stream(journal: Journal) -> Stream:
                return Stream(
                    source=conversion.source,
                    target=conversion.target,
                    journal=journal,
                    hashes=hashes,
                    allow_nan=allow_nan,
                    workers=items_in_flight(largest, workers),
                    on_progress=on_progress,
                )

            manifest = None if restart else read_manifest(folder)
            if manifest is not None:
                report = _check_finished(conversion, manifest, hashes, stream, check=check)
            else:
                report = _convert(conversion, hashes, stream, restart=restart, check=check)
            remove_work(folder)
            sync(folder)
    return replace(report, peak_memory_bytes=peak.bytes, largest_item_bytes=largest)


def _convert(
    conversion: Conversion,
    hashes: SourceHashes,
    stream_with: Callable[[Journal], Stream],
    *,
    restart: bool,
    check: bool,
) -> Report:
    times = _Times()
    journal = None if restart else read_journal(conversion.target.folder)
    if journal is None:
        journal = _begin(conversion)  # what it removes was looked at before
    else:
        _check_same(conversion, journal, hashes)
        cut_journal(journal)
        for item in conversion.items:  # without the hashes, nobody can tell whether its source is still the same
            if item.name in journal.items and not journal.hashes.keys() >= set(item.files):
                journal.drop_item(item.name)
    stream = stream_with(journal)
    target, items = conversion.target, conversion.items
    target.prepare(journal.items.keys())
    there = [item for item in items if item.name in journal.items]
    times.redone, times.check = check_items(stream, there)
    for name in times.redone:
        journal.drop_item(name)
    todo = [item for item in items if item.name not in journal.items]
    check_room(target.folder, todo, ())
    times.convert = convert_items(stream, todo)
    if check:
        wrong, seconds = check_items(stream, todo)
        times.check += seconds
        for name in wrong:
            journal.drop_item(name)
        if wrong:
            name, problem = next(iter(wrong.items()))
            raise CheckpointError(
                f"{target.folder}: {name} was written, but {problem}; check the disk, then run the same command again"
            )
    journal.add_hashes(hashes.of(conversion.source_files))
    hashes.check_unchanged()
    _finish(conversion, journal)
    return _report(conversion, times, converted=len(todo), checked=check)


def _begin(conversion: Conversion) -> Journal:
    """Makes the target an unfinished conversion, then removes what was there before: never the other way round."""
    folder = conversion.target.folder
    formats = _previous_formats(conversion)
    journal = begin_journal(folder, _header(conversion))
    (folder / MANIFEST).unlink(missing_ok=True)
    sync(folder)
    for path in previous_weights(folder, formats):
        remove(path)
    return journal


def _previous_formats(conversion: Conversion) -> set[Format]:
    """The formats of the weights that give way to new ones: the target's, and that of an earlier conversion into it."""
    folder, formats = conversion.target.folder, set[Format]({conversion.target.format})
    try:
        manifest, journal = read_manifest(folder), read_journal(folder)
    except CheckpointError:  # a damaged one does not say
        return formats
    if manifest is not None:
        formats.add(manifest.format)
    if journal is not None:
        formats.add(journal.header.target_format)
    return formats


def _finish(conversion: Conversion, journal: Journal) -> None:
    target = conversion.target
    target.publish()
    target.check_listing()
    for name, raw in conversion.side_files.items():
        write_atomically(target.folder / name, raw, scratch=target.folder / WORK)
    manifest = Manifest(
        format=target.format,
        moejax_version=conversion.moejax_version,
        source_format="orbax" if conversion.source_format == "orbax" else "safetensors",
        source_files={name: journal.hashes[name] for name in conversion.source_files},
        options=conversion.options,
        ignored=conversion.ignored,
        arrays=_entries(conversion, journal),
        files={name: bytes_checksum(raw) for name, raw in conversion.side_files.items()},
    )
    write_atomically(target.folder / MANIFEST, manifest.to_json(), scratch=target.folder / WORK)


def _entries(conversion: Conversion, journal: Journal) -> dict[str, ArrayEntry]:
    entries: dict[str, ArrayEntry] = {}
    for item in conversion.items:
        for array in item.arrays:
            stored, key = conversion.target.place(array)
            record = journal.items[item.name][array.target]
            entries[array.target] = ArrayEntry(
                item=stored, key=key, shape=array.shape, dtype=array.dtype, **vars(record)
            )
    return entries


def _check_finished(
    conversion: Conversion,
    manifest: Manifest,
    hashes: SourceHashes,
    stream_with: Callable[[Journal], Stream],
    *,
    check: bool,
) -> Report:
    """Compares a finished conversion with what is asked for, and its arrays with its manifest."""
    folder = conversion.target.folder
    differs = _differing(manifest.format, manifest.options, conversion)
    if not differs and (files := sorted(manifest.source_files.items() ^ hashes.of(conversion.source_files).items())):
        differs = f"of another source, as {files[0][0]} tells"
    if differs:
        raise CheckpointError(
            f"{folder} holds a finished conversion {differs}; give another folder, or --restart to convert into this "
            "one anew"
        )
    journal = Journal(path=folder / WORK, header=_header(conversion))
    arrays = {array.target for item in conversion.items for array in item.arrays}
    if manifest.arrays.keys() == arrays:
        for item in conversion.items:
            entries = {array.target: manifest.arrays[array.target] for array in item.arrays}
            journal.items[item.name] = {
                name: Record(checksum=entry.checksum, finite=entry.finite) for name, entry in entries.items()
            }
    if not journal.items or manifest.arrays != _entries(conversion, journal) or manifest.ignored != conversion.ignored:
        raise CheckpointError(f"{folder / MANIFEST} does not say what was converted; {RECONVERT}")
    try:
        conversion.target.check_listing()
    except CheckpointError as error:
        raise damaged(folder, str(error)) from error
    wrong, seconds = check_items(stream_with(journal), conversion.items) if check else ({}, 0.0)
    if wrong:
        raise damaged(folder, next(iter(wrong.values())))
    return _report(conversion, _Times(check=seconds), converted=0, checked=check)


def damaged(folder: Path, problem: str) -> CheckpointError:
    """The error of a converted folder that is not as it was written, with what helps there."""
    for advice in (RECONVERT, AGAIN, DOWNLOADED.made):
        problem = problem.removesuffix(f"; {advice}")
    return CheckpointError(f"{folder} was damaged after it was converted: {problem}; convert anew with --restart")


def _report(conversion: Conversion, times: _Times, *, converted: int, checked: bool) -> Report:
    return Report(
        target=conversion.target.folder,
        items=len(conversion.items),
        converted=converted,
        kept=len(conversion.items) - converted,
        redone=times.redone,
        checked=checked,
        bytes=sum(item.nbytes for item in conversion.items),
        convert_seconds=times.convert,
        check_seconds=times.check,
        ignored=conversion.ignored,
    )


def _header(conversion: Conversion) -> Header:
    return Header(
        source="memory" if conversion.source_folder is None else str(conversion.source_folder.absolute()),
        source_format=conversion.source_format,
        target_format=conversion.target.format,
        source_files={name: path.stat().st_size for name, path in conversion.source_files.items()},
        options=conversion.options,
    )


def _check_same(conversion: Conversion, journal: Journal, hashes: SourceHashes) -> None:
    """Refuses to continue a conversion of something else. Every source file that was read from is hashed again."""
    folder, begun, asked = conversion.target.folder, journal.header, _header(conversion)
    if differs := _differing(begun.target_format, begun.options, conversion):
        command = how_to_continue(folder, begun)
        raise CheckpointError(
            f"{folder} is an unfinished conversion {differs}; continue with: {command}, or begin anew with --restart"
        )
    changed = sorted(begun.source_files.items() ^ asked.source_files.items())
    if not changed:
        changed = sorted(hashes.of(journal.hashes).items() - journal.hashes.items())
    if changed:
        raise CheckpointError(
            f"{folder} is an unfinished conversion of {begun.source}, and the source has changed since "
            f"({changed[0][0]}); begin anew with --restart"
        )


def _differing(format: Format, options: Mapping[str, str], asked: Conversion) -> str:
    """How a conversion that is there is another than `asked`, as words behind "a conversion"; "" where it is not."""
    if format != asked.target.format:
        return f"to {format}, and this one is to {asked.target.format}"
    for name in sorted(options.keys() | asked.options.keys()):
        then, now = options.get(name), asked.options.get(name)
        if then != now:
            words = [f"without {name}" if value is None else f"with {name} {value}" for value in (then, now)]
            return f"{words[0]}, and this one is {words[1]}"
    return ""


def how_to_continue(folder: Path, header: Header) -> str:
    """The command line that continues the unfinished conversion in `folder`."""
    flags = [word for name, value in header.options.items() for word in (name, value)]
    return shlex.join(["moejax", "convert", header.source, str(folder), *flags])


def refuse_unfinished(folder: Path) -> None:
    """Raises CheckpointError when `folder` is a conversion that has not ended: nothing may load it."""
    if not (folder / WORK).is_dir() or read_manifest(folder) is not None:
        return
    journal = read_journal(folder)
    command = f"moejax convert SOURCE {folder}" if journal is None else how_to_continue(folder, journal.header)
    raise CheckpointError(f"{folder} is an unfinished conversion, continue with: {command}")
