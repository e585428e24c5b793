"""What the page needs to know of the server."""

import jax
from fastapi import Request, Response

from moejax.families.table import parameters_of
from moejax.serving.engine import Engine
from moejax.serving.errors import json_response
from moejax.serving.settings import AppSettings


async def info(request: Request) -> Response:
    """The model, its sizes and its limits."""
    engine: Engine = request.app.state.engine
    settings: AppSettings = request.app.state.settings
    model = engine.model
    return json_response(
        {
            "model": settings.model_name,
            "about": settings.about,
            "parameters": parameters_of(model.config).total,
            "num_layers": model.config.num_layers,
            "num_experts": model.config.num_experts,
            "experts_per_token": model.config.experts_per_token,
            "max_seq_len": model.max_seq_len,
            "max_batch": engine.settings.max_batch,
            "dtype": model.dtype,
            "platform": jax.default_backend(),
            "mesh": str(model.mesh),
            "has_chat": model.tokenizer is not None and model.tokenizer.chat_template is not None,
            "baseline": settings.baseline.facts(),
            "api_key_required": settings.api_key is not None,
        }
    )
