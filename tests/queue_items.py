"""Items of a queue in Redis, as Celery clients of several languages write them."""

import json
from base64 import b64encode
from collections.abc import Callable
from uuid import uuid4

from inference_service.contract.task_message import TASK_NAME

Json = dict[str, object]


def python_item(job_id: str, content: object, /, *, headers: object = None, **changes: object) -> bytes:
    """Returns an item as kombu writes it for protocol 2.

    Args:
        job_id: The job's id, and the Celery task's.
        content: The body: bytes, or a value that is written as JSON.
        headers: Headers in place of the usual ones.
        changes: Fields of the envelope in place of the usual ones.
    """
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    envelope = {
        "body": b64encode(raw).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": python_headers(job_id) if headers is None else headers,
        "properties": {
            "correlation_id": job_id,
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "overflow"},
        },
    }
    return json.dumps(envelope | changes).encode()


def python_headers(job_id: str, **changes: object) -> Json:
    """Returns the headers of a message of protocol 2."""
    return {"lang": "py", "task": TASK_NAME, "id": job_id} | changes


def protocol_1_item(job_id: str, request: object, **changes: object) -> bytes:
    """Returns an item as Python's Celery writes it for protocol 1.

    Args:
        job_id: The job's id, and the Celery task's.
        request: The job's request.
        changes: Fields of the envelope in place of the usual ones.
    """
    arguments: Json = {"job_id": job_id, "request": request}
    body: Json = {"task": TASK_NAME, "id": job_id, "args": [], "kwargs": arguments, "eta": None}
    return python_item(job_id, body, **{"headers": {}, **changes})


def _rust(job_id: str, request: object) -> Json:
    """rusty-celery: no delivery_info."""
    embed = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    nothing = ("lang", "root_id", "parent_id", "group", "meth", "shadow", "eta", "expires", "retries", "argsrepr")
    return {
        "body": _base64([[], {"job_id": job_id, "request": request}, embed]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **dict.fromkeys(nothing),
            "id": job_id,
            "task": TASK_NAME,
            "timelimit": [None, None],
            "kwargsrepr": None,
            "origin": "gen163934@host",
        },
        "properties": {
            "correlation_id": job_id,
            "reply_to": None,
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
        },
    }


def _gocelery(job_id: str, request: object) -> Json:
    """gocelery: protocol 1, and a correlation_id that is not the task's id."""
    arguments = {"job_id": job_id, "request": request}
    body = {"id": job_id, "task": TASK_NAME, "args": [], "kwargs": arguments, "retries": 0, "eta": None}
    return {
        "body": _base64(body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {
            "body_encoding": "base64",
            "correlation_id": str(uuid4()),
            "reply_to": str(uuid4()),
            "delivery_info": {"priority": 0, "routing_key": "celery", "exchange": "celery"},
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
        },
    }


def _gopher(job_id: str, request: object) -> Json:
    """gopher-celery: protocol 2 without embed."""
    return {
        "body": _base64([[], {"job_id": job_id, "request": request}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": job_id, "task": TASK_NAME, "origin": "1@host", "retries": 0, "expires": None},
        "properties": {
            "correlation_id": job_id,
            "delivery_info": {"exchange": "", "routing_key": "overflow"},
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
        },
    }


def _php(job_id: str, request: object) -> Json:
    """celery-php: protocol 1, encoding binary, the job's id as delivery tag."""
    body = {"id": job_id, "task": TASK_NAME, "args": [], "kwargs": {"job_id": job_id, "request": request}}
    return {
        "body": _base64(body),
        "headers": {},
        "content-type": "application/json",
        "content-encoding": "binary",
        "properties": {
            "body_encoding": "base64",
            "reply_to": job_id,
            "delivery_info": {"priority": 0, "routing_key": "overflow", "exchange": "overflow"},
            "delivery_mode": 2,
            "delivery_tag": job_id,
        },
    }


def _node_ts(job_id: str, request: object) -> Json:
    """celery-ts: a plain body, and the same delivery tag in every message."""
    return {
        "body": json.dumps([[], {"job_id": job_id, "request": request}, {"callbacks": None, "chord": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": job_id, "lang": "py", "task": TASK_NAME, "timelimit": [None, None], "root_id": job_id},
        "properties": {
            "body_encoding": "utf-8",
            "correlation_id": job_id,
            "delivery_info": {"exchange": "", "routing_key": "overflow"},
            "delivery_tag": "celery",
            "queue": "overflow",
            "priority": 0,
        },
    }


def _base64(value: object) -> str:
    return b64encode(json.dumps(value).encode()).decode()


CLIENTS: dict[str, Callable[[str, object], Json]] = {
    "rusty-celery": _rust,
    "gocelery": _gocelery,
    "gopher-celery": _gopher,
    "celery-php": _php,
    "celery-ts": _node_ts,
}
"""Envelopes by other languages' clients, each from the id of a job and its request."""
