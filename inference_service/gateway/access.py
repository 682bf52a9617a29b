"""Finds the caller of a request by its bearer token or its browser's session, and checks role and limits.

While the database has no token, the gateway listens to its own machine alone, and everyone there may do everything.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from threading import Lock
from urllib.parse import SplitResult, urlsplit

from fastapi import Request

from inference_service.gateway.problems import HttpCode, Refusal
from inference_service.jobs.gateway.tokens import Limits, Token, TokenRole
from inference_service.jobs.job_store import Job

COOKIE = "inference_session"
"""The cookie by which a browser's session carries a token."""
LOCAL_NAME = "local"
"""The name of jobs that are submitted without a token."""
_RANKS = {TokenRole.READ: 0, TokenRole.SUBMIT: 1, TokenRole.ADMIN: 2}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
# A token may use the requests of this many seconds at once.
_BURST_S = 5.0
_MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: The upstream in whose name jobs are submitted.
        role: What it may do.
        limits: How much of it.
    """

    name: str
    role: TokenRole
    limits: Limits

    @property
    def is_admin(self) -> bool:
        """True if the caller may see what belongs to others."""
        return self.role is TokenRole.ADMIN

    @property
    def visible_name(self) -> str | None:
        """The name whose jobs the caller sees; None: all jobs."""
        return None if self.is_admin else self.name

    def may_see(self, job: Job) -> bool:
        """Returns True if the caller may see the job and its results."""
        return self.is_admin or job.submitted_by == self.name

    def require(self, role: TokenRole) -> None:
        """Checks that the caller's role is this one or a higher one.

        Raises:
            Refusal: It is not.
        """
        if _RANKS[self.role] < _RANKS[role]:
            raise Refusal(HttpCode.FORBIDDEN, f"the token has the role {self.role}; this needs the role {role}")


LOCAL_CALLER = Caller(LOCAL_NAME, TokenRole.ADMIN, Limits())


class RateLimit:
    """Limits the requests a second of each token by a bucket that fills evenly. Safe for use by several threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, token: Token) -> None:
        """Counts a request.

        Raises:
            Refusal: The token has made too many.
        """
        rate = token.limits.requests_per_s
        if rate is None:
            return
        capacity = max(1.0, rate * _BURST_S)
        now = self._now()
        with self._lock:
            left, at = self._buckets.pop(key := str(token.id), (capacity, now))
            left = min(capacity, left + (now - at) * rate)
            allowed = left >= 1
            self._buckets[key] = (left - 1 if allowed else left, now)
            if len(self._buckets) > _MAX_BUCKETS:
                self._buckets.popitem(last=False)
        if not allowed:
            wait_s = str(ceil((1 - left) / rate))
            raise Refusal(
                HttpCode.TOO_MANY_REQUESTS, f"this token may make {rate:g} requests a second", {"Retry-After": wait_s}
            )


class Access:
    """Finds the caller of a request.

    Args:
        find_token: Returns the token with a secret, or None.
        local: Whether requests need no token, as there is none and only this machine can ask.
    """

    def __init__(self, find_token: Callable[[str], Token | None], *, local: bool) -> None:
        self._find_token = find_token
        self._local = local
        self._rate = RateLimit()

    @property
    def needs_token(self) -> bool:
        """True if a request must have a token."""
        return not self._local

    def caller(self, request: Request) -> Caller:
        """Returns the caller.

        Raises:
            Refusal: The request has no valid token, comes from a page of another site, or is one too many.
        """
        if self._local:
            _require_local(request)
        bearer = self.bearer(request)
        secret = self._secret(request)
        # A browser sends a cookie, and reaches this machine, on behalf of any page.
        if bearer is None and request.method not in _SAFE_METHODS:
            _require_same_origin(request)
        if secret is None:
            if self._local:
                return LOCAL_CALLER
            raise _unauthenticated("this request needs a token: `Authorization: Bearer …`")
        token = self._find_token(secret)
        if token is None:
            raise _unauthenticated("the token is unknown or was removed")
        self._rate.take(token)
        return Caller(token.name, token.role, token.limits)

    def is_valid(self, request: Request) -> bool:
        """Returns True if the token of an earlier request may still be used."""
        secret = self._secret(request)
        return self._local if secret is None else self._find_token(secret) is not None

    def _secret(self, request: Request) -> str | None:
        bearer = self.bearer(request)
        # Of an earlier session, when there were tokens, a browser may still have the cookie.
        return bearer if self._local else bearer or request.cookies.get(COOKIE)

    @staticmethod
    def bearer(request: Request) -> str | None:
        """Returns the secret in the request's header; None where there is no such header.

        Raises:
            Refusal: The header has no secret.
        """
        header = request.headers.get("Authorization")
        if header is None:
            return None
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unauthenticated("expected `Authorization: Bearer` and a token")
        return secret.strip()


def _unauthenticated(message: str) -> Refusal:
    return Refusal(HttpCode.UNAUTHENTICATED, message, {"WWW-Authenticate": "Bearer"})


def _require_local(request: Request) -> None:
    """Refuses a name that another site has pointed at this machine (DNS rebinding)."""
    host = _split(f"//{request.headers.get('Host', '')}")
    if host is None or host.hostname not in _LOCAL_HOSTS:
        raise Refusal(HttpCode.FORBIDDEN, "without tokens, the gateway answers to localhost and 127.0.0.1 alone")


def _require_same_origin(request: Request) -> None:
    """Refuses what a browser sends for a page of another site, whichever of the two headers it has."""
    origin = request.headers.get("Origin")
    if origin is None:
        same = request.headers.get("Sec-Fetch-Site", "none") in {"none", "same-origin"}
    else:
        same = (parts := _split(origin)) is not None and parts.netloc == request.headers.get("Host")
    if not same:
        raise Refusal(HttpCode.FORBIDDEN, "this request comes from a page of another site")


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None
