"""`/tokenize` and `/detokenize`, as vLLM has them: what a text's tokens are, without generating any."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from moejax.loading import Model
from moejax.serving.bodies import read_body
from moejax.serving.chat_messages import messages_of
from moejax.serving.documents import documented
from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError, json_response
from moejax.serving.openai_api import check_model
from moejax.serving.prepare import check_characters, checked
from moejax.serving.tokens_requests import DetokenizeRequest, TokenizeRequest
from moejax.text.chat import encode_chat
from moejax.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/tokenize", **documented(400, 404, 415, 503, body=TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """The tokens of a text or of a chat."""
    body = await read_body(request, TokenizeRequest)
    check_model(request, body.model)
    engine: Engine = request.app.state.engine
    return json_response(await asyncio.to_thread(_tokens, engine.model, body))


@router.post("/detokenize", **documented(400, 404, 415, 503, body=DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    body = await read_body(request, DetokenizeRequest)
    check_model(request, body.model)
    engine: Engine = request.app.state.engine
    model = engine.model
    text = await asyncio.to_thread(_text, model, body.tokens)
    return json_response({"prompt": text})


def _tokens(model: Model, body: TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt", code="missing_required_parameter")
    tokenizer = _tokenizer(model)
    if body.messages is not None:
        messages = messages_of(body.messages, tokenizer.chat_template or "")
        check_characters(model, sum(len(message.get("content", "")) for message in messages), param="messages")
        ids = checked(
            lambda: encode_chat(
                tokenizer,
                messages,
                add_generation_prompt=body.add_generation_prompt,
                template_kwargs=body.chat_template_kwargs,
            ),
            param="messages",
        )
    else:
        text = body.prompt or ""
        check_characters(model, len(text), param="prompt")
        ids = checked(lambda: tokenizer.encode(text), param="prompt")
        if not body.add_special_tokens and not text.startswith(tokenizer.bos_token or "\0"):
            ids = ids[1:] if tokenizer.adds_bos else ids
    return {
        "count": len(ids),
        "max_model_len": model.max_seq_len,
        "tokens": ids,
        "token_strs": list(map(tokenizer.token_text, ids)) if body.return_token_strs else None,
    }


def _text(model: Model, ids: list[int]) -> str:
    vocabulary = model.config.vocab_size
    if wrong := [token for token in ids if not 0 <= token < vocabulary]:
        message = f"token id {wrong[0]} is out of range, this model's ids are 0 to {vocabulary - 1}"
        raise ApiError(400, message, param="tokens", code="invalid_value")
    return _tokenizer(model).decode(ids, skip_special_tokens=False)


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise ApiError(400, f"there is no tokenizer: {model.no_tokenizer_reason}")
    return model.tokenizer
