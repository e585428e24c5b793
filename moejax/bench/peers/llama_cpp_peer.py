"""llama.cpp, through the C interface that llama-cpp-python wraps; its weights are the same, written as GGUF."""

import ctypes
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from moejax.bench.gguf_folder import write_gguf
from moejax.bench.peers import Run, Runner, Settings

PREFILL_TOKENS = 2048  # of one call, llama.cpp's own default (n_batch); it computes them 512 at a time (n_ubatch)
_CONTEXT_STEP = 256  # llama.cpp rounds a context to this

_CALLBACKS: list[Any] = []  # ctypes drops a callback that nobody refers to, and llama.cpp would still call it


@dataclass(kw_only=True)
class Context:
    """llama.cpp's state for `rows` sequences of up to `length` tokens, and its input buffer."""

    handle: Any
    batch: Any
    rows: int
    length: int


def load(settings: Settings) -> Runner:
    """Writes the GGUF file, loads it, and keeps one context, made anew for each shape."""
    lib = import_module("llama_cpp")
    path = Path(settings.scratch) / f"model-{settings.dtype}.gguf"
    if not path.exists():
        write_gguf(Path(settings.folder), path, settings.dtype)
    silence = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silence, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    offloads = lib.llama_supports_gpu_offload()
    params.n_gpu_layers = 999 if offloads else 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ValueError(f"llama.cpp cannot load {path}")
    vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    kept: list[Context] = []

    def context(rows: int, length: int) -> Context:
        if not kept or (kept[0].rows, kept[0].length) != (rows, length):
            for old in kept:
                lib.llama_batch_free(old.batch)
                lib.llama_free(old.handle)
            kept[:] = [make_context(lib, model, settings, rows, length)]
        return kept[0]

    def run(prompts: list[list[int]], output_len: int) -> Run:
        rows, length = len(prompts), len(prompts[0])
        state = context(rows, length + output_len)
        lib.llama_memory_clear(lib.llama_get_memory(state.handle), True)
        began = time.perf_counter()
        tokens = [prefill(lib, state, prompts, vocab_size)]
        first = time.perf_counter()
        for position in range(length, length + output_len - 1):
            feed(lib, state, tokens[-1], np.full(rows, position), np.arange(rows), np.ones(rows))
            tokens.append(best(lib, state, range(rows), vocab_size))
        ended = time.perf_counter()
        return Run(
            tokens=np.stack(tokens, axis=1).tolist(), prefill_seconds=first - began, decode_seconds=ended - first
        )

    _CALLBACKS.append(silence)
    cache = "float32" if settings.dtype == "float32" else "float16, its default"
    return Runner(run=run, how=f"C interface, {settings.threads} threads, {settings.dtype} GGUF, KV cache {cache}")


def make_context(lib: Any, model: Any, settings: Settings, rows: int, length: int) -> Context:
    params = lib.llama_context_default_params()
    params.n_ctx = rows * (-(-length // _CONTEXT_STEP) * _CONTEXT_STEP)
    params.n_seq_max = rows
    params.n_batch = PREFILL_TOKENS
    params.n_threads = params.n_threads_batch = settings.threads
    if settings.dtype == "float32":
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in float16
    handle = lib.llama_init_from_model(model, params)
    if not handle:
        raise ValueError(f"llama.cpp cannot make a context of {rows} x {length} tokens")
    return Context(handle=handle, batch=lib.llama_batch_init(PREFILL_TOKENS, 0, 1), rows=rows, length=length)


def prefill(lib: Any, state: Context, prompts: list[list[int]], vocab_size: int) -> np.ndarray:
    """Feeds all prompts, PREFILL_TOKENS at a time; returns the token after each."""
    length = len(prompts[0])
    tokens = np.array(prompts).reshape(-1)
    positions, rows = np.tile(np.arange(length), len(prompts)), np.repeat(np.arange(len(prompts)), length)
    chosen: list[int] = []
    for start in range(0, len(tokens), PREFILL_TOKENS):
        part = slice(start, start + PREFILL_TOKENS)
        last = positions[part] == length - 1
        feed(lib, state, tokens[part], positions[part], rows[part], last)
        chosen += best(lib, state, np.flatnonzero(last).tolist(), vocab_size).tolist()
    return np.array(chosen)


def feed(
    lib: Any, state: Context, tokens: np.ndarray, positions: np.ndarray, rows: np.ndarray, wanted: np.ndarray
) -> None:
    """One call of llama_decode; `wanted` says after which tokens there have to be logits."""
    batch, count = state.batch, len(tokens)
    batch.n_tokens = count
    for field, values in (("token", tokens), ("pos", positions), ("logits", wanted)):
        np.ctypeslib.as_array(getattr(batch, field), (count,))[:] = values
    np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
    for place, row in enumerate(rows.tolist()):
        batch.seq_id[place][0] = row
    if code := lib.llama_decode(state.handle, batch):
        raise ValueError(f"llama_decode of {count} tokens answered {code}")


def best(lib: Any, state: Context, places: Any, vocab_size: int) -> np.ndarray:
    """The most probable token after each of these places of the last call."""
    return np.array(
        [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(state.handle, place), (vocab_size,)).argmax()
            for place in places
        ]
    )
