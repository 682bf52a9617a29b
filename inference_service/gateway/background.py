"""The tasks of a gateway beside its answers: news for listeners, the removal of unused uploads, calls of webhooks."""

import logging
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import httpx
from anyio.to_thread import run_sync

from inference_service.core.errors import DatabaseUnavailable, ServiceError
from inference_service.core.settings import Settings
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.submission.upload_sweep import sweep_uploads
from inference_service.gateway.webhooks.calls import WebhookSettings
from inference_service.gateway.webhooks.delivery import deliver_due

logger = logging.getLogger(__name__)

_SWEEP_PERIOD_S = 60.0
_REPORT_PERIOD_S = 2.0
_RESTART_DELAY_S = 5.0


async def run_in_background(gateway: Gateway) -> None:
    """Runs the tasks until they are cancelled."""
    tasks: list[Callable[[], Awaitable[None]]] = [gateway.events.watch, partial(_sweep, gateway)]
    if gateway.settings.webhook_secret is not None:
        calls = WebhookSettings(
            gateway.settings.webhook_secret.get_secret_value().encode(), gateway.settings.webhook_private_addresses
        )
        tasks.append(partial(_report_ends, gateway, calls))
    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(keep_running, task)


async def keep_running(task: Callable[[], Awaitable[None]]) -> None:
    """Runs a task, and starts it again whenever it fails: its error must end neither the others nor the gateway."""
    while True:
        try:
            await task()
        except Exception:
            logger.exception("a background task failed, and starts again in %g s", _RESTART_DELAY_S)
        await anyio.sleep(_RESTART_DELAY_S)


async def _sweep(gateway: Gateway) -> None:
    while True:
        try:
            await run_sync(sweep_uploads, gateway.database, gateway.storage)
        except ServiceError as error:
            logger.warning("uploads that no job uses stay for now: %s", error)
        await anyio.sleep(_SWEEP_PERIOD_S)


async def _report_ends(gateway: Gateway, calls: WebhookSettings) -> None:
    async with httpx.AsyncClient(verify=_trusted(gateway.settings), trust_env=False) as client:
        while True:
            attempts = 0
            try:
                attempts = await deliver_due(gateway.database, client, calls)
            except DatabaseUnavailable as error:
                logger.warning("no webhooks are called: %s", error)
            if not attempts:
                await anyio.sleep(_REPORT_PERIOD_S)


def _trusted(settings: Settings) -> ssl.SSLContext:
    """The authorities whose certificates receivers of webhooks may have."""
    trusted = ssl.create_default_context()
    if settings.tls_ca_path is not None:
        trusted.load_verify_locations(settings.tls_ca_path)
    return trusted
