"""The HTTP gateway, served from a thread of the tests, and what its tests send and check."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from inference_service.core.settings import Settings
from inference_service.gateway.app import make_app
from inference_service.gateway.server import GatewayServer, server_config

REQUEST = {"input": {"key": "scan"}, "model": "ct-tissue"}
FORM = {"request": json.dumps({"model": "ct-tissue"})}


@contextmanager
def served(settings: Settings, *, local: bool) -> Iterator[str]:
    """Serves the gateway from a thread, and yields its address."""
    config = server_config(make_app(settings, local=local), settings, host="127.0.0.1")
    serving = GatewayServer(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serving.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            serving.should_exit = True
            thread.join()


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code of a refusal, which must be problem details."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    content = answer.json()
    assert content.keys() == {"type", "title", "status", "detail", "code", "remedy"}
    assert content["status"] == answer.status_code
    return answer.status_code, content["code"]
