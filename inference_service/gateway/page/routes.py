"""Serves the files of the page. They hold nothing of any job, so that they need no token."""

from http import HTTPStatus
from pathlib import Path

from fastapi import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from inference_service.gateway.problems import HttpCode, problem

_WEB = Path(__file__).parent / "web"
_LIBRARIES = _WEB / "vendor"
# Everything comes from here; the viewer makes pictures (blob:) and has a font in its code (data:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}


class _PageFiles(StaticFiles):
    """The files, with the headers of the page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Returns a file, which a browser asks for again each time, by its ETag."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def _index(_request: object) -> Response:
    if not _LIBRARIES.is_dir():
        return problem(
            HTTPStatus.NOT_FOUND, HttpCode.NOT_FOUND, "the service was installed without its page (WITHOUT_PAGE)"
        )
    return Response((_WEB / "index.html").read_bytes(), headers=_HEADERS, media_type="text/html")


def page_routes() -> list[BaseRoute]:
    """Returns the routes of the page."""
    return [
        Route("/", _index, methods=["GET"], name="page"),
        Mount("/page", _PageFiles(directory=_WEB), name="page-files"),
    ]
