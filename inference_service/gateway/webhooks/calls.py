"""Calls of webhooks: signed as the specification of Standard Webhooks says, and to permitted addresses alone."""

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import uuid5

import anyio
import httpx

from inference_service.core.errors import BadRequest
from inference_service.gateway.views import JobView
from inference_service.jobs.gateway.webhooks import DueWebhook
from inference_service.jobs.job_store import Job

_PORTS = {"http": 80, "https": 443}
# Less than the time for which a webhook is taken.
_LIMIT_S = 30.0
_GONE = 410
# Networks whose addresses end in an IPv4 address: mapped, translated by NAT64, and the former compatible ones.
_EMBEDDING = [ipaddress.IPv6Network(each) for each in ("::ffff:0:0/96", "64:ff9b::/96", "::/96")]
_LOCAL_TRANSLATION = ipaddress.IPv6Network("64:ff9b:1::/48")
_MAX_URL_LENGTH = 2000


@dataclass(frozen=True)
class WebhookSettings:
    """What calls of webhooks need.

    Attributes:
        secret: The key of the signatures.
        private_addresses: Whether a URL may lead to another address than a public one.
    """

    secret: bytes = field(repr=False)
    private_addresses: bool


class CallFailed(Exception):
    """The receiver did not take the call. The text is public.

    Attributes:
        final: Whether it will not take a later one either.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def check_url(url: str, prefixes: Sequence[str]) -> None:
    """Checks that a URL may be called: it lies below one of the permitted prefixes, and cannot lead out of it.

    Raises:
        BadRequest: It does not.
    """
    try:
        parts = urlsplit(url)
        permitted = len(url) <= _MAX_URL_LENGTH and url.isprintable() and url.isascii() and " " not in url
        permitted = permitted and parts.username is None and not parts.fragment and "\\" not in url
        permitted = permitted and not {".", ".."} & set(unquote(unquote(parts.path)).split("/"))
        permitted = permitted and any(_below(parts, urlsplit(prefix)) for prefix in prefixes)
    except ValueError:
        permitted = False
    if not permitted:
        raise BadRequest("webhook: expected a URL below one of WEBHOOK_PREFIXES")


def _below(url: SplitResult, prefix: SplitResult) -> bool:
    folder = prefix.path.rstrip("/")
    return (
        url.scheme == prefix.scheme
        and url.scheme in _PORTS
        and url.hostname == prefix.hostname
        and (url.port or _PORTS[url.scheme]) == (prefix.port or _PORTS[prefix.scheme])
        and (url.path == folder or url.path.startswith(f"{folder}/"))
    )


async def call(client: httpx.AsyncClient, webhook: DueWebhook, job: Job, settings: WebhookSettings) -> None:
    """Reports the end of a job.

    Args:
        client: Follows no redirects.
        webhook: The end and the URL.
        job: The job's row.
        settings: The key of the signature, and which addresses are permitted.

    Raises:
        CallFailed: The receiver does not answer in time, its status is not 2xx, or its address is not permitted.
    """
    url = _url(webhook)
    content = {
        "type": f"job.{job.state}",
        "timestamp": webhook.end.isoformat(),
        "data": JobView.model_validate(job).model_dump(mode="json"),
    }
    body = json.dumps(content).encode()
    headers = {
        "Host": url.netloc.decode(),
        "Content-Type": "application/json",
        **_signature(webhook, body, settings.secret),
    }
    try:
        with anyio.fail_after(_LIMIT_S):
            address = await _address(url, private_addresses=settings.private_addresses)
            # The connection goes to the address that was checked: the name may lead elsewhere by now.
            async with client.stream(
                "POST",
                url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": url.host},
            ) as answer:
                status = answer.status_code
    except TimeoutError:
        raise CallFailed(f"the receiver has not answered within {_LIMIT_S:g} s") from None
    except httpx.HTTPError as error:
        raise CallFailed(f"the receiver does not answer ({type(error).__name__})") from error
    if not 200 <= status < 300:
        raise CallFailed(f"the receiver answered with status {status}", final=status == _GONE)


def _url(webhook: DueWebhook) -> httpx.URL:
    try:
        return httpx.URL(webhook.url)
    except httpx.InvalidURL as error:
        raise CallFailed("the URL is not valid", final=True) from error


async def _address(url: httpx.URL, *, private_addresses: bool) -> str:
    """Resolves the name of a URL to the address to call."""
    try:
        found = [str(each[4][0]) for each in await anyio.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise CallFailed("the name of the receiver has no address") from error
    if not private_addresses and not all(map(_is_public, found)):
        raise CallFailed("the receiver has an address that is not public; see WEBHOOK_PRIVATE_ADDRESSES")
    return found[0]


def _is_public(address: str) -> bool:
    """Returns True for an address of the internet.

    >>> [_is_public(each) for each in ("93.184.215.14", "10.0.0.1", "::ffff:127.0.0.1", "169.254.169.254")]
    [True, False, False, False]
    >>> [_is_public(each) for each in ("64:ff9b::5db8:d70e", "64:ff9b::a00:1", "2002:a00:1::", "::10.0.0.1")]
    [True, False, False, False]
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = _embedded(parsed)
        if embedded is not None:
            return _is_public(str(embedded))
    return parsed.is_global and not parsed.is_multicast and parsed not in _LOCAL_TRANSLATION


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which a mapped, translated or tunnelled address may lead."""
    if any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _signature(webhook: DueWebhook, body: bytes, secret: bytes) -> dict[str, str]:
    """The headers by which a receiver knows the sender, the end that is reported, and how old the call is."""
    identity = str(uuid5(webhook.job_id, webhook.end.isoformat()))
    timestamp = str(int(time.time()))
    signed = b".".join((identity.encode(), timestamp.encode(), body))
    digest = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    return {"webhook-id": identity, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{digest}"}
