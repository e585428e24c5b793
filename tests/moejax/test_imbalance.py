"""A load that lies on one device: the same output, and statistics that show it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import moejax
from moejax.moe.split import DISPATCHES
from tests.moejax.decoding.tiny_checkpoint import BASE, random_weights

CONFIG = {**BASE, "num_local_experts": 4, "num_experts_per_tok": 1}
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8]]
NEW_TOKENS = 6
FED = sum(map(len, PROMPTS)) + len(PROMPTS) * (NEW_TOKENS - 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose router finds all experts equal: every token goes to expert 0."""
    folder = tmp_path_factory.mktemp("one_expert")
    weights = random_weights(CONFIG, 0)
    for name in weights:
        if name.endswith("block_sparse_moe.gate.weight"):
            weights[name] = np.zeros_like(weights[name])
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def one_device(source: str) -> list[moejax.DecodeResult]:
    return moejax.decode(moejax.load(source, dtype="float32"), PROMPTS, max_tokens=NEW_TOKENS)


def test_one_device_computes_every_row(one_device: list[moejax.DecodeResult]) -> None:
    assert [result.stats.device_rows for result in one_device] == [(CONFIG["num_hidden_layers"] * FED,)] * 3


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_all_tokens_on_one_expert(source: str, dispatch: str, one_device: list[moejax.DecodeResult]) -> None:
    """Of 4 devices along expert, the first (twice, for tensor = 2) computes every row and the others none."""
    model = moejax.load(source, mesh="expert=4,tensor=2", dispatch=dispatch, dtype="float32")
    results = moejax.decode(model, PROMPTS, max_tokens=NEW_TOKENS)
    assert [result.token_ids for result in results] == [result.token_ids for result in one_device]
    rows = CONFIG["num_hidden_layers"] * FED
    assert results[0].stats.device_rows == (rows, rows, 0, 0, 0, 0, 0, 0)
    assert results[0].stats.expert_rows == ((FED, 0, 0, 0),) * CONFIG["num_hidden_layers"]
    for prompt, wanted in zip(
        moejax.logits(model, PROMPTS), moejax.logits(moejax.load(source, dtype="float32"), PROMPTS), strict=True
    ):
        np.testing.assert_allclose(prompt, wanted, rtol=0, atol=1e-4)


def test_a_batch_that_does_not_divide_is_padded_and_counted(source: str) -> None:
    """3 rows over 8 devices: 5 rows of padding, which no expert computes."""
    model = moejax.load(source, mesh="data=2,expert=4", dispatch="gather", dtype="float32")
    stats = moejax.decode(model, PROMPTS, max_tokens=NEW_TOKENS)[0].stats
    assert stats.padded_rows == 5
    assert sum(stats.device_rows) == CONFIG["num_hidden_layers"] * FED
