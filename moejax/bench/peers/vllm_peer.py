"""vLLM, through its offline interface: LLM, SamplingParams and TokensPrompt, as docs.vllm.ai has them."""

import time
from importlib import import_module

from moejax.bench.peers import Run, Runner, Served, Settings

SHARE = 0.9  # of the GPU memory that is free: vLLM's default takes as much of all of it, which others use here, too


def load(settings: Settings) -> Runner:
    vllm = import_module("vllm")
    memory, how = {}, "LLM.generate, its defaults"
    if (share := free_share()) is not None:
        memory, how = {"gpu_memory_utilization": SHARE * share}, f"{how}, {SHARE * share:.0%} of the GPU's memory"
    model = vllm.LLM(
        model=settings.folder,
        dtype=settings.dtype,
        skip_tokenizer_init=True,
        max_model_len=settings.max_len,
        max_num_seqs=max(64, settings.max_batch),
        enable_prefix_caching=False,  # every round has the same prompts
        **memory,
    )

    def generate(prompts: list[list[int]], output_lens: list[int]) -> Served:
        params = [
            vllm.SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        inputs = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        began = time.perf_counter()
        results = model.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return Served(tokens=[list(result.outputs[0].token_ids) for result in results], seconds=seconds)

    def run(prompts: list[list[int]], output_len: int) -> Run:
        """The offline interface has one clock for a call: the prefill is a call for one token."""
        first = generate(prompts, [1] * len(prompts))
        whole = generate(prompts, [output_len] * len(prompts))
        return Run(
            tokens=whole.tokens, prefill_seconds=first.seconds, decode_seconds=max(0.0, whole.seconds - first.seconds)
        )

    return Runner(run=run, how=how, serve=generate, serve_how="one call with all requests")


def free_share() -> float | None:
    """Which part of the first GPU's memory the systems loaded before have left; None on a CPU."""
    cuda = import_module("torch").cuda
    if not cuda.is_available():
        return None
    free, total = cuda.mem_get_info()
    return free / total
