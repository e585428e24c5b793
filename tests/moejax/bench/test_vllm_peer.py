"""The vLLM peer in its own process, with a module in vLLM's place that takes what vLLM's own classes take and no more.

The signatures are those of vllm.LLM, vllm.SamplingParams and vllm.TokensPrompt (docs.vllm.ai, "Offline Inference").
"""

import os
from pathlib import Path

import pytest

from moejax.bench.process import PeerFailed, PeerProcess, worker_command
from tests.messages import refuses
from tests.moejax.bench.fakes import SETTINGS

VLLM = """
import time
from dataclasses import dataclass
from typing import TypedDict

now = 0.0
time.perf_counter = lambda: now  # a step takes 10 ms, whatever else this machine does


FREE = FREE_SHARE


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class CompletionOutput:
    token_ids: tuple[int, ...]


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    def __init__(self, model, *, dtype="auto", skip_tokenizer_init=False, max_model_len=None, max_num_seqs=None,
                 enable_prefix_caching=None, gpu_memory_utilization=0.9):
        assert gpu_memory_utilization <= 0.9 * FREE, "others have the rest of the GPU"
        print("INFO vllm prints to stdout")
        if model != "none" or dtype != "bfloat16":
            raise ValueError(f"cannot load {model} as {dtype}")
        assert skip_tokenizer_init, "a folder of random weights has no tokenizer"
        assert enable_prefix_caching is False, "the second round would find the prompts of the first"
        self.limits = max_model_len, max_num_seqs

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        assert not use_tqdm and len(prompts) == len(sampling_params) <= self.limits[1]
        answers = []
        for prompt, params in zip(prompts, sampling_params):
            (ids,) = prompt.values()
            assert params.temperature == 0 and params.ignore_eos and not params.detokenize
            assert len(ids) + params.max_tokens <= self.limits[0]
            answers.append(RequestOutput([CompletionOutput(tuple(ids[-1] + 1 + i for i in range(params.max_tokens)))]))
        global now
        now += 0.01 * max(params.max_tokens for params in sampling_params)
        return answers
"""


TORCH = """
from types import SimpleNamespace

cuda = SimpleNamespace(is_available=lambda: {gpu}, mem_get_info=lambda: (30, 100))
"""


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def vllm(tmp_path: Path, gpu: bool) -> dict[str, str]:
    """The environment in which these modules are found. The GPU has 30% of its memory left."""
    (tmp_path / "vllm.py").write_text(VLLM.replace("FREE_SHARE", "0.3" if gpu else "1.0"))
    (tmp_path / "torch.py").write_text(TORCH.format(gpu=gpu))
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_vllm_runs_and_serves_by_its_offline_interface(vllm: dict[str, str], gpu: bool) -> None:
    with PeerProcess("vllm", worker_command("vllm"), vllm) as peer:
        peer.load(SETTINGS)
        assert peer.serves
        assert "LLM.generate" in peer.how and ("27%" in peer.how) == gpu
        run = peer.run([[5, 6], [7, 8]], 4)
        assert run.tokens == [[7, 8, 9, 10], [9, 10, 11, 12]]
        # The prefill is a call for one token, decoding what the whole call takes longer.
        assert (run.prefill_seconds, run.decode_seconds) == (pytest.approx(0.01), pytest.approx(0.03))
        served = peer.serve([[3], [5, 6, 7]], [1, 2])
        assert (served.tokens, served.seconds) == ([[4], [8, 9]], pytest.approx(0.02))


def test_what_vllm_refuses_is_told(vllm: dict[str, str]) -> None:
    with (
        PeerProcess("vllm", worker_command("vllm"), vllm) as peer,
        refuses(PeerFailed, "vllm cannot load", "ValueError", "none as float8"),
    ):
        peer.load(SETTINGS.__class__(**{**vars(SETTINGS), "dtype": "float8"}))
