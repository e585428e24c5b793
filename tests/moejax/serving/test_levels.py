"""The least level of the decode loop that serves a request, from which all its neighbours get their speed."""

from typing import Any

import pytest

from moejax.decoding.sampling_params import SamplingParams
from moejax.serving.slots import level_of, make_levels


@pytest.mark.parametrize(
    ("params", "level"),
    [
        ({}, 0),
        ({"return_routed_experts": True}, 0),
        ({"temperature": 0.7}, 1),
        ({"temperature": 0.7, "return_routed_experts": True}, 1),
        ({"temperature": 0.7, "top_p": 0.9}, 2),
        ({"logprobs": 0}, 2),
        ({"min_tokens": 1}, 2),
        ({"frequency_penalty": 0.1}, 2),
    ],
    ids=str,
)
def test_reporting_experts_makes_no_request_slower(params: dict[str, Any], level: int) -> None:
    assert level_of(SamplingParams(**params)) == level
    features = make_levels(vocabulary=100)[level]
    assert features.experts
    assert features.greedy == (level == 0)
    assert (features.logprobs is not None) == (level == 2)
