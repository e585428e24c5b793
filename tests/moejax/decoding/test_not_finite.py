"""Logits that are no numbers choose no token: the text ends with an error, others go on."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moejax
from moejax._sharding import mesh_config
from moejax.decoding.outputs import NOT_FINITE
from moejax.decoding.sampling import best_tokens, first_highest
from moejax.families.table import from_hf
from moejax.model.structure import make_parallel
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import BASE, load_tiny, spelled_tokens

SOUND, ILL = [5, 9, 7], spelled_tokens()[:3]
BEFORE = 2  # tokens that ILL generates until one comes behind which float16 overflows
MESHES = [None, "expert=4,tensor=2", "data=2,tensor=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overflow") / "tiny"
    load_tiny(folder, num_hidden_layers=1)
    path = folder / "model.safetensors"
    weights = {name: value.copy() for name, value in load_file(path).items()}
    weights["model.layers.0.self_attn.o_proj.weight"] *= 100
    save_file(weights, path)
    model = moejax.load(folder, dtype="float32")
    sound, ill = (moejax.decode(model, [one], max_tokens=8)[0].token_ids for one in (SOUND, ILL))
    bad = ill[BEFORE - 1]
    assert bad not in ill[: BEFORE - 1] and bad not in (*SOUND, *ILL, *sound)
    weights["model.embed_tokens.weight"][bad] = 65504  # the largest of its numbers: what is added to it overflows
    save_file(weights, path)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[int]:
    return moejax.decode(moejax.load(folder, dtype="float16"), [SOUND], max_tokens=8)[0].token_ids


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("params", [{}, {"top_k": 1, "temperature": 1.0, "seed": 1}, {"logprobs": 2}])
def test_a_text_without_finite_logits_is_an_error(folder: Path, mesh: str | None, params: dict[str, Any]) -> None:
    model = moejax.load(folder, dtype="float16", mesh=mesh)
    with refuses(moejax.NonFiniteLogitsError, "prompt 1", BEFORE, "float16", "bfloat16", "float32") as raised:
        moejax.decode(model, [SOUND, ILL], max_tokens=8, **params)
    assert (raised.value.index, raised.value.tokens) == (1, BEFORE)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_stream_yields_what_came_before(folder: Path, mesh: str | None, alone: list[int]) -> None:
    model = moejax.load(folder, dtype="float16", mesh=mesh)
    tokens: list[list[int | None]] = [[], []]
    with refuses(moejax.NonFiniteLogitsError, "prompt 1"):
        for event in moejax.decode(model, [SOUND, ILL], max_tokens=8, stream=True):
            tokens[event.index].append(event.token_id)
    assert len(tokens[1]) == BEFORE
    assert tokens[0] and tokens[0] == alone[: len(tokens[0])]  # whoever is in the batch beside it
    assert moejax.decode(model, [SOUND], max_tokens=8)[0].token_ids == alone


def test_inside_a_prompt_its_log_probabilities_tell(folder: Path) -> None:
    model = moejax.load(folder, dtype="float16")
    ill = [*ILL, *moejax.decode(model, [ILL], max_tokens=BEFORE)[0].token_ids]
    with refuses(moejax.NonFiniteLogitsError, "prompt 0", "float16"):
        moejax.decode(model, [[*ill, 5]], max_tokens=1, prompt_logprobs=1)
    assert moejax.decode(model, [[*ILL, 5]], max_tokens=1, prompt_logprobs=1)[0].prompt_logprobs


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("row", "finite"),
    [
        ([0.0, 1.0], True),
        ([-np.inf, 1.0], True),  # a token that is forbidden
        ([np.nan, 1.0], False),
        ([1.0, np.nan], False),
        ([1.0, np.inf], False),
        ([np.inf, np.nan], False),
        ([-np.inf, -np.inf], False),
        ([np.finfo(np.float32).max, 1.0], True),
    ],
)
def test_which_rows_have_a_best_token(mesh: str | None, row: list[float], finite: bool) -> None:
    parallel = make_parallel(from_hf(BASE), mesh_config(mesh).build(), "replicated")
    logits = jnp.array([row * 4, [0.0, 1.0] * 4] * 2, jnp.float32)
    best = first_highest(logits[:1])[0]
    assert best_tokens(parallel, logits).tolist() == [best if finite else NOT_FINITE, 1] * 2
