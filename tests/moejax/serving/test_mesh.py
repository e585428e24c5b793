"""A server on meshes of simulated devices: the tokens of one device, whatever runs beside."""

import asyncio
from pathlib import Path

import httpx
import pytest

import moejax
from tests.moejax.serving.live import WAIT_SECONDS, running, settled


@pytest.mark.parametrize(
    ("mesh", "dispatch", "batch"), [("expert=4,tensor=2", "replicated", 3), ("data=2,expert=4", "gather", 9)]
)
def test_answers_on_a_mesh(tiny_folder: Path, model: "moejax.Model", mesh: str, dispatch: str, batch: int) -> None:
    """On the second, rows are split over all eight devices: of a batch of 16, steps of one row on each."""
    split = moejax.load(tiny_folder, dtype="float32", max_seq_len=96, mesh=mesh, dispatch=dispatch)
    prompts = [list(range(3, 3 + length)) for length in (1, 8, 30, 33, 60)]
    expected = moejax.decode(model, prompts, max_tokens=12)

    async def main(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS) as client:
            bodies = [{"prompt": prompt, "max_tokens": 12, "temperature": 0} for prompt in prompts]
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
            return [answer.json()["choices"][0]["text"] for answer in answers]

    with running(split, max_batch=batch, max_queue=8, prefill_chunk=32) as live:
        assert asyncio.run(main(live.url)) == [result.text for result in expected]
        settled(live)
        rows = [
            live.metric("moejax:expert_rows_total", layer="0", expert=str(expert))
            for expert in range(split.config.num_experts)
        ]
        fed = sum(map(len, prompts)) + len(prompts) * 11  # the last token of each is never fed
        assert sum(rows) == fed * split.config.experts_per_token
