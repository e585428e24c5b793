"""Figures that others published of systems that do not run here: cited, not measured by us. Imports no JAX.

They stand beside ours for scale alone: other hardware, other prompts, other precision.
"""

from dataclasses import dataclass

from moejax.bench.report_tables import table

_GPT_FAST = "https://github.com/pytorch-labs/gpt-fast (README)"
_BASETEN = "https://www.baseten.co/blog/faster-mixtral-inference-with-tensorrt-llm-and-quantization/"
_VLLM = "https://github.com/vllm-project/vllm/pull/3240"
_VLLM_H100 = "https://github.com/vllm-project/vllm/pull/2542"
_LMDEPLOY = "https://github.com/InternLM/lmdeploy/issues/2019"
_ELEPHANTS = "https://arxiv.org/abs/2211.10017 (abstract)"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One figure: the system, what it ran, on what, what it reached, and where that is written."""

    system: str
    work: str
    hardware: str
    figure: str
    source: str


PUBLISHED = (
    Published(
        system="gpt-fast",
        work="Mixtral 8x7B bfloat16, decode, batch 1, prompt of 5",
        hardware="2 / 4 / 8 A100-80GB at 330 W, tensor parallel",
        figure="96.67 / 155.35 / 227.82 tok/s",
        source=_GPT_FAST,
    ),
    Published(
        system="gpt-fast",
        work="Mixtral 8x7B int8, decode, batch 1, prompt of 5",
        hardware="1 / 2 / 4 / 8 A100-80GB at 330 W, tensor parallel",
        figure="97.92 / 155.03 / 216.87 / 279.35 tok/s",
        source=_GPT_FAST,
    ),
    Published(
        system="TensorRT-LLM",
        work="Mixtral 8x7B int8, one request, 512 in, 128 out",
        hardware="1 A100",
        figure="81 tok/s perceived, 127 ms to the first token",
        source=_BASETEN,
    ),
    Published(
        system="vLLM",
        work="Mixtral 8x7B, 1,000 in and 50 out, batch 1 / 8 / 32",
        hardware="2 A100-80GB, tensor parallel",
        figure="0.762 / 2.034 / 4.531 s for all of it",
        source=_VLLM,
    ),
    Published(
        system="vLLM, January 2024",
        work="Mixtral 8x7B, 1,000 in and 50 out, batch 1 / 8 / 32",
        hardware="8 H100, tensor parallel",
        figure="0.459 / 0.813 / 1.489 s for all of it",
        source=_VLLM_H100,
    ),
    Published(
        system="vLLM 0.5.1",
        work="Mixtral 8x7B, 500 ShareGPT requests at 2 per second",
        hardware="2 A800-80GB, tensor parallel",
        figure="1.81 requests/s, 103,017 tokens in 275.60 s",
        source=_LMDEPLOY,
    ),
    Published(
        system="MoE kernels built on FasterTransformer",
        work="translation model with experts, 4-bit expert weights",
        hardware="single GPU, see the paper",
        figure="up to 26x in throughput, in the paper's words",
        source=_ELEPHANTS,
    ),
)


def published_table() -> str:
    """The figures as Markdown, marked as not ours."""
    rows = [(one.system, one.work, one.hardware, one.figure, one.source) for one in PUBLISHED]
    note = (
        "NOT MEASURED BY US: as their authors published them, on other hardware, models and prompts than ours. What "
        "part of their devices' speed some of them reach is in docs/performance-model.md.\n"
    )
    return f"{note}\n{table(('system', 'work', 'hardware', 'figure', 'source'), rows)}"
