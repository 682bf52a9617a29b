import json
import subprocess
import sys

import pytest

# The table of schemes is global to a process, so another process changes it.
RESOLVE = """
import json, sys
from kombu import Connection
from inference_service.worker.messages.redis_transport import install

install()
connection = Connection(sys.argv[1])
found = connection.get_transport_cls()
print(json.dumps([found.__module__, found.__name__, bool(connection.ssl)]))
"""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h/0", ["inference_service.worker.messages.redis_transport", "Transport", False]),
        ("rediss://h/0", ["inference_service.worker.messages.redis_transport", "Transport", True]),
        ("redis+socket:///tmp/s", ["inference_service.worker.messages.redis_transport", "Transport", False]),
        ("redis://h/0;redis://i/0", ["inference_service.worker.messages.redis_transport", "Transport", False]),
        ("sentinel://h/0", ["inference_service.worker.messages.redis_transport", "SentinelTransport", False]),
        (
            "sentinel://h/0;sentinel://i/0",
            ["inference_service.worker.messages.redis_transport", "SentinelTransport", False],
        ),
    ],
)
def test_every_redis_url_gets_the_transport_and_keeps_its_meaning(url: str, expected: list[object]) -> None:
    ended = subprocess.run([sys.executable, "-c", RESOLVE, url], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ended.stdout) == expected
