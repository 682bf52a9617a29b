"""REDIS_URL: the URL of a Redis server, or those of the sentinels that know the primary of a group."""

from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, AnyUrl, RedisDsn, UrlConstraints, ValidationError

_TLS_SCHEMES = ("rediss:", "sentinels:")
_SENTINEL_SCHEMES = ("sentinel:", "sentinels:")


class _SentinelDsn(AnyUrl):
    _constraints = UrlConstraints(allowed_schemes=["sentinel", "sentinels"], default_port=26379)


def _normalised(text: str) -> str:
    try:
        return _sentinels(text) if text.startswith(_SENTINEL_SCHEMES) else str(RedisDsn(text))
    except ValidationError as error:
        # Its text quotes the URL, which may contain a password.
        raise ValueError(f"not a URL of Redis or of sentinels: {error.errors()[0]['msg']}") from None


def _sentinels(text: str) -> str:
    """Gives the URL of every sentinel the user, password and database that one of them states."""
    parts = [urlsplit(str(_SentinelDsn(url))) for url in text.split(";")]
    schemes = {part.scheme for part in parts}
    logins = {part.netloc.rpartition("@")[0] for part in parts} - {""}
    paths = {part.path for part in parts} - {"", "/"}
    if max(len(schemes), len(logins), len(paths)) > 1 or any(part.query or part.fragment for part in parts):
        raise ValueError("the URLs of sentinels differ in scheme, user, password or database, or have a query")
    login = "".join(f"{login}@" for login in logins)
    path = "".join(paths) or "/0"
    return ";".join(f"{part.scheme}://{login}{part.netloc.rpartition('@')[2]}{path}" for part in parts)


RedisUrl = Annotated[str, AfterValidator(_normalised)]
"""One URL with the scheme `redis` or `rediss`, or one for each sentinel, `sentinel` or `sentinels`, joined by `;`."""


def uses_tls(url: RedisUrl) -> bool:
    """Returns True if connections to Redis, and to the sentinels, use TLS."""
    return url.startswith(_TLS_SCHEMES)


def broker_url(url: RedisUrl, password: str | None) -> str:
    """Returns the URL for Celery, which has no scheme for sentinels with TLS.

    Args:
        url: The URL.
        password: The password that replaces the one in the URL; None keeps that one.

    >>> broker_url("sentinels://worker@a:26379/0;sentinels://worker@b:26379/0", "pw")
    'sentinel://worker:pw@a:26379/0;sentinel://worker:pw@b:26379/0'
    """
    urls = url.split(";") if url.startswith(_SENTINEL_SCHEMES) else [url]
    return ";".join(_with_password(each.replace("sentinels:", "sentinel:", 1), password) for each in urls)


def _with_password(url: str, password: str | None) -> str:
    if password is None:
        return url
    parts = urlsplit(url)
    user, _, server = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{server}").geturl()
