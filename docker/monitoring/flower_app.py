"""Flower's Celery application: the broker URL, with the password percent-encoded, and Flower's users."""

import os
from pathlib import Path
from urllib.parse import quote

from celery import Celery


def secret(name: str) -> str:
    """The content of the file that a variable names."""
    return Path(os.environ[name]).read_text(encoding="utf-8").rstrip("\r\n")


# Flower reads its users from the environment alone, after it has imported this module.
os.environ["FLOWER_BASIC_AUTH"] = secret("FLOWER_BASIC_AUTH_FILE")
app = Celery(broker=f"redis://monitoring:{quote(secret('REDIS_PASSWORD_FILE'), safe='')}@redis:6379/0")
# Otherwise Flower would return messages that workers have not acknowledged to their queues.
app.conf.broker_transport_options = {
    name: f"flower.{name}" for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
}
# The channel of the workers' events.
app.conf.broker_transport_options["fanout_prefix"] = f"/{{db}}.{os.environ.get('REDIS_PREFIX', '')}"
