"""The forms of OpenAI's API, one by one: each is taken, or refused in a sentence that names it."""

import dataclasses
import inspect
import json
from typing import Any, get_type_hints

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from moejax.serving.openai_requests import NEUTRAL, ChatRequest, CompletionRequest
from moejax.serving.prepare import chat_token_ids
from tests.messages import says
from tests.moejax.serving.live import Live
from tests.moejax.serving.test_faults import error_of

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# Messages: what is taken, by the text that the template of the tests' checkpoint makes of it.
MESSAGES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a user": ([{"role": "user", "content": "a"}], "[user]a"),
    "system": ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "[system]s[user]a"),
    "developer as system": (
        [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}],
        "[system]s[user]a",
    ),
    "parts": ([{"role": "user", "content": [TEXT, {**TEXT, "text": "b"}]}], "[user]ab"),
    "no parts": ([{"role": "user", "content": []}], "[user]"),
    "an assistant's refusal": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, {"role": "user", "content": "a"}],
        "[assistant]no[user]a",
    ),
    "no content": (
        [{"role": "assistant", "content": None}, {"role": "user", "content": "a"}],
        "[assistant][user]a",
    ),
    "no content at all": ([{"role": "assistant"}, {"role": "user", "content": "a"}], "[assistant][user]a"),
    "tool calls": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ],
        "[assistant][tool]1",
    ),
    "a name": ([{"role": "user", "name": "me", "content": "a"}], "[user]a"),
}
REFUSED_MESSAGES: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "none": ([], ("one message",)),
    "an image": ([{"role": "user", "content": [TEXT, IMAGE]}], ("messages[0]", "no text", "image_url")),
    "audio": ([{"role": "user", "content": [{"type": "input_audio"}]}], ("no text", "input_audio")),
    "a user without content": ([{"role": "user", "content": None}], ("messages[0].content", "assistant")),
    "a tool without content": ([{"role": "tool"}], ("messages[0].content",)),
    "no role": ([{"content": "a"}], ("role",)),
    "text": (["a"], ("messages[0]",)),
    "a number": ([{"role": "user", "content": 1}], ("messages[0].content",)),
}

# Fields that are taken by both kinds of requests, with a value of each form that they have.
BOTH: dict[str, tuple[Any, ...]] = {
    "model": ("tiny", None),
    "frequency_penalty": (0, 0.5, -2, None),
    "presence_penalty": (0, 0.5, 2, None),
    "logit_bias": ({}, {"5": -100, "6": 1.5}, None),
    "max_tokens": (1, None),
    "n": (1, 2, None),
    "seed": (0, 7, None),
    "stop": ("x", ["x", "y"], [], None),
    "stream": (False, True, None),
    "temperature": (0, 1, 0.5, 2, None),
    "top_p": (1, 0.5, None),
    "user": ("me", None),
}
TAKEN: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/completions": {
        **BOTH,
        "prompt": ("a", ["a", "b"], [5, 6], [[5], [6, 7]]),
        "best_of": (1, None),
        "echo": (True, False, None),
        "logprobs": (0, 5, None),
        "stream_options": (None,),
        "suffix": ("", None),
    },
    "/v1/chat/completions": {
        **BOTH,
        "messages": ([{"role": "user", "content": "a"}],),
        "audio": (None,),
        "function_call": ("none", None),
        "functions": ([], None),
        "logprobs": (True, False, None),
        "max_completion_tokens": (1, None),
        "metadata": ({"a": "b"}, None),
        "modalities": (["text"], None),
        "moderation": (None,),
        "parallel_tool_calls": (True, False),
        "prediction": (None,),
        "prompt_cache_key": ("k",),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": ("24h", None),
        "reasoning_effort": ("none", "low", "high", None),
        "response_format": ({"type": "text"}, None),
        "safety_identifier": ("me",),
        "service_tier": ("auto", "default", None),
        "store": (False, None),
        "stream_options": (None,),
        "tool_choice": ("none", "auto", None),
        "tools": ([], None),
        "top_logprobs": (None,),
        "verbosity": ("medium", None),
        "web_search_options": (None,),
    },
}
# What is refused, by its own name.
REFUSED: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "best_of": 2,
        "suffix": "x",
        "logprobs": 21,
        "stream_options": {"include_usage": True},
        "prompt": None,
        "n": 5,
        "temperature": -1,
        "top_p": 0,
        "max_tokens": -1,
        "stop": [""],
        "logit_bias": {"a": 1},
        "guided_json": {},
    },
    "/v1/chat/completions": {
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": {"name": "f"},
        "functions": [{"name": "f"}],
        "modalities": ["text", "audio"],
        "prediction": {"type": "content", "content": "a"},
        "response_format": {"type": "json_object"},
        "service_tier": "priority",
        "store": True,
        "tool_choice": "required",
        "tools": [TOOL],
        "top_logprobs": 2,
        "verbosity": "high",
        "web_search_options": {},
        "reasoning_effort": 3,
        "chat_template_kwargs": [],
        "messages": "a",
    },
}


def post(live: Live, path: str, asked: dict[str, Any]) -> httpx.Response:
    with live.client() as client:
        return client.post(path, json=asked)


def least(path: str) -> dict[str, Any]:
    what: Any = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    return {**what, "max_tokens": 1}


@pytest.mark.parametrize("form", MESSAGES)
def test_messages(live: Live, form: str) -> None:
    messages, expected = MESSAGES[form]
    answer = post(live, "/tokenize", {"messages": messages})
    assert answer.status_code == 200, answer.text
    assert live.model.tokenizer is not None
    assert answer.json()["tokens"] == live.model.tokenizer.encode(f"<s>{expected}[assistant]")
    chat = post(live, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert chat.status_code == 200
    assert chat.json()["usage"]["prompt_tokens"] == answer.json()["count"]


@pytest.mark.parametrize("form", REFUSED_MESSAGES)
def test_messages_that_are_refused(live: Live, form: str) -> None:
    messages, facts = REFUSED_MESSAGES[form]
    answer = post(live, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "messages"
    says(error_of(answer)["message"], *facts)


@pytest.mark.parametrize("path", TAKEN)
def test_fields_that_are_taken(live: Live, path: str) -> None:
    for name, values in TAKEN[path].items():
        for value in values:
            asked = {**least(path), name: value}
            if name == "n" and path == "/v1/chat/completions":
                asked["temperature"] = 1
            answer = post(live, path, asked)
            assert answer.status_code == 200, (name, value, answer.text)


@pytest.mark.parametrize("path", REFUSED)
def test_fields_that_are_refused_by_name(live: Live, path: str) -> None:
    for name, value in REFUSED[path].items():
        answer = post(live, path, {**least(path), name: value})
        assert answer.status_code == 400, (name, value)
        error = error_of(answer)
        assert error["param"] == name, (name, error)
        says(error["message"], f"'{name}'" if name == "guided_json" else name)
        assert error["code"] is None or error["code"].isidentifier()


@pytest.mark.parametrize(
    ("path", "params", "request_type"),
    [
        ("/v1/completions", completion_create_params, CompletionRequest),
        ("/v1/chat/completions", chat_create_params, ChatRequest),
    ],
    ids=["completions", "chat"],
)
def test_every_field_of_the_official_client_has_a_row(path: str, params: Any, request_type: Any) -> None:
    kinds = [kind for name, kind in inspect.getmembers(params, inspect.isclass) if "CreateParams" in name]
    names = {field for kind in kinds for field in getattr(kind, "__annotations__", {})}
    assert {"model", "temperature", "stream"} <= names
    assert names - set(TAKEN[path]) == set()
    assert names - set(request_type.model_fields) - set(NEUTRAL) == set()
    assert get_type_hints(request_type)


CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("asked", "status", "code", "param"),
    [
        ({"max_tokens": 400}, 400, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": 400, "prompt": [5] * 320}, 400, "context_length_exceeded", "prompt"),
        ({**CHAT, "max_tokens": 400}, 400, "context_length_exceeded", "max_tokens"),
        (
            {**CHAT, "max_tokens": None, "max_completion_tokens": 400},
            400,
            "context_length_exceeded",
            "max_completion_tokens",
        ),
        ({"prompt": [5] * 321}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": "a" * 321}, 400, "context_length_exceeded", "prompt"),
        ({"messages": [{"role": "user", "content": "a" * 321}]}, 400, "context_length_exceeded", "messages"),
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"suffix": "a"}, 400, "unsupported_parameter", "suffix"),
        ({"sufix": "a"}, 400, "unknown_parameter", "sufix"),
        ({"temperature": "1"}, 400, "invalid_type", "temperature"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"prompt": 3}, 400, "invalid_type", "prompt"),
        ({"messages": None}, 400, "invalid_type", "messages"),
    ],
    ids=str,
)
def test_codes_and_params(live: Live, asked: dict[str, Any], status: int, code: str, param: str) -> None:
    path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
    answer = post(live, path, {**least(path), **asked})
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_missing_fields_are_named(live: Live) -> None:
    for path, name in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")):
        error = error_of(post(live, path, {"max_tokens": 1}))
        assert (error["code"], error["param"]) == ("missing_required_parameter", name)


def test_a_bias_is_obeyed(live: Live) -> None:
    asked = {"prompt": "a", "max_tokens": 5, "temperature": 0, "logit_bias": {"9": 100}}
    answer = post(live, "/v1/completions", {**asked, "logprobs": 0}).json()
    assert live.model.tokenizer is not None
    assert len(set(answer["choices"][0]["logprobs"]["tokens"])) == 1
    assert answer["choices"][0]["text"] == live.model.tokenizer.decode([9] * 5)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods(live: Live, method: str) -> None:
    with live.client() as client:
        for path in ("/health", "/", "/v1/models", "/metrics"):
            answer = client.request(method, path)
            assert answer.status_code == (200 if method == "HEAD" else 405)
            assert answer.content == b"" if method == "HEAD" else error_of(answer)
            assert answer.headers.get("allow") == (None if method == "HEAD" else "GET, HEAD")
        assert client.get("/v1/chat/completions").headers["allow"] == "POST"


def test_tokens_there_and_back(live: Live) -> None:
    tokenizer = live.model.tokenizer
    assert tokenizer is not None
    found = post(live, "/tokenize", {"model": "tiny", "prompt": "é list", "return_token_strs": True}).json()
    assert found["tokens"] == tokenizer.encode("é list")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), live.model.max_seq_len)
    assert found["token_strs"][0] == "<s>"
    bare = post(live, "/tokenize", {"prompt": "é list", "add_special_tokens": False}).json()
    assert bare["tokens"] == found["tokens"][1:]
    named = post(live, "/tokenize", {"prompt": "<s>é", "add_special_tokens": False}).json()
    assert named["tokens"] == tokenizer.encode("é")
    assert post(live, "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "<s>é list"}
    without = post(live, "/tokenize", {"messages": MESSAGES["a user"][0], "add_generation_prompt": False}).json()
    assert without["tokens"] == tokenizer.encode("<s>[user]a")


@pytest.mark.parametrize(
    ("path", "asked", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "b"}, 404, "model"),
        ("/tokenize", {"prompt": "a" * 100_000}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "x": 1}, 400, "x"),
        ("/detokenize", {"tokens": [300]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1] * 321}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {}, 400, "tokens"),
    ],
    ids=str,
)
def test_tokens_that_are_refused(live: Live, path: str, asked: dict[str, Any], status: int, param: str) -> None:
    answer = post(live, path, asked)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param), json.dumps(answer.json())


WITH_VARIABLES = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ call.function.arguments.x }}{% endfor %}"
    "{{ m.content or '-' }}{% endfor %}{{ reasoning_effort }}{{ enable_thinking }}"
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "a"),
        ({"reasoning_effort": "low"}, "alow"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "aFalse"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": 1}}, "alow1"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "1-"),
    ],
    ids=str,
)
def test_what_reaches_the_template(live: Live, asked: dict[str, Any], expected: str) -> None:
    assert live.model.tokenizer is not None
    tokenizer = dataclasses.replace(live.model.tokenizer, chat_templates={"default": WITH_VARIABLES})
    model = dataclasses.replace(live.model, tokenizer=tokenizer)
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}], **asked})
    assert chat_token_ids(model, request) == tokenizer.encode(expected)


def test_variables_that_the_template_has_already(live: Live) -> None:
    asked = {**least("/v1/chat/completions"), "chat_template_kwargs": {"messages": []}}
    answer = post(live, "/v1/chat/completions", asked)
    assert answer.status_code == 400
    says(error_of(answer)["message"], "'messages'")


def test_embeddings_are_refused_by_name(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unsupported_endpoint"
    says(answer.json()["error"]["message"], "/v1/embeddings", "/v1/completions", "/v1/chat/completions")
