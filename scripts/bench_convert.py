"""Times conversion to Orbax and back against a plain copy of the same bytes on the same disk.

    python scripts/bench_convert.py --gigabytes 3 --folder /tmp

Makes a random checkpoint of Mixtral 8x7B with fewer layers, then, `--rounds` times in turn: copies its files, converts
them to Orbax, and converts those back. Each side ends with fsync. A conversion is timed without reading back
(`--no-verify`), checksums included; reading back is timed apart, once. The source is in the system's cache, unless
`--cold`, which asks the system to drop it before each run. Prints MB/s, medians, the ratio to the copy and the peak
memory; exits with 1 below `--at-least`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # arrays stay on the host

import numpy as np

import moejax
from moejax.families.config import ModelConfig
from moejax.families.table import from_hf, parameters_of

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
COPY, TO_ORBAX, TO_HF = "copy", "HF to Orbax", "Orbax to HF"
_BLOCK_BYTES = 8 << 20
_LAYERS_PER_FILE = 1


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        source = folder / "hf"
        nbytes = write_random_checkpoint(source, args.gigabytes)
        print(f"{cpu_name()}, {os.cpu_count()} cores, {nbytes / 1e9:.2f} GB of bfloat16 on {args.folder}", flush=True)
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


def write_random_checkpoint(folder: Path, gigabytes: float, fields: Mapping[str, Any] = CONFIG) -> int:
    """A bfloat16 Mixtral of about this size in files of one layer, as transformers names them; returns its bytes."""
    one, two = (2 * parameters_of(from_hf({**fields, "num_hidden_layers": layers})).total for layers in (1, 2))
    layers = max(1, round((gigabytes * 1e9 - one) / (two - one)) + 1)
    config = {**fields, "num_hidden_layers": layers}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    numbers = np.random.default_rng(0).standard_normal(_BLOCK_BYTES // 2).astype(np.float32) * 0.02
    block = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # the upper halves of small floats are bfloat16
    tensors = list(tensor_shapes(from_hf(config)))
    files = [tensors[:3], *([t for t in tensors[3:] if t[0].split(".")[2] in group] for group in _layer_groups(layers))]
    weight_map, total = {}, 0
    for number, held in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys((tensor for tensor, _ in held), name)
        total += _write_file(folder / name, held, block)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of a Mixtral: what is outside of layers first, then the layers in order."""
    d, f = config.embed_dim, config.expert_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "lm_head.weight", (config.vocab_size, d)
    yield "model.embed_tokens.weight", (config.vocab_size, d)
    yield "model.norm.weight", (d,)
    for layer in (f"model.layers.{number}" for number in range(config.num_layers)):
        for expert in range(config.num_experts):
            part = f"{layer}.block_sparse_moe.experts.{expert}"
            yield from ((f"{part}.w1.weight", (f, d)), (f"{part}.w2.weight", (d, f)), (f"{part}.w3.weight", (f, d)))
        yield f"{layer}.block_sparse_moe.gate.weight", (config.num_experts, d)
        yield f"{layer}.input_layernorm.weight", (d,)
        yield f"{layer}.post_attention_layernorm.weight", (d,)
        for name, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
            yield f"{layer}.self_attn.{name}_proj.weight", shape


def _layer_groups(layers: int) -> list[set[str]]:
    return [
        {str(layer) for layer in range(first, min(first + _LAYERS_PER_FILE, layers))}
        for first in range(0, layers, _LAYERS_PER_FILE)
    ]


def _write_file(path: Path, tensors: list[tuple[str, tuple[int, ...]]], block: bytes) -> int:
    """A safetensors file whose numbers are those of `block`, again and again; returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, shape in tensors:
        stop = size + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, stop]}
        size = stop
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
    return size


def cpu_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
