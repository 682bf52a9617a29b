"""Flower's Celery application: the broker URL, with the password percent-encoded."""

import os
from urllib.parse import quote

from celery import Celery

app = Celery(broker=f"redis://:{quote(os.environ['REDIS_PASSWORD'], safe='')}@redis:6379/0")
