"""Serves the files of the page. They hold nothing of any job, so that they need no token."""

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from inference_service.gateway.problems import HttpCode, problem

_WEB = Path(__file__).parent / "web"
_LIBRARIES = _WEB / "vendor"
_FILES = StaticFiles(directory=_WEB)
_METHODS = ["GET", "HEAD"]
# Everything comes from here; the viewer makes pictures (blob:) and has a font in its code (data:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A browser asks for each file again each time, by its ETag.
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=_METHODS)
def page() -> Response:
    """Serves the page's document."""
    if not _LIBRARIES.is_dir():
        return problem(
            HTTPStatus.NOT_FOUND, HttpCode.NOT_FOUND, "the service was installed without its page (WITHOUT_PAGE)"
        )
    return Response((_WEB / "index.html").read_bytes(), headers=_HEADERS, media_type="text/html")


@router.api_route("/page/{path:path}", methods=_METHODS)
async def page_file(path: str, request: Request) -> Response:
    """Serves a file that the document names."""
    response = await _FILES.get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response
