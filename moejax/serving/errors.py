"""Errors in OpenAI's JSON shape, which its clients turn into their exceptions by the HTTP status."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


class ApiError(Exception):
    """An answer that is an error: HTTP status, message, the request's field that is wrong, if one is, more headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients expect."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        headers = _HEADERS.get(self.status, {}) | self.headers
        return json_response(self.body(), status=self.status, headers=headers)


def too_long(got: str, most: int, *, param: str, advice: str = "shorten it") -> ApiError:
    """The error for a request that the model's context does not hold, which clients know by its code."""
    message = f"this model's maximum context length is {most} tokens (max_seq_len), but the request has {got}"
    return ApiError(400, f"{message}: {advice}", param=param, code="context_length_exceeded")


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON. Lone surrogates, which a request may hold and an error message may quote, become "?"."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of JSON."""
    return Response(json_bytes(value), status_code=status, headers=headers, media_type="application/json")
