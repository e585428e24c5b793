"""The page at `/` and its files at `/page/`: read once, sent as they are, and nothing else from that folder."""

from pathlib import Path

from fastapi import APIRouter, Response

from moejax.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing is loaded from anywhere else, no text of a model can become a script, and no other page can frame this one.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)
_HEADERS = {
    "Cache-Control": "no-cache",  # a newer moejax may be at the same address tomorrow
    "Content-Security-Policy": "; ".join(_POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The page."""
    return await page_file("index.html")


@router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """One of the page's files."""
    if name not in _FILES:
        raise ApiError(404, f"the page has no file {name[:80]!r}")
    return Response(_FILES[name], media_type=_TYPES[Path(name).suffix], headers=_HEADERS)
