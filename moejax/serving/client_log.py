"""What is logged of connections and requests: lines in words of ours."""

import logging
import sys
from collections.abc import Callable

# How uvicorn's lines about a client's mistake begin, and how that reads for whoever runs the server; "" is left out.
_WORDS = {
    "Invalid HTTP request": "a client sent what is no HTTP request; does its URL begin with https://, not http://?",
    "Unsupported upgrade": "a client asked for a WebSocket or HTTP/2 and was answered in HTTP/1.1, all there is",
    "No supported WebSocket library": "",
}


class LineHandler(logging.Handler):
    """Says what uvicorn logs: in words of ours, one line each, and an exception with its traceback."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            sys.stderr.write(f"{self.format(record)}\n")
        else:
            message = record.getMessage()
            ours = next((words for beginning, words in _WORDS.items() if message.startswith(beginning)), message)
            if ours:
                self._say(ours)


def log_to(say: Callable[[str], None], *, requests: bool) -> None:
    """Hands uvicorn's warnings, and with `requests` a line for every request, to `say`."""
    for name, level in (("uvicorn.error", logging.WARNING), ("uvicorn.access", logging.INFO)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [LineHandler(say)] if requests or name != "uvicorn.access" else []


def log_nothing() -> None:
    """For an end at once: all that uvicorn has to log then are the tracebacks of what it cancels."""
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = [logging.NullHandler()]
