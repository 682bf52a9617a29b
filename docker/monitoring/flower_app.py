"""What Flower looks at: the queues' Redis, whose password may be of any characters."""

import os
from urllib.parse import quote

from celery import Celery

app = Celery(broker=f"redis://:{quote(os.environ['REDIS_PASSWORD'], safe='')}@redis:6379/0")
