"""A proxy that enforces an S3 policy, because the embedded S3 server has no users and no policies.

It knows the part of the policy language that `deploy/identities` uses, and the requests that the service sends. It
passes requests on unchanged, so that their signatures stay valid.
"""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKETS = {"INPUT_BUCKET": "volumes", "OUTPUT_BUCKET": "masks", "MODELS_BUCKET": "models"}
_OBJECT_ACTIONS = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_BUCKET_ACTIONS = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket"}
_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


@dataclass(frozen=True)
class Need:
    """A right that a request needs."""

    action: str
    resource: str


class Policy:
    """A policy document that only allows.

    Args:
        path: The document, with placeholders for the buckets.
    """

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for placeholder, bucket in BUCKETS.items():
            text = text.replace(placeholder, bucket)
        document = json.loads(text)
        assert set(document) == {"Version", "Statement"}
        for statement in document["Statement"]:
            assert set(statement) == {"Effect", "Action", "Resource"}
            assert statement["Effect"] == "Allow"
        self._statements: Sequence[Mapping[str, Any]] = document["Statement"]

    def allows(self, need: Need) -> bool:
        """Returns True if a statement covers the action and the resource."""
        return any(
            any(fnmatchcase(need.action, action) for action in statement["Action"])
            and any(fnmatchcase(need.resource, resource) for resource in statement["Resource"])
            for statement in self._statements
        )


def needs(method: str, target: str, headers: Mapping[str, str]) -> list[Need]:
    """The rights that S3 asks for a request.

    Raises:
        NotImplementedError: The service is not known to send such a request.
    """
    url = urlsplit(target)
    bucket, _, key = unquote(url.path).removeprefix("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    if method == "POST" and key and query.keys() & {"uploads", "uploadId"}:
        action = "PutObject"
    elif method == "DELETE" and "uploadId" in query:
        action = "AbortMultipartUpload"
    elif bucket and method in (known := _OBJECT_ACTIONS if key else _BUCKET_ACTIONS):
        action = known[method]
    else:
        raise NotImplementedError(f"{method} {target}")
    source = unquote(headers.get("x-amz-copy-source", "")).removeprefix("/")
    copied = [Need("s3:GetObject", f"arn:aws:s3:::{source}")] if source else []
    return [Need(f"s3:{action}", resource), *copied]


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, policy: Policy, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy = policy
        self.storage_port = port


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_request(self) -> None:
        """Passes an allowed request on, and refuses every other one as S3 does."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            wanted = needs(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        except NotImplementedError:
            self._answer(501, {}, b"")
            return
        if all(self.server.policy.allows(need) for need in wanted):
            self._pass_on(body)
        else:
            self._answer(403, {"Content-Type": "application/xml"}, _REFUSAL)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""

    def _pass_on(self, body: bytes) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.storage_port, timeout=60)) as storage:
            storage.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                storage.putheader(name, value)
            storage.endheaders(body)
            answer = storage.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        known = {name.lower(): value for name, value in headers.items()}
        length = known.pop("content-length", "0") if self.command == "HEAD" else str(len(body))
        self.send_response_only(status)
        for name, value in {**known, "content-length": length}.items():
            if name not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def enforcing(policy: Policy, *, port: int) -> Iterator[int]:
    """Runs a proxy to the S3 server on a port, and yields the proxy's own port."""
    with _Proxy(policy, port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy.server_port
        finally:
            proxy.shutdown()
            thread.join()
