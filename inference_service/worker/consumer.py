"""Celery's consumer, hardened: no message can end it, and no message's content reaches the log."""

import logging
import re
from collections.abc import Callable

from celery.worker.consumer import Consumer
from kombu import Message

from inference_service.worker.message_check import UnknownTask, body_bytes, sanitise
from inference_service.worker.redis_transport import CONNECTION_ERRORS

logger = logging.getLogger(__name__)

_PRINTABLE_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)


class SafeConsumer(Consumer):
    """Rejects a message that it cannot handle, and goes on with the next one."""

    def create_task_handler(self, *args: object, **kwargs: object) -> Callable[[Message], None]:
        """Returns the function that handles each message."""
        handle = super().create_task_handler()

        def on_task_received(message: Message) -> None:
            try:
                sanitise(message)
                handle(message)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                self._reject(message, error)

        return on_task_received

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Rejects a message that follows no protocol of Celery."""
        self._reject(message, UnknownTask())

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects a task other than the service's."""
        self._reject(message, UnknownTask())

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects a message from which Celery cannot make a task."""
        self._reject(message, exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Rejects a message that kombu cannot decode or decompress."""
        self._reject(message, exc)

    def _reject(self, message: Message, error: Exception) -> None:
        name = str(message.headers.get("task"))
        logger.error(
            "rejected a message (%s): task %s, %d bytes",
            type(error).__name__,
            name if _PRINTABLE_NAME.fullmatch(name) else "?",
            len(body_bytes(message)),
        )
        if not message.acknowledged:
            message.reject_log_error(logger, CONNECTION_ERRORS)
