"""Sampling against a numpy oracle: the masks exactly, the sampled tokens by a statistical test.

The test of a distribution is Pearson's chi-square at ALPHA: of a correct sampler, one in a million choices of seeds
would fail a case. The seeds are fixed, so a case fails always or never. With SAMPLES draws, a distribution that is
wrong by 3% of each probability fails almost surely.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.stats import chi2

import moejax
from moejax import SamplingParams
from moejax.decoding import sampling
from moejax.decoding.requests import Request
from moejax.decoding.sampling_arrays import sampling_state
from moejax.decoding.sequences import Sequence
from moejax.decoding.state import Features, SamplingState
from tests.messages import refuses
from tests.moejax.decoding import sampling_oracle as oracle
from tests.moejax.decoding.tiny_checkpoint import Tiny

ALPHA = 1e-6
SAMPLES = 100_000
V = 16
ROUNDING = 1e-5  # the masks are computed in float32: closer to a bound than this, a token may fall on either side
EVERYTHING = Features(sample=True, filter=True, penalize=True, biases=4, min_tokens=True, stop_ids=4)


def state_of(params: list[SamplingParams], stop_ids: tuple[int, ...] = ()) -> SamplingState:
    """The sequences' parameters as the compiled steps get them."""
    sequences = [
        Sequence(
            request=Request(index=i, prompt=[0], params=p, stop_ids=stop_ids),
            output=0,
            tokenizer=None,
            eos_token_ids=(),
        )
        for i, p in enumerate(params)
    ]
    return sampling_state(sequences, EVERYTHING, entropy=0)


def random_rows(rng: np.random.Generator, count: int, width: int = 40) -> np.ndarray:
    """Logits [count, width], rounded so that ties are common, some -inf."""
    logits = np.round(3 * rng.standard_normal((count, width)) * 4) / 4
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    logits[:, 0] = 1.0  # never nothing but -inf
    return logits.astype(np.float32)


def random_params(rng: np.random.Generator) -> SamplingParams:
    def pick(*choices: float) -> float:
        return choices[rng.integers(len(choices))]

    return SamplingParams(
        temperature=pick(0.3, 1.0, 1.7),
        top_k=int(pick(0, -1, 1, 2, 7, 39, 40, 1000)),
        top_p=pick(1.0, 1e-6, 0.1, 0.5, 0.9, 0.99, float(rng.random())),
        min_p=pick(0.0, 0.02, 0.3, 1.0, float(rng.random())),
        repetition_penalty=pick(1.0, 0.7, 1.3, 2.0),
        presence_penalty=pick(0.0, -1.5, 0.5, 2.0),
        frequency_penalty=pick(0.0, -0.5, 1.25),
    )


# --- penalties, stops, masks ---


def test_penalties_equal_the_oracle() -> None:
    rng = np.random.default_rng(0)
    logits, params = random_rows(rng, 300), [random_params(rng) for _ in range(300)]
    prompts = [rng.integers(0, 40, rng.integers(1, 30)).tolist() for _ in params]
    outputs = [rng.integers(0, 40, rng.integers(0, 30)).tolist() for _ in params]
    in_prompt = np.array([np.isin(np.arange(40), prompt) for prompt in prompts])
    in_output = np.array([np.bincount(np.array(output, int), minlength=40) for output in outputs], np.int32)
    got = jax.jit(sampling.penalize)(logits, in_prompt, in_output, state_of(params))
    expected = [oracle.penalized(*row) for row in zip(logits, prompts, outputs, params, strict=True)]
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6, atol=1e-6)
    assert got.dtype == jnp.float32


def test_penalties_that_are_off_change_nothing() -> None:
    logits = random_rows(np.random.default_rng(1), 8)
    seen = np.ones(logits.shape, np.int32)
    got = sampling.penalize(
        jnp.asarray(logits), jnp.asarray(seen > 0), jnp.asarray(seen), state_of([SamplingParams()] * 8)
    )
    np.testing.assert_array_equal(got, logits)


def test_stops_are_forbidden_to_rows_that_are_too_early() -> None:
    logits = random_rows(np.random.default_rng(2), 4, V)
    params = state_of([SamplingParams()] * 4, stop_ids=(3, 15, 1))  # and -1, padding
    got = sampling.forbid_stops(jnp.asarray(logits), jnp.array([True, False, True, False]), params)
    expected = logits.copy()
    expected[np.ix_([0, 2], [1, 3, 15])] = -np.inf
    np.testing.assert_array_equal(got, expected)


def test_biases_are_added_to_the_tokens_that_they_name() -> None:
    logits = random_rows(np.random.default_rng(3), 3, V)
    biases: list[dict[int, float]] = [{}, {3: -100, 15: 0.5}, {0: 7, 1: 1, 2: -2.5, 3: 100}]
    got = sampling.add_biases(jnp.asarray(logits), state_of([SamplingParams(logit_bias=one) for one in biases]))
    expected = logits.copy()
    for row, one in zip(expected, biases, strict=True):
        for token, bias in one.items():
            row[token] += np.float32(bias)
    np.testing.assert_array_equal(got, expected)


def test_a_bias_forbids_or_enforces_a_token(tiny: Tiny) -> None:
    plain = moejax.decode(tiny.model, [5, 6], max_tokens=6)[0].token_ids
    without, only = moejax.decode(
        tiny.model,
        [[5, 6], [5, 6]],
        [SamplingParams(max_tokens=6, logit_bias={plain[0]: -100}), SamplingParams(max_tokens=6, logit_bias={9: 100})],
    )
    assert plain[0] not in without.token_ids
    assert only.token_ids == [9] * 6
    with refuses(ValueError, "logit_bias", str(tiny.model.config.vocab_size)):
        moejax.decode(tiny.model, [5], logit_bias={tiny.model.config.vocab_size: 1})


def test_masks_equal_the_oracle() -> None:
    rng = np.random.default_rng(3)
    params = [random_params(rng) for _ in range(1000)]
    scaled = random_rows(rng, 1000)
    got = np.asarray(jax.jit(sampling.keep_probable)(scaled, state_of(params)))
    near = 0
    for row, result, p in zip(scaled, got, params, strict=True):
        least, exact, most = (oracle.kept(row, p, slack) for slack in (-ROUNDING, 0, ROUNDING))
        passed = np.isfinite(result)
        np.testing.assert_array_equal(result[passed], row[passed])
        finite = np.isfinite(row)
        assert np.all(passed >= (least & finite)) and np.all(passed <= most), p
        near += not np.array_equal(least, most)
        assert np.array_equal(passed, exact & finite) or not np.array_equal(least, most), p
    assert near < 100  # the others are compared exactly


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Probabilities .4, .2, .2, .1, .1 of tokens 4, 1, 3, 0, 2.
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [4]),
        ({"top_k": 2}, [1, 3, 4]),  # a tie with the second
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 4}, [0, 1, 2, 3, 4]),
        ({"top_k": -1}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [4]),
        ({"top_p": 0.41}, [1, 3, 4]),  # one of the pair is enough, and its tie stays
        ({"top_p": 0.85}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.51}, [4]),
        ({"min_p": 0.49}, [1, 3, 4]),
        ({"min_p": 0.24}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.49}, [4]),  # top_p is of what top_k leaves: .5, .25, .25
        ({"top_k": 3, "top_p": 0.51}, [1, 3, 4]),
        ({"min_p": 0.3, "top_p": 0.49}, [4]),  # and of what min_p leaves
        ({"min_p": 0.3, "top_k": 4}, [1, 3, 4]),
    ],
)
def test_masks_by_hand(given: dict[str, float], expected: list[int]) -> None:
    scaled = np.log(np.array([[0.1, 0.2, 0.1, 0.2, 0.4]], np.float32))
    params = SamplingParams(temperature=1, **given)  # type: ignore[arg-type]
    got = sampling.keep_probable(jnp.asarray(scaled), state_of([params]))
    assert np.flatnonzero(np.isfinite(got[0])).tolist() == expected
    assert np.flatnonzero(oracle.kept(scaled[0], params)).tolist() == expected


def test_bounds_that_round_to_zero_keep_the_best() -> None:
    """In float32 top_p is 0 here: the best token stays, with its tie."""
    scaled = np.array([[-1.0, 0.0, 0.0, -2.0]], np.float32)
    got = sampling.keep_probable(jnp.asarray(scaled), state_of([SamplingParams(temperature=1, top_p=1e-60)]))
    assert np.flatnonzero(np.isfinite(got[0])).tolist() == [1, 2]


def test_filters_that_are_off_keep_every_token() -> None:
    """Also where the best token's probability rounds to 1: a neighbour that filters must not change a row."""
    scaled = np.array([[0.0, -20.0, -30.0, -80.0]] * 4, np.float32)
    params = [SamplingParams(temperature=1, top_k=k, top_p=1.0, min_p=0.0) for k in (0, -1, 4, 1000)]
    np.testing.assert_array_equal(sampling.keep_probable(jnp.asarray(scaled), state_of(params)), scaled)


# --- choose ---


def test_temperature_zero_takes_the_best_and_of_ties_the_first() -> None:
    logits = np.array([[1, 3, 3, 2], [-np.inf, -5, -np.inf, -5], [0, 0, 0, 0]], np.float32)
    params = state_of([SamplingParams(), SamplingParams(top_k=1), SamplingParams(top_p=0.1)])
    generated = jnp.zeros((3,), jnp.int32)
    for features in (Features(), EVERYTHING):
        got = sampling.choose(jnp.asarray(logits), generated, params, features)
        assert (got.tolist(), got.dtype) == ([1, 1, 0], jnp.int32)


def test_tiny_temperature_is_greedy_and_huge_one_uniform() -> None:
    logits = jnp.asarray(random_rows(np.random.default_rng(4), 64, V))
    generated = jnp.arange(64)
    cold = state_of([SamplingParams(temperature=1e-30, seed=0, top_p=0.9)] * 64)
    best = np.asarray(sampling.choose(logits, generated, cold, EVERYTHING))
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(logits), best[:, None], 1)[:, 0], logits.max(axis=1))
    hot = state_of([SamplingParams(temperature=1e30, seed=0)] * 64)
    tokens = np.asarray(sampling.choose(logits, generated, hot, EVERYTHING))
    assert np.all(np.isfinite(np.take_along_axis(np.asarray(logits), tokens[:, None], 1)))
    assert len(set(tokens.tolist())) > V // 2


def test_top_k_past_every_vocabulary() -> None:
    state_of([SamplingParams(temperature=1, top_k=2**40)])


def test_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(5)
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=0.9, seed=s)
        for s, (t, k) in enumerate([(0, 0), (1, 3), (2, 0)] * 8)
    ]
    logits, generated = random_rows(rng, 24, V), rng.integers(0, 50, 24).astype(np.int32)
    choose = jax.jit(functools.partial(sampling.choose, features=EVERYTHING))
    alone = [
        int(choose(logits[i : i + 1], generated[i : i + 1], state_of_each(params, [i]))[0]) for i in range(len(params))
    ]
    assert len(set(alone)) > 5
    for order in (rng.permutation(24), rng.permutation(24)):
        got = choose(logits[order], generated[order], state_of_each(params, order.tolist()))
        assert got.tolist() == [alone[i] for i in order]


def state_of_each(params: list[SamplingParams], which: list[int]) -> SamplingState:
    return state_of([params[i] for i in which])


# --- distributions ---


def check_distribution(tokens: Array | np.ndarray, expected: np.ndarray) -> None:
    """Chi-square of sampled tokens against probabilities [V]; what has probability 0 never occurs."""
    counts = np.bincount(np.asarray(tokens), minlength=len(expected))
    assert counts[expected == 0].sum() == 0, "a token that the filters exclude was sampled"
    mean = expected * counts.sum()
    rare = mean < 10  # together, the chi-square approximation holds for them too
    observed = np.append(counts[~rare], counts[rare].sum())
    mean = np.append(mean[~rare], mean[rare].sum())
    observed, mean = observed[mean > 0], mean[mean > 0]
    statistic = ((observed - mean) ** 2 / mean).sum()
    assert statistic < chi2.isf(ALPHA, max(1, len(mean) - 1)), (observed, mean.round(1))


@jax.jit
def sample(logits: Array, generated: Array, in_prompt: Array, in_output: Array, params: SamplingState) -> Array:
    """A token for each of `generated` rows that are alike but for their keys."""
    many = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, generated.shape[0], axis=0), (logits, in_prompt, in_output, params)
    )
    logits, in_prompt, in_output, params = many
    keys = jax.random.split(jax.random.wrap_key_data(params.key[0]), generated.shape[0])
    params = dataclasses.replace(params, key=jax.random.key_data(keys))
    return sampling.choose(sampling.penalize(logits, in_prompt, in_output, params), generated, params, EVERYTHING)


CASES = {
    "temperature 1": {"temperature": 1},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 2.5},
    "top_k": {"temperature": 1, "top_k": 5},
    "top_k with a tie at its bound": {"temperature": 1, "top_k": 3},
    "top_p": {"temperature": 1, "top_p": 0.8},
    "top_p of a hot distribution": {"temperature": 2.5, "top_p": 0.6},
    "min_p": {"temperature": 1.5, "min_p": 0.1},
    "all filters": {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    "repetition": {"temperature": 1, "repetition_penalty": 1.8},
    "presence": {"temperature": 0.7, "presence_penalty": 1.1},
    "frequency": {"temperature": 1.3, "frequency_penalty": -0.6},
    "everything": {
        "temperature": 1.4,
        "top_k": 10,
        "top_p": 0.93,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "presence_penalty": -0.4,
        "frequency_penalty": 0.5,
    },
}
LOGITS = np.array([2, 0.5, -1, 3, 1.5, 3, -3, 0, 2, 2, -0.5, 1, -np.inf, 2.5, -2, 0.25], np.float32)
PROMPT, OUTPUT = [0, 3, 6, 7, 12], [3, 3, 3, 9, 10, 6, 6]


@pytest.mark.parametrize("case", CASES)
def test_distribution_equals_the_oracle(case: str) -> None:
    params = SamplingParams(**CASES[case], seed=list(CASES).index(case))  # type: ignore[arg-type]
    in_prompt = np.isin(np.arange(V), PROMPT)[None]
    in_output = np.bincount(OUTPUT, minlength=V).astype(np.int32)[None]
    tokens = sample(LOGITS[None], np.full(SAMPLES, 7, np.int32), in_prompt, in_output, state_of([params]))
    check_distribution(tokens, oracle.distribution(LOGITS, params, PROMPT, OUTPUT))


def test_places_of_one_sequence_are_independent() -> None:
    """One key, successive places: each token and each pair of neighbours has its probability."""
    params = SamplingParams(temperature=1.2, top_k=6, seed=5)
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, SAMPLES, axis=0), state_of([params]))
    logits = jnp.repeat(jnp.asarray(LOGITS)[None], SAMPLES, axis=0)
    tokens = np.asarray(jax.jit(sampling.choose, static_argnums=3)(logits, jnp.arange(SAMPLES), many, EVERYTHING))
    expected = oracle.distribution(LOGITS, params)
    check_distribution(tokens, expected)
    check_distribution(tokens[:-1:2] * V + tokens[1::2], np.outer(expected, expected).ravel())


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_outputs_of_a_request_have_the_distribution_of_its_parameters(tiny: Tiny, seed: int) -> None:
    """The whole way: prompt, model, penalties, filters, a key per output."""
    prompt = [68, 222, 68, 15, 68]
    params = SamplingParams(
        temperature=2.0, top_k=12, repetition_penalty=1.5, presence_penalty=1, frequency_penalty=1, seed=seed
    )
    results = moejax.decode(tiny.model, prompt, params, max_tokens=1, n=1984)  # 31 batches
    tokens = np.array([output.token_ids[0] for output in results[0].outputs])
    expected = oracle.distribution(tiny.reference(prompt).logits[-1], params, prompt)
    check_distribution(tokens, expected)
    assert np.count_nonzero(expected) == 12
