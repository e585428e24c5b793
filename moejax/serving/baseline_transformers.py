"""The baseline that most people have: transformers' `generate` as it comes, token by token."""

from typing import Any

import torch
import transformers
from transformers import GenerationConfig, MixtralForCausalLM
from transformers.generation.streamers import BaseStreamer

from moejax.checkpoint import open_checkpoint
from moejax.serving.baseline import Emit, Implementation, Setup, Task


def load(setup: Setup) -> Implementation:
    """Loads the weights into torch.

    Raises:
        ValueError: when torch sees no GPU but the server runs on one: that would be no race.
    """
    device = "cpu"
    if setup.platform != "cpu":
        if not torch.cuda.is_available():
            raise ValueError("the server runs on a GPU and this torch sees none; use --baseline plain")
        device = "cuda"
    transformers.utils.logging.disable_progress_bar()
    loader: Any = MixtralForCausalLM  # its own annotations reject its methods
    folder = open_checkpoint(setup.source).folder
    model = loader.from_pretrained(folder, dtype=getattr(torch, setup.dtype), local_files_only=True).to(device).eval()
    model.generation_config = GenerationConfig()  # the checkpoint's would fill in what a task leaves at its default

    def generate(task: Task, emit: Emit) -> None:
        if task.seed is None:
            torch.seed()
        else:
            torch.manual_seed(task.seed)
        ids = torch.tensor([task.prompt], device=device)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_generation_config(task),
                streamer=_Streamer(emit),
            )

    return Implementation(
        description=f"transformers {transformers.__version__} generate(), {setup.dtype}, {device}",
        generate=generate,
        excluded_seconds=lambda: 0.0,
    )


def _generation_config(task: Task) -> GenerationConfig:
    settings: dict[str, Any] = {
        "max_new_tokens": task.max_tokens,
        "do_sample": task.temperature > 0,
        "repetition_penalty": task.repetition_penalty,
        "eos_token_id": list(task.stop_ids) or None,
        "pad_token_id": 0,  # of one row nothing is padded, but without it there is a warning
    }
    if task.temperature > 0:
        settings |= {"temperature": task.temperature, "top_k": max(0, task.top_k), "top_p": task.top_p}
        settings["min_p"] = task.min_p or None
    return GenerationConfig(**settings)


class _Streamer(BaseStreamer):
    """Passes tokens on as `generate` chooses them; what it is given first is the prompt."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._emit(int(value[0]))
        self._prompt_seen = True

    def end(self) -> None:
        pass
