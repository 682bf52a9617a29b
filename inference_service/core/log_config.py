"""Logging: text for people or JSON for machines, with the id of the job in each line.

JSON has the id of the job's trace, too.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal
from uuid import UUID

from pythonjsonlogger.json import JsonFormatter

_NONE = "-"
_job_id: ContextVar[str] = ContextVar("job_id", default=_NONE)
_trace_id: ContextVar[str] = ContextVar("trace_id", default=_NONE)

_TEXT = "%(asctime)s %(levelname)s [%(processName)s] [job %(job_id)s] %(name)s: %(message)s"
_JSON = "%(asctime)s %(levelname)s %(processName)s %(job_id)s %(trace_id)s %(name)s %(message)s"


class JobFilter(logging.Filter):
    """Adds the ids of the current job and its trace to every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds `job_id` and `trace_id`; no record is dropped."""
        record.job_id = _job_id.get()
        record.trace_id = _trace_id.get()
        return True


@contextmanager
def logging_job(job_id: UUID, trace_id: str | None = None) -> Iterator[None]:
    """Adds the ids of a job and, if it has one, its trace to the lines that are logged inside the block."""
    job = _job_id.set(str(job_id))
    trace = _trace_id.set(trace_id or _NONE)
    try:
        yield
    finally:
        _trace_id.reset(trace)
        _job_id.reset(job)


def configure_logging(level: str, style: Literal["text", "json"]) -> None:
    """Sends all log records of this process to standard error.

    Args:
        level: Lowest level that is logged. Other libraries' lines are logged from INFO on at the lowest: Celery's debug
            lines, for example, quote messages.
        style: Whether each line is text or a JSON object.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(JobFilter())
    if style == "json":
        renamed = {"asctime": "time", "levelname": "level", "processName": "process", "name": "logger"}
        handler.setFormatter(JsonFormatter(_JSON, rename_fields=renamed, json_ensure_ascii=False))
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    logging.captureWarnings(True)
    warnings.formatwarning = _format_warning
    logging.basicConfig(level=logging.INFO if level == "DEBUG" else level, handlers=[handler], force=True)
    logging.getLogger("inference_service").setLevel(level)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    # Its warnings quote URLs, and so the keys of objects.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # Its lines quote the URLs of webhooks, which may contain secrets of the receiver.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Its warnings quote the tracestate of a message.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning without its text, which may quote a value of a scan."""
    return f"{filename}:{lineno}: {category.__name__}"
