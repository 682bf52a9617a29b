"""Errors as HTTP answers: problem details of RFC 9457 with the error code of the service.

The text of an answer is the public sentence of the error, which quotes nothing that the caller has sent.
"""

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from inference_service.core.errors import ErrorCode, PermanentError, ServiceError, TransientError
from inference_service.core.remedies import REMEDIES

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_S = 5


class HttpCode(StrEnum):
    """Codes of refusals that only HTTP knows, beside those of `ErrorCode`; they are part of the contract."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    TOO_MANY_REQUESTS = "too_many_requests"
    TOO_SLOW = "too_slow"


HTTP_REMEDIES: Mapping[HttpCode, str] = {
    HttpCode.UNAUTHENTICATED: "Send a valid token; the operator makes tokens with inference-service tokens add.",
    HttpCode.FORBIDDEN: "Use a token with a higher role, and the gateway's own address.",
    HttpCode.NOT_FOUND: "Check the path and the id, and whether the token may see the job.",
    HttpCode.METHOD_NOT_ALLOWED: "Use one of the methods in the header Allow.",
    HttpCode.CONFLICT: "Use another id, or send the same request again under this one.",
    HttpCode.BODY_TOO_LARGE: "Shorten the request, and send a scan as the files of a form.",
    HttpCode.UNSUPPORTED_MEDIA_TYPE: "Send JSON, or a form with the files of the scan.",
    HttpCode.RANGE_NOT_SATISFIABLE: "Ask for a range within the size that the header Content-Range states.",
    HttpCode.TOO_MANY_REQUESTS: "Wait as the message or the header Retry-After says, and send the request again.",
    HttpCode.TOO_SLOW: "Send the request again over a connection without long pauses.",
}
"""The remedy for each of them, in a sentence for the caller."""
_STATUS: Mapping[HttpCode, HTTPStatus] = {
    HttpCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    HttpCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    HttpCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    HttpCode.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    HttpCode.CONFLICT: HTTPStatus.CONFLICT,
    HttpCode.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HttpCode.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HttpCode.RANGE_NOT_SATISFIABLE: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    HttpCode.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    HttpCode.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
}
# Errors of the service whose status is not that of their class.
_STATUS_OF_ERROR = {
    ErrorCode.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.INPUT_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.INPUT_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class Problem(BaseModel):
    """Problem details of RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:inference-service:error:bad_request",
                "title": "Bad Request",
                "status": 400,
                "detail": "request.model: Field required",
                "code": "bad_request",
                "remedy": "Correct the request as the message says, and submit it again.",
            }
        }
    )

    type: str = Field(description="URN that ends in the code.")
    title: str = Field(description="The phrase of the status.")
    status: int
    detail: str = Field(description="A sentence for people.")
    code: str = Field(description="The error code, which is stable.")
    remedy: str = Field(description="What to do about it, in a sentence for people.")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, description in (("4XX", "The request is refused."), ("5XX", "A server does not answer, or an error."))
}
"""The answers of every call that are errors, for the description of the API."""


class Refusal(Exception):
    """A request that is refused for a reason of HTTP: no token, no such job, a body that is too large.

    Attributes:
        code: The reason.
        message: The public sentence.
        headers: Further headers of the answer.
    """

    def __init__(self, code: HttpCode, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    @property
    def status(self) -> HTTPStatus:
        """The status of the answer."""
        return _STATUS[self.code]

    @classmethod
    def no_job(cls) -> Self:
        """The refusal for a job that does not exist, or that the caller may not see."""
        return cls(
            HttpCode.NOT_FOUND,
            "there is no such job, it was removed after its retention, or it belongs to another upstream",
        )


def status_of(error: ServiceError) -> HTTPStatus:
    """Returns the status of the answer for an error of the service."""
    if (status := _STATUS_OF_ERROR.get(error.code)) is not None:
        return status
    if isinstance(error, TransientError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.UNPROCESSABLE_ENTITY if isinstance(error, PermanentError) else HTTPStatus.INTERNAL_SERVER_ERROR


def problem(
    status: HTTPStatus, code: ErrorCode | HttpCode, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Returns an answer with problem details."""
    content = Problem(
        type=f"urn:inference-service:error:{code}",
        title=status.phrase,
        status=status,
        detail=detail,
        code=code,
        remedy=HTTP_REMEDIES[code] if isinstance(code, HttpCode) else REMEDIES[code],
    )
    return JSONResponse(content.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def problem_of_error(error: ServiceError) -> JSONResponse:
    """Returns the answer for an error of the service; a passing one asks to come again."""
    status = status_of(error)
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return problem(status, error.code, error.message, headers)
