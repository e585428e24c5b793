"""Rows in pieces whose exchanges overlap: the same results on every dispatch, and as many collectives as pieces."""

import jax
import numpy as np
import pytest

import moejax
from moejax.moe.split import DISPATCHES, FEWEST_ROWS
from tests.messages import refuses

MESH = {"replicated": "expert=2,tensor=2", "gather": "expert=4,tensor=2", "all_to_all": "data=2,expert=4"}


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, (batch, length)).astype(np.int32)


def lowered(model: moejax.Model, ids: np.ndarray) -> str:
    return jax.jit(model.forward).lower(model.params, ids).as_text()


@pytest.mark.parametrize("dispatch", MESH)
def test_the_same_logits_in_pieces(dispatch: str) -> None:
    """Also of padded prompts, whose rows are not all real, and of a number of rows that the pieces do not divide."""
    assert set(MESH) == set(DISPATCHES)
    ids = tokens(8, 3 * FEWEST_ROWS + 1)
    lengths = np.asarray([*range(1, 8), ids.shape[1]])
    results, exchanged = [], []
    for pieces in (1, 3):
        model = moejax.load("demo", mesh=MESH[dispatch], dispatch=dispatch, dtype="float32", micro_batches=pieces)
        results.append(np.asarray(jax.jit(model.forward)(model.params, ids, lengths)))
        exchanged.append(lowered(model, ids).count("stablehlo.all_reduce"))
        if dispatch != "replicated":
            exchanged[-1] += lowered(model, ids).count("stablehlo.reduce_scatter")
            exchanged[-1] += lowered(model, ids).count("stablehlo.all_to_all")
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(results[1][row, :length], results[0][row, :length], atol=2e-4)
    assert exchanged[1] > 2 * exchanged[0]


def test_few_rows_stay_together() -> None:
    """A decode step reads every weight that its rows need once."""
    ids = tokens(4, 8)
    whole, pieces = (moejax.load("demo", mesh="tensor=2", dtype="float32", micro_batches=count) for count in (1, 2))
    assert lowered(whole, ids) == lowered(pieces, ids)


def test_decoded_tokens_are_the_same() -> None:
    prompts = [tokens(1, 150 + 10 * row)[0].tolist() for row in range(4)]
    once, twice = (
        moejax.decode(
            moejax.load("demo", mesh="expert=2,tensor=2", dtype="float32", micro_batches=count), prompts, max_tokens=6
        )
        for count in (1, 2)
    )
    assert [one.token_ids for one in once] == [one.token_ids for one in twice]


@pytest.mark.parametrize("wrong", [0, 9, True, 1.5, "2"])
def test_what_is_no_number_of_pieces(wrong: object) -> None:
    with refuses(ValueError, "micro_batches", "1 to 8"):
        moejax.load("demo", micro_batches=wrong)  # type: ignore[arg-type]
