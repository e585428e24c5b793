"""vLLM, through its offline interface."""

import time
from importlib import import_module

from moejax.bench.peers import Run, Runner, Served, Settings


def load(settings: Settings) -> Runner:
    vllm = import_module("vllm")
    model = vllm.LLM(
        model=settings.folder,
        dtype=settings.dtype,
        skip_tokenizer_init=True,
        max_model_len=settings.max_len,
        max_num_seqs=max(64, settings.max_batch),
        enable_prefix_caching=False,  # every round has the same prompts
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

    return Runner(run=run, how="LLM.generate, its defaults", serve=generate, serve_how="one call with all requests")
