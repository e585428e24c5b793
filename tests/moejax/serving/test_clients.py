"""Programs that people point at OpenAI's API chat with the server through their own interfaces."""

import asyncio
from typing import Any

import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from smolagents import ChatMessage, MessageRole, OpenAIModel

import moejax
from moejax.text.chat import encode_chat
from tests.moejax.serving.live import WAIT_SECONDS, Live

SYSTEM = "Say something."
TOKENS = 8


def test_pydantic_ai(live: Live) -> None:
    async def ask() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=WAIT_SECONDS) as client:
            asked = OpenAIChatModel("tiny", provider=OpenAIProvider(openai_client=client))
            settings: Any = {"max_tokens": TOKENS, "temperature": 0}
            agent = Agent(asked, instructions=SYSTEM, model_settings=settings)
            first = await agent.run("A list is")
            return first, await agent.run("And a tuple", message_history=first.all_messages())

    first, second = asyncio.run(ask())
    assert first.output == answer_to(live, [SYSTEM, "A list is"])
    assert first.usage.output_tokens == TOKENS
    assert second.output == answer_to(live, [SYSTEM, "A list is", first.output, "And a tuple"])


def test_smolagents(live: Live) -> None:
    asked = OpenAIModel("tiny", api_base=f"{live.url}/v1", api_key="none", max_tokens=TOKENS, temperature=0)
    messages: Any = [
        ChatMessage(role=role, content=[{"type": "text", "text": text}])
        for role, text in ((MessageRole.SYSTEM, SYSTEM), (MessageRole.USER, "A list is"))
    ]
    expected = answer_to(live, [SYSTEM, "A list is"])
    with asked.client:
        assert asked.generate(messages).content == expected
        assert "".join(delta.content or "" for delta in asked.generate_stream(messages)) == expected


def answer_to(live: Live, texts: list[str]) -> str:
    """What the model answers to a system's message, a user's, an assistant's, and so on."""
    tokenizer = live.model.tokenizer
    assert tokenizer is not None
    roles = ["system", *["user", "assistant"] * len(texts)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return moejax.decode(live.model, encode_chat(tokenizer, messages), max_tokens=TOKENS)[0].text
