"""Times conversion to Orbax and back against a plain copy of the same bytes on the same disk.

    python scripts/bench_convert.py --gigabytes 3 --folder /tmp

Makes a random checkpoint of Mixtral 8x7B with fewer layers, then, `--rounds` times in turn: copies its files, converts
them to Orbax, and converts those back. Each side ends with fsync. A conversion is timed without reading back
(`--no-verify`), checksums included; reading back is timed apart, once. The source is in the system's cache, unless
`--cold`, which asks the system to drop it before each run. Prints MB/s, medians, the ratio to the copy and the peak
memory; exits with 1 below `--at-least`.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # arrays stay on the host

import numpy as np

import moejax
from moejax.bench.machine import describe_machine, machine_line
from moejax.families.config import ModelConfig
from moejax.families.table import family_of, named_config, parameters_of, weights_of

MIXTRAL = named_config("mixtral-8x7b")
COPY, TO_ORBAX, TO_HF = "copy", "HF to Orbax", "Orbax to HF"
_BLOCK_BYTES = 8 << 20


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        source = folder / "hf"
        nbytes = write_random_checkpoint(source, args.gigabytes)
        print(f"{machine_line(describe_machine())}, {nbytes / 1e9:.2f} GB of bfloat16 on {args.folder}", flush=True)
        found = measure(source, folder, args.rounds, cold=args.cold, workers=args.workers)
    medians = {name: statistics.median(speeds) for name, speeds in found.speeds.items()}
    cache = "dropped from the cache before each run" if args.cold else "in the cache"
    print(f"source {cache}; MB/s, median of {args.rounds} (all), each ending with fsync")
    for name, speeds in found.speeds.items():
        rounds = " ".join(f"{speed:.0f}" for speed in speeds)
        print(f"  {name:12} {medians[name]:6.0f} ({rounds})   {medians[name] / medians[COPY]:.2f} of the copy")
    print(
        f"read back: {nbytes / found.check_seconds / 1e6:.0f} MB/s; "
        f"peak memory {found.peak_bytes / 1e6:.0f} of {found.bound_bytes / 1e6:.0f} MB"
    )
    slowest = min(medians[TO_ORBAX], medians[TO_HF]) / medians[COPY]
    sys.exit(0 if slowest >= args.at_least else 1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gigabytes", type=float, default=3.0, help="size of the checkpoint; three times as much is free"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where, on the disk to measure"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="items in flight at a time")
    parser.add_argument("--cold", action="store_true", help="drop the source from the system's cache before each run")
    parser.add_argument("--at-least", type=float, default=1 / 3, help="the ratio to the copy that is enough")
    return parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class ConversionSpeeds:
    """speeds: MB/s of every round, by name.  check_seconds: of reading back, once."""

    speeds: Mapping[str, list[float]]
    peak_bytes: int
    bound_bytes: int
    check_seconds: float


def measure(
    source: Path, folder: Path, rounds: int, *, cold: bool = False, verify: bool = False, workers: int = 2
) -> ConversionSpeeds:
    """Times the copy and both conversions in turn; reading back, with `verify`, is not in the times."""
    orbax, target = folder / "orbax", folder / "target"
    options: dict[str, Any] = {"verify": verify, "workers": workers}
    first = moejax.convert(source, orbax)  # imports and starts everything, too
    nbytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    runs: dict[str, tuple[Path, Callable[[], Any]]] = {
        COPY: (source, lambda: copy_folder(source, target)),
        TO_ORBAX: (source, lambda: moejax.convert(source, target, **options)),
        TO_HF: (orbax, lambda: moejax.convert(orbax, target, **options, shard_size="2GB")),
    }
    order = list(runs)
    speeds: dict[str, list[float]] = {name: [] for name in order}
    peak = first.peak_memory_bytes
    for number in range(rounds):
        # Each begins where another's output was just removed, and each comes first in turn: what the system does with
        # memory and blocks that become free is the same for all.
        for name in order[number % len(order) :] + order[: number % len(order)]:
            read, run = runs[name]
            os.sync()
            if cold:
                drop_from_cache(read)
            began = time.perf_counter()
            report = run()
            seconds = time.perf_counter() - began
            if name != COPY:
                seconds -= report.check_seconds
                peak = max(peak, report.peak_memory_bytes)
            speeds[name].append(nbytes / seconds / 1e6)
            shutil.rmtree(target)
    return ConversionSpeeds(
        speeds=speeds,
        peak_bytes=peak,
        bound_bytes=3 * first.largest_item_bytes + 600_000_000,
        check_seconds=first.check_seconds,
    )


def copy_folder(source: Path, target: Path) -> None:
    """A plain copy: read and write in blocks, fsync at the end."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        with file.open("rb", buffering=0) as reader, (target / file.name).open("wb", buffering=0) as writer:
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
            os.fsync(writer.fileno())


def drop_from_cache(folder: Path) -> None:
    """Asks the system to forget what it has cached of the files in `folder`."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write_random_checkpoint(folder: Path, gigabytes: float, config: ModelConfig = MIXTRAL) -> int:
    """A bfloat16 checkpoint of about this size, a file per layer, as transformers names them; returns its bytes."""
    one, two = (2 * parameters_of(dataclasses.replace(config, num_layers=layers)).total for layers in (1, 2))
    layers = max(1, round((gigabytes * 1e9 - one) / (two - one)) + 1)
    config = dataclasses.replace(config, num_layers=layers)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(family_of(config).hf_config(config, "bfloat16"), indent=2))
    numbers = np.random.default_rng(0).standard_normal(_BLOCK_BYTES // 2).astype(np.float32) * 0.02
    block = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # the upper halves of small floats are bfloat16
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for weight in weights_of(config):
        layer = weight.path.split(".")[1] if weight.path.startswith("layers.") else "outside of layers"
        files.setdefault(layer, {}).update((tensor.names[0], weight.shape) for tensor in weight.tensors())
    weight_map, total = {}, 0
    for number, held in enumerate(files.values(), start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(held, name)
        total += _write_file(folder / name, held, block)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_file(path: Path, tensors: Mapping[str, tuple[int, ...]], block: bytes) -> int:
    """A safetensors file whose numbers are those of `block`, again and again; returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, shape in tensors.items():
        stop = size + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, stop]}
        size = stop
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
    return size


if __name__ == "__main__":
    main()
