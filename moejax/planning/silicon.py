"""The measured tables of the package aiconfigurator-core: kernels and collectives of NVIDIA GPUs. Imports no JAX.

NVIDIA Corporation, Apache-2.0, https://github.com/ai-dynamo/aiconfigurator. It is an extra, `pip install
'moejax[silicon]'`: hardware files have what was fitted to these tables, and need none of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moejax._sharding.collectives import CollectiveKind

PACKAGE = "aiconfigurator-core"
Frame = Any  # a pandas.DataFrame, whose own annotations leave open what an index gives
# By the name of a hardware file, the folder of its tables.
SYSTEMS = {
    "a100-80gb": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
ENGINES = {"vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang"}
# By the dtype of weights, what the tables call it.
DTYPES = {"bfloat16": "bfloat16", "float8_e4m3fn": "fp8"}
KINDS: dict[str, CollectiveKind] = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
}
NCCL = "nccl"
MOE_KEYS = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"]
_COLUMNS = {
    "moe": ("kernel_source", "moe_dtype", *MOE_KEYS, "distribution", "latency"),
    "gemm": ("kernel_source", "gemm_dtype", "m", "n", "k", "latency"),
    "generation_attention": (
        *("attn_dtype", "kv_cache_dtype", "batch_size", "num_heads", "num_key_value_heads", "head_dim", "step"),
        "latency",
    ),
    "context_attention": (
        *("attn_dtype", "kv_cache_dtype", "batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl"),
        "latency",
    ),
    "custom_allreduce": ("kernel_source", "num_gpus", "message_size", "latency"),
    "nccl": ("nccl_dtype", "op_name", "num_gpus", "message_size", "latency"),
}
_FOLDERS = {"generation_attention": "attention", "context_attention": "attention", "custom_allreduce": "comm"}


@dataclass(frozen=True, kw_only=True)
class SiliconTables:
    """The tables of one kind of device and one engine.

    system: a folder of the package.  engine: a key of `ENGINES`.
    """

    system: str
    engine: str

    @property
    def version(self) -> str:
        """Of the engine, as the package means it to be used on this system."""
        overrides = _versions()["overrides"].get(self.system, {})
        return (overrides.get(self.engine) or _versions()["defaults"][self.engine])["current"]

    def read(self, name: str) -> Frame:
        """One table; seconds in the column `seconds`.

        Raises:
            ValueError: when the package has it in another layout, or not at all.
        """
        return _table(self._path(name), name)

    def older(self, name: str) -> Frame | None:
        """The same table of the version before, None where the package does not have it."""
        current = _order(self._path(name).parent.name)
        found = [path for path in self._all(name) if _order(path.parent.name) < current]
        return _table(found[0], name) if found else None

    def _path(self, name: str) -> Path:
        found = self._places(name)
        if not found:
            raise ValueError(
                f"{PACKAGE} {installed()} has no table {name} of {ENGINES[self.engine]} on {self.system}; "
                "use another software, or times=fitted"
            )
        return found[0]

    def _places(self, name: str) -> list[Path]:
        """The file of the current version, else of the newest before it."""
        paths = self._all(name)
        return [path for path in paths if path.parent.name == self.version] or paths

    def _all(self, name: str) -> list[Path]:
        """The files of all versions, the newest first."""
        owner = NCCL if name == NCCL else self.engine
        folder = data_folder() / self.system / ("comm" if name == NCCL else _FOLDERS.get(name, name)) / owner
        paths = [path for path in folder.glob(f"*/{name}_perf.parquet") if path.is_file()]
        return sorted(paths, key=lambda path: _order(path.parent.name), reverse=True)


def main_kernel(moe: Frame, dtype: str) -> str:
    """The kernel of most layers of gated experts in a table, in this dtype; "" where there is none."""
    moe = gated(moe, dtype)
    return str(moe.kernel_source.value_counts().index[0]) if len(moe) else ""


def gated(moe: Frame, dtype: str) -> Frame:
    """The layers that are of the kind moejax has: gated experts, without a latent projection before them."""
    plain = ~moe.kernel_source.str.contains("nongated") & (moe.topk <= LARGEST_CHOICE)
    return moe[(moe.moe_dtype == DTYPES[dtype]) & plain]


LARGEST_CHOICE = 16  # experts per token; the tables' models with more route in a latent space


def installed() -> str:
    """The version of the package."""
    from importlib.metadata import version

    return version(PACKAGE)


def data_folder() -> Path:
    """Where the package keeps its tables.

    Raises:
        ValueError: when it, or what reads its files, is not installed.
    """
    spec = find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None or find_spec("pyarrow") is None or find_spec("pandas") is None:
        raise ValueError(f"the measured tables are in {PACKAGE}, which is not installed: pip install 'moejax[silicon]'")
    return Path(spec.origin).parent / "systems" / "data"


@lru_cache(maxsize=1)
def _versions() -> dict:
    import yaml

    path = data_folder().parent / "query_versions.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not {"defaults", "overrides"} <= set(found):
        raise ValueError(f"{path}: {PACKAGE} {installed()} has another layout than 0.12.0; install that version")
    return found


@lru_cache(maxsize=64)
def _table(path: Path, name: str) -> Frame:
    import pandas

    table = pandas.read_parquet(path)
    if missing := [column for column in _COLUMNS[name] if column not in table]:
        raise ValueError(
            f"{path}: {PACKAGE} {installed()} has another layout than 0.12.0: no column {', '.join(missing)}; install "
            f"{PACKAGE}==0.12.0"
        )
    return table.assign(seconds=table.latency * 1e-3)


def _order(version: str) -> tuple[int, ...]:
    digits = "".join(letter if letter.isdigit() else " " for letter in version)
    return tuple(map(int, digits.split()))


def fastest(table: Frame, keys: Iterable[str]) -> Frame:
    """One row per combination of `keys`: where several kernels were measured, the fastest."""
    return table.groupby(list(keys), as_index=False).seconds.min()
