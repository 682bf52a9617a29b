"""A proxy that takes TLS connections for a server without TLS."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Length of libpq's SSLRequest, which the server answers with one letter.
SSL_REQUEST_BYTES = 8
# The first byte of a TLS connection.
TLS_HANDSHAKE = b"\x16"


@contextmanager
def proxy(port: int, context: ssl.SSLContext, *, postgres: bool = False, takes_plain: bool = False) -> Iterator[int]:
    """Accepts TLS connections on a new port and forwards them in plain text.

    Args:
        port: The server's port.
        context: The certificate.
        postgres: Whether clients ask for TLS first, as in Postgres' protocol.
        takes_plain: Whether connections without TLS are forwarded, too.
    """

    def serve() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                threading.Thread(target=handle, args=(raw,), daemon=True).start()

    def handle(raw: socket.socket) -> None:
        with suppress(OSError):
            if postgres:
                raw.recv(SSL_REQUEST_BYTES)
                raw.sendall(b"S")
            is_plain = takes_plain and raw.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE
            with (
                raw if is_plain else context.wrap_socket(raw, server_side=True) as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                back = threading.Thread(target=forward, args=(far, near), daemon=True)
                back.start()
                forward(near, far)
                back.join()

    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
