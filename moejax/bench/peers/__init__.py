"""The systems that `moejax bench compare` runs: a table, and one file per system. Imports none of them.

A peer is a function `load(Settings) -> Runner` that a process of its own calls (`moejax.bench.worker`). Adding one: a
file here and a row in `PEERS`.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every peer is given: the same weights, dtype and threads.

    folder: a Hugging Face folder.  scratch: where it may write files of its own.  threads: of a CPU.
    max_batch, max_len: the most rows, and tokens per row, that will be asked for.
    mesh, dispatch, expert_backend: of moejax.
    """

    folder: str
    scratch: str
    dtype: str
    threads: int
    max_batch: int
    max_len: int
    mesh: str | None = None
    dispatch: str = "auto"
    expert_backend: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Greedy tokens of a batch: seconds to the first token of all rows, and for all later ones. Compilation apart."""

    tokens: list[list[int]]
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, kw_only=True)
class Served:
    """Ragged requests, all given at once: their outputs, and the seconds for all."""

    tokens: list[list[int]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A loaded peer.

    run: prompts of equal length, and how many tokens to generate.  serve: prompts and the tokens wanted after each;
    None where the peer has no way of its own to serve ragged requests.
    score: how far the tokens of a continuation are from the most probable ones (of moejax alone, see its file).
    how: what a reader has to know about how it runs; `serve_how` about how the ragged requests were fed.
    """

    run: Callable[[list[list[int]], int], Run]
    how: str
    serve: Callable[[list[list[int]], list[int]], Served] | None = None
    serve_how: str = ""
    score: Callable[[list[list[int]], list[list[int]]], list[list[float]]] | None = None


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A system to compare with.

    load: "module:function".  needs: modules that must be importable.  install: the command that brings them.
    ours: whether it is moejax itself.  options: keyword arguments of `load`.
    """

    load: str
    needs: tuple[str, ...] = ()
    install: str = ""
    ours: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Which of the modules it needs are not here."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


_COMPILED = "moejax.bench.peers.transformers_peer:load_compiled"
LARGE = "5 GB with torch's CUDA libraries; its CPU build, installed before, is kept"
_TORCH = {"needs": ("torch", "transformers"), "install": f"pip install 'moejax[torch]' ({LARGE})"}
PEERS: dict[str, Peer] = {
    "moejax": Peer(load="moejax.bench.peers.moejax_peer:load", ours=True),
    "transformers": Peer(load="moejax.bench.peers.transformers_peer:load_generate", **_TORCH),
    "transformers-compiled-grouped_mm": Peer(load=_COMPILED, options={"experts": "grouped_mm"}, **_TORCH),
    "transformers-compiled-batched_mm": Peer(load=_COMPILED, options={"experts": "batched_mm"}, **_TORCH),
    "llama.cpp": Peer(
        load="moejax.bench.peers.llama_cpp_peer:load",
        needs=("llama_cpp", "gguf"),
        install="pip install llama-cpp-python gguf (built here: needs a C++ compiler, and some minutes)",
    ),
    "vllm": Peer(load="moejax.bench.peers.vllm_peer:load", needs=("vllm",), install="pip install vllm"),
}
# Names that stand for several.
GROUPS: dict[str, tuple[str, ...]] = {
    "transformers-compiled": ("transformers-compiled-grouped_mm", "transformers-compiled-batched_mm"),
}


def asked_peers(text: str) -> list[str]:
    """The rows of `PEERS` that names with commas stand for, each once, in order; "none" is none of them.

    Raises:
        ValueError: for an unknown name, or none at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*GROUPS, *(peer for peer in PEERS if not PEERS[peer].ours)]
    if names == ["none"]:
        return []
    if not names or "none" in names:
        raise ValueError(
            f"--peers must be names of systems with commas, or none for moejax alone, got {text!r}: the systems are "
            f"{', '.join(known)}"
        )
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown peer {name!r}: the known ones are {', '.join(known)}{hint}")
    return list(dict.fromkeys(peer for name in names for peer in GROUPS.get(name, (name,))))


def load_peer(name: str, settings: Settings) -> Runner:
    """Loads a peer into this process."""
    peer = PEERS[name]
    module, _, function = peer.load.partition(":")
    return getattr(import_module(module), function)(settings, **peer.options)
