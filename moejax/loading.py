"""From a checkpoint, or from nothing, to a model on the device."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.config import ModelConfig, named_config
from moejax.decoding.programs import Programs
from moejax.dtypes import resolve_dtype
from moejax.model import Mixtral
from moejax.moe import resolve_backend
from moejax.params import ParamTree, merge, random_params, split
from moejax.tokenizer import Tokenizer, missing_tokenizer_message
from sharding import device_memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model on the device, ready for `decode` and `logits`. Made by `load`.

    config: its sizes.  tokenizer: None where there is none, for the reason in `no_tokenizer_reason`.
    max_seq_len: most tokens of prompt and output together.  dtype: of weights, activations and cache.
    expert_backend: how experts are computed.  eos_token_ids: tokens that end a text.
    ignored: tensors of the checkpoint that were not used, with the reason.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    no_tokenizer_reason: str | None
    max_seq_len: int
    dtype: str
    expert_backend: str
    eos_token_ids: tuple[int, ...]
    ignored: Mapping[str, str]
    params: ParamTree = field(repr=False)
    graphdef: nnx.GraphDef[Any] = field(repr=False)
    abstract: dict[str, nnx.Param[Any]] = field(repr=False)
    programs: Programs = field(repr=False, default_factory=Programs)

    def merged(self, params: ParamTree) -> Mixtral:
        """The module with `params` in it, for use inside a traced function."""
        return merge(self.graphdef, self.abstract, params)


def load(
    source: str | Path,
    *,
    dtype: str = "bfloat16",
    max_seq_len: int | None = None,
    expert_backend: str = "auto",
    seed: int = 0,
) -> Model:
    """Loads a model onto the device.

    Args:
        source: "demo" (the checkpoint in this package), a Hugging Face folder (config.json and safetensors), or
            "random:NAME" for random weights of a named configuration or of a config.json.
        dtype: "bfloat16", "float16" or "float32" (also "bf16", "fp16", "f32"), or "auto" for the checkpoint's own.
        max_seq_len: most tokens of prompt and output together; None is the model's own limit. It is a limit, nothing
            is allocated for it.
        expert_backend: "auto", "dense", "blocked", "ragged" or "pallas".
        seed: of the random weights.

    Raises:
        ValueError: for a source, option or checkpoint that cannot be used, or a model that does not fit the device,
            in one line that says what to do. Weights are only read once all else was checked.
    """
    backend = resolve_backend(expert_backend, jax.default_backend())
    checkpoint = None
    if isinstance(source, str) and source.startswith("random:"):
        config = named_config(source.removeprefix("random:"))
        resolved_dtype = resolve_dtype(dtype, auto="bfloat16")
    else:
        resolve_dtype(dtype, auto="float32")  # a wrong word is told before the folder is opened
        checkpoint = open_checkpoint(source)
        config = checkpoint.config
        resolved_dtype = resolve_dtype(dtype, auto=checkpoint.dtype)
    limit = _sequence_limit(max_seq_len, config)
    check_fits(config, resolved_dtype)
    tokenizer = None if checkpoint is None else Tokenizer.from_folder(checkpoint.folder)
    graphdef, abstract = abstract_model(config, backend, resolved_dtype)
    if checkpoint is None:
        params, ignored = random_params(abstract, seed), {}
        no_tokenizer_reason = f"{source} has random weights and no tokenizer: give token ids instead of text"
    else:
        params, ignored = read_params(checkpoint, abstract)
        no_tokenizer_reason = None if tokenizer else missing_tokenizer_message(checkpoint.folder)
    return Model(
        config=config,
        tokenizer=tokenizer,
        no_tokenizer_reason=no_tokenizer_reason,
        max_seq_len=limit,
        dtype=resolved_dtype,
        expert_backend=backend,
        eos_token_ids=() if checkpoint is None else checkpoint.eos_token_ids,
        ignored=ignored,
        params=params,
        graphdef=graphdef,
        abstract=abstract,
    )


def abstract_model(
    config: ModelConfig, backend: str, dtype: str
) -> tuple[nnx.GraphDef[Any], dict[str, nnx.Param[Any]]]:
    """The structure of a model and its parameters by path, without making an array."""
    name = resolve_backend(backend, jax.default_backend())
    return split(Mixtral(config, name, dtype=jnp.dtype(dtype)))


def check_fits(config: ModelConfig, dtype: str) -> None:
    """Raises ValueError when the weights alone are more than the device's free memory."""
    needed = config.num_parameters * jnp.dtype(dtype).itemsize
    memory = device_memory()
    if needed > memory.free_bytes:
        raise ValueError(
            f"the model needs {needed / 1e9:.1f} GB for its {dtype} weights, but {memory.device} has "
            f"{memory.free_bytes / 1e9:.1f} GB free (of {memory.total_bytes / 1e9:.1f}); use a device with more memory"
            + (" or dtype=bfloat16" if dtype == "float32" else "")
        )


class LogicalTensor(NamedTuple):
    """A tensor as a checkpoint names it: all of one parameter, or one slot of the leading axis of a stacked one."""

    path: str
    shape: tuple[int, ...]
    slot: int | None


def logical_tensors(param_path: str, shape: tuple[int, ...]) -> Iterator[LogicalTensor]:
    """The tensors that fill one parameter; checkpoints know each expert on its own, whatever a backend's layout is."""
    if ".experts.stacked." in param_path:
        for slot in range(shape[0]):
            yield LogicalTensor(param_path.replace(".stacked.", f".{slot}."), shape[1:], slot)
    else:
        yield LogicalTensor(re.sub(r"\.experts\.each\.", ".experts.", param_path), shape, None)


def read_params(checkpoint: Checkpoint, abstract: dict[str, nnx.Param[Any]]) -> tuple[ParamTree, Mapping[str, str]]:
    """Reads every parameter onto the device, one at a time, and names the tensors that were not used.

    Raises:
        CheckpointError: for a missing, unexpected, wrongly shaped or damaged tensor, by name.
    """
    leaves = {path: variable.get_value() for path, variable in abstract.items()}
    wanted = {path: list(logical_tensors(path, leaf.shape)) for path, leaf in leaves.items()}
    expected = {tensor.path: tensor.shape for tensors in wanted.values() for tensor in tensors}
    plan = checkpoint.plan(expected)
    params = {}
    for path, leaf in leaves.items():
        host = np.empty(leaf.shape, leaf.dtype)
        for tensor in wanted[path]:
            out = host if tensor.slot is None else host[tensor.slot]
            checkpoint.tensors.read_into(plan.sources[tensor.path], out)
        params[path] = jax.device_put(host)
    return params, plan.ignored


def _sequence_limit(max_seq_len: int | None, config: ModelConfig) -> int:
    most = config.max_position_embeddings
    if max_seq_len is None:
        return most
    if not isinstance(max_seq_len, int) or isinstance(max_seq_len, bool) or not 2 <= max_seq_len <= most:
        raise ValueError(
            f"max_seq_len must be from 2 to {most} (the model's max_position_embeddings), got {max_seq_len!r}"
        )
    return max_seq_len
