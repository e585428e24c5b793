"""A wrong field is told in our words, whichever it is and whatever is in it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from moejax.serving.errors import ApiError
from moejax.serving.openai_requests import ChatRequest, CompletionRequest, check_fields
from moejax.serving.tokens_requests import DetokenizeRequest, TokenizeRequest
from moejax.serving.wrong_fields import wrong_field
from tests.messages import says

KINDS = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=3)
ITEMS = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), SCALARS)
VALUES = ITEMS | st.lists(ITEMS, max_size=2) | st.dictionaries(st.sampled_from(["include_usage", "7", "x"]), ITEMS)


def refusal(kind: type[BaseModel], body: dict[str, Any]) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return wrong_field(caught.value, kind)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_every_mistake_has_a_sentence(data: st.DataObject, kind: type[BaseModel]) -> None:
    name = data.draw(st.sampled_from([*kind.model_fields, "x"]))
    try:
        kind.model_validate({name: data.draw(VALUES)})
    except ValidationError as error:
        found = wrong_field(error, kind)
        assert found.status == 400 and found.param and found.code
        assert not any(word in found.message for word in ("Input", "valid", "dictionary", "Extra"))


@pytest.mark.parametrize(
    ("kind", "body", "param", "code", "facts"),
    [
        (CompletionRequest, {}, "prompt", "missing_required_parameter", ("prompt", "missing")),
        (ChatRequest, {"messages": [{}]}, "messages", "missing_required_parameter", ("messages[0].role", "missing")),
        (CompletionRequest, {"prompt": 3}, "prompt", "invalid_type", ("prompt", "list of token ids", "got 3")),
        (TokenizeRequest, {"prompt": [3]}, "prompt", "invalid_type", ("prompt", "a string, got a list")),
        (
            CompletionRequest,
            {"prompt": "", "stop": [1]},
            "stop",
            "invalid_type",
            ("stop", "a string or a list of strings", "got a list"),
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": None}, {"role": "user", "content": True}]},
            "messages",
            "invalid_type",
            ("messages[1].content", "a string or a list of objects", "got a boolean"),
        ),
        (CompletionRequest, {"prompt": "", "n": "1"}, "n", "invalid_type", ("n", "an integer", "a string")),
        (CompletionRequest, {"prompt": "", "n": 1.5}, "n", "invalid_type", ("n", "an integer", "1.5")),
        (
            CompletionRequest,
            {"prompt": "", "top_p": None, "stream": 1},
            "stream",
            "invalid_type",
            ("true or false", "1"),
        ),
        (DetokenizeRequest, {"tokens": [1, "a"]}, "tokens", "invalid_type", ("tokens[1]", "an integer", "a string")),
        (TokenizeRequest, {"promt": "a"}, "promt", "unknown_parameter", ("'promt'", "prompt")),
        (TokenizeRequest, {"zzz": "a"}, "zzz", "unknown_parameter", ("'zzz'", "leave it out")),
        (
            CompletionRequest,
            {"prompt": "", "stream_options": {"include_usge": True}},
            "stream_options",
            "unknown_parameter",
            ("'include_usge'", "include_usage"),
        ),
    ],
)
def test_mistakes(kind: type[BaseModel], body: dict[str, Any], param: str, code: str, facts: tuple[str, ...]) -> None:
    found = refusal(kind, body)
    assert (found.param, found.code) == (param, code)
    says(found.message, *facts)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("max_token", ("'max_token'", "max_tokens")),
        ("max_new_tokens", ("'max_new_tokens'", "max_tokens")),
        ("temprature", ("'temprature'", "temperature")),
        ("zzz", ("'zzz'", "leave it out")),
    ],
)
def test_an_unknown_field_gets_the_nearest_one(name: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(ApiError) as caught:
        check_fields(CompletionRequest.model_validate({"prompt": "a", name: 1}))
    assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")
    says(caught.value.message, *facts)
