"""What can go wrong with a request that was taken, and the answers to it."""

from moejax.decoding.failures import NonFiniteLogitsError
from moejax.serving.errors import ApiError
from moejax.serving.jobs import EngineError, RequestFailed

FAILURES = (EngineError, RequestFailed, NonFiniteLogitsError)


def error_of(failure: EngineError | RequestFailed | NonFiniteLogitsError) -> ApiError:
    """The error that a client gets: 503 where nothing can be answered, 500 where only this cannot."""
    if isinstance(failure, EngineError):
        return ApiError(503, str(failure))
    return ApiError(500, str(failure), code="request_failed")
