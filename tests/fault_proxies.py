"""TCP proxies between the service and its servers. They hold and repeat single requests, and delay and cut answers."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
# Longer than any step of a test.
LIMIT_S = 120.0
_CHUNK_BYTES = 65536


@dataclass(frozen=True)
class HttpRequest:
    """One request to the object storage.

    Attributes:
        method: The method.
        path: Bucket and key, with the query.
        headers: The headers as the client has signed them.
        body: The content.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def is_for(self, method: str, ending: str) -> bool:
        """Returns True if the method is this one and the key has this ending."""
        return self.method == method and self.path.partition("?")[0].endswith(ending)


@dataclass(frozen=True)
class HttpAnswer:
    """The answer to a request."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass
class HeldRequest:
    """A request that is kept back, so that it reaches the storage after later ones.

    Attributes:
        matches: Chooses the request; the first one that it accepts is held.
        arrived: Set when the proxy has the request.
        released: Set to let it pass.
        answered: Set when the storage has answered.
    """

    matches: Callable[[HttpRequest], bool]
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    def wait_until_arrived(self) -> None:
        """Waits until a client has sent the request."""
        assert self.arrived.wait(LIMIT_S), "the request to hold was not sent"

    def release(self) -> None:
        """Passes the request on, and waits until the storage has answered. Its client may be gone."""
        self.released.set()
        assert self.answered.wait(LIMIT_S), "the storage has not answered"


class StorageProxy:
    """A proxy of the object storage, which remembers every request.

    Args:
        port: Port of the storage on this machine.

    Attributes:
        requests: The requests that have reached the storage, in this order.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._held: list[HeldRequest] = []
        self._lock = threading.Lock()
        self.requests: list[HttpRequest] = []
        self._server = _HttpServer((HOST, 0), _handler(self))

    @property
    def endpoint(self) -> str:
        """The value of MINIO_ENDPOINT."""
        return f"{HOST}:{self._server.server_port}"

    def hold(self, method: str, ending: str) -> HeldRequest:
        """Holds the next request with this method and ending of its key."""
        held = HeldRequest(lambda request: request.is_for(method, ending))
        with self._lock:
            self._held.append(held)
        return held

    def replay(self, request: HttpRequest) -> int:
        """Sends a request once more, as a network may, and returns the status of the answer."""
        return self._send(request).status

    def pass_on(self, request: HttpRequest) -> HttpAnswer:
        """Sends a client's request to the storage, unless and until it is held."""
        with self._lock:
            held = next((each for each in self._held if each.matches(request)), None)
            if held is not None:
                self._held.remove(held)
        if held is None:
            return self._send(request)
        held.arrived.set()
        held.released.wait(LIMIT_S)
        try:
            return self._send(request)
        finally:
            held.answered.set()

    def _send(self, request: HttpRequest) -> HttpAnswer:
        connection = HTTPConnection(HOST, self._target, timeout=LIMIT_S)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            response = connection.getresponse()
            answer = HttpAnswer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()
        with self._lock:
            self.requests.append(request)
        return answer

    @contextmanager
    def running(self) -> Iterator["StorageProxy"]:
        """Serves until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, name="storage-proxy", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _HttpServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet: a client that is gone, or a storage that is away, is part of the tests."""


def _handler(proxy: StorageProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.close_connection = True
            with suppress(OSError, HTTPException):
                whole = self._answer(proxy.pass_on(HttpRequest(self.command, self.path, dict(self.headers), body)))
                self.close_connection = not whole

        def _answer(self, answer: HttpAnswer) -> bool:
            """Sends an answer; False if its body was cut."""
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            lengths = (value for name, value in answer.headers if name.lower() == "content-length")
            length = next(lengths, str(len(answer.body)))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(answer.body)
            return self.command == "HEAD" or len(answer.body) == int(length)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815  # names of the base class

        def log_message(self, format: str, *args: object) -> None:
            """Keeps quiet."""

    return Handler


@dataclass
class Fault:
    """A fault of one answer of a stream.

    Attributes:
        requests: Texts that a client must send before, in this order and on one connection.
        answer: A text that the answer must contain.
        share: Share of the answer that reaches the client.
        cut: Whether the connection is ended then; otherwise the rest of the answer comes once `released` is set.
        happened: Set when the fault has happened.
        released: Set to pass on the rest.
    """

    requests: tuple[bytes, ...]
    answer: bytes = b""
    share: float = 0.0
    cut: bool = True
    happened: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wait_until_happened(self) -> None:
        """Waits until the fault has happened."""
        assert self.happened.wait(LIMIT_S), "the answer to disturb was not sent"


class StreamProxy:
    """A proxy of Redis or Postgres, for connections without TLS.

    A server has carried out a request once it answers. So a client whose answer is cut cannot know whether it was.

    Args:
        port: Port of the server on this machine.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._faults: list[Fault] = []
        self._listener = socket.create_server((HOST, 0))
        self._connections: list[_Connection] = []

    @property
    def port(self) -> int:
        """The port for clients."""
        return int(self._listener.getsockname()[1])

    def cut(self, *requests: bytes, answer: bytes = b"", share: float = 0.0) -> Fault:
        """Ends the connection instead of passing on the next answer that fits; its server has carried it out."""
        return self._add(Fault(requests, answer, share))

    def stall(self, *requests: bytes, answer: bytes = b"", share: float = 0.5) -> Fault:
        """Stops in the middle of the next answer that fits."""
        return self._add(Fault(requests, answer, share, cut=False))

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def advance(self, progress: dict[int, int], request: bytes) -> None:
        """Counts for each fault, by its number, the texts that a connection has sent."""
        for number, fault in enumerate(self._faults):
            start = 0
            for text in fault.requests[progress.get(number, 0) :]:
                found = request.find(text, start)
                if found < 0:
                    break
                start = found + len(text)
                progress[number] = progress.get(number, 0) + 1

    def take_fault(self, progress: dict[int, int], answer: bytes) -> Fault | None:
        """The fault of an answer, which happens once."""
        for number, fault in enumerate(self._faults):
            due = progress.get(number, 0) == len(fault.requests) and fault.answer in answer
            if due and not fault.happened.is_set():
                fault.happened.set()
                return fault
        return None

    @contextmanager
    def running(self) -> Iterator["StreamProxy"]:
        """Serves until the block ends."""
        threading.Thread(target=self._accept, name="stream-proxy", daemon=True).start()
        try:
            yield self
        finally:
            self._listener.close()
            for connection in self._connections:
                connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self._target))
            except OSError:
                client.close()
                continue
            connection = _Connection(self, client, server)
            self._connections.append(connection)
            for pump in (connection.pump_requests, connection.pump_answers):
                threading.Thread(target=pump, name="stream-proxy", daemon=True).start()


class _Connection:
    """One client's connection.

    Args:
        proxy: The proxy.
        client: The client's socket.
        server: The server's socket.
    """

    def __init__(self, proxy: StreamProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._progress: dict[int, int] = {}

    def pump_requests(self) -> None:
        """Passes on the client's bytes until either side ends the connection."""
        with suppress(OSError):
            while data := self._client.recv(_CHUNK_BYTES):
                self._proxy.advance(self._progress, data)
                self._server.sendall(data)
        self.close()

    def pump_answers(self) -> None:
        """Passes on the server's bytes, and disturbs the answers that have a fault."""
        with suppress(OSError):
            while data := self._server.recv(_CHUNK_BYTES):
                fault = self._proxy.take_fault(self._progress, data)
                if fault is not None:
                    part = round(len(data) * fault.share)
                    self._client.sendall(data[:part])
                    data = data[part:]
                    if fault.cut:
                        break
                    fault.released.wait(LIMIT_S)
                self._client.sendall(data)
        self.close()

    def close(self) -> None:
        """Ends both connections; wakes the threads that read from them."""
        for each in (self._client, self._server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
