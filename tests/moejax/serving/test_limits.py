"""The least that a call of the decode loop can do for a request, from which all its neighbours get their speed."""

from typing import Any

import pytest

from moejax.decoding.sampling_params import SamplingParams
from moejax.serving.limits import served_features


@pytest.mark.parametrize(
    ("params", "least"),
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
def test_reporting_experts_makes_no_request_slower(params: dict[str, Any], least: int) -> None:
    covering = [one.covers(SamplingParams(**params)) for one in served_features(vocabulary=100)]
    assert covering == [place >= least for place in range(3)]
    features = served_features(vocabulary=100)[least]
    assert features.experts
    assert features.greedy == (least == 0)
    assert (features.logprobs is not None) == (least == 2)
