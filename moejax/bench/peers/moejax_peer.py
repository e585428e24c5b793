"""moejax itself, as one of the systems compared."""

import time

import jax
import numpy as np

import moejax
from moejax.bench.peers import Run, Runner, Served, Settings
from moejax.runtime.buckets import MAX_SEQUENCES
from moejax.runtime.program_cache import keep_programs

SERVE_HOW = f"one call of moejax.decode with all requests, {MAX_SEQUENCES} sequences at a time"


def load(settings: Settings) -> Runner:
    """Loads the folder; programs are compiled by the warm-up and are in no time."""
    keep_programs(None)
    model = moejax.load(
        settings.folder,
        dtype=settings.dtype,
        mesh=settings.mesh,
        dispatch=settings.dispatch,
        expert_backend=settings.expert_backend,
        max_seq_len=settings.max_len,
    )

    if model.mesh.size > 1 and jax.default_backend() == "cpu":
        raise ValueError(f"the devices of mesh {model.mesh} are simulated, and never timed: give --simulate-devices")

    def run(prompts: list[list[int]], output_len: int) -> Run:
        results = moejax.decode(model, prompts, max_tokens=output_len, ignore_eos=True)
        return Run(
            tokens=[result.token_ids for result in results],
            prefill_seconds=max(result.stats.ttft_seconds for result in results),
            decode_seconds=results[0].stats.call_decode_seconds,
        )

    def serve(prompts: list[list[int]], output_lens: list[int]) -> Served:
        params = [moejax.SamplingParams(max_tokens=length, ignore_eos=True) for length in output_lens]
        compiled = model.programs.compile_seconds
        began = time.perf_counter()
        results = moejax.decode(model, prompts, params)
        seconds = time.perf_counter() - began - (model.programs.compile_seconds - compiled)
        return Served(tokens=[result.token_ids for result in results], seconds=seconds)

    def score(prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        """For each token of each row, the gap between the best logit there and that of the token that was taken, in
        standard deviations of the logits: 0 for the most probable one, about 4 for one at random.
        """
        sequences = [prompt + row for prompt, row in zip(prompts, tokens, strict=True)]
        scored = []
        for sequence, row in zip(sequences, tokens, strict=True):
            (logits,) = moejax.logits(model, [sequence[:-1]])
            logits = logits[-len(row) :]
            gaps = logits.max(axis=1) - logits[np.arange(len(row)), row]
            scored.append((gaps / logits.std(axis=1)).tolist())
        return scored

    how = f"experts {model.expert_backend}, {jax.default_backend()}"
    if model.mesh.size > 1:
        how += f", mesh {model.mesh}, dispatch {model.dispatch}"
    return Runner(run=run, how=how, serve=serve, serve_how=SERVE_HOW, score=score)
