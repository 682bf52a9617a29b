"""Reports ends of jobs to their webhooks. Any number of gateways may do so at a time."""

import logging

import anyio
import httpx
from anyio.to_thread import run_sync

from inference_service.core.errors import DatabaseUnavailable
from inference_service.gateway.webhooks.calls import CallFailed, WebhookSettings, call
from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import webhooks
from inference_service.jobs.gateway.webhooks import DueWebhook
from inference_service.jobs.job_store import Job

logger = logging.getLogger(__name__)

# A receiver that hangs holds up the others, so there is room for many calls.
_AT_ONCE = 32


async def deliver_due(database: Database, client: httpx.AsyncClient, settings: WebhookSettings) -> int:
    """Makes one attempt for webhooks that are due, some at a time.

    Args:
        database: The jobs' database.
        client: Follows no redirects.
        settings: The key of the signatures, and which addresses are permitted.

    Returns:
        The number of attempts.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    due = await run_sync(lambda: webhooks.take_due(database, limit=_AT_ONCE))
    async with anyio.create_task_group() as group:
        for each in due:
            group.start_soon(_deliver, database, client, settings, each)
    return len(due)


async def _deliver(database: Database, client: httpx.AsyncClient, settings: WebhookSettings, due: DueWebhook) -> None:
    """Makes one attempt. It ends no others: a webhook without an outcome is due again when it is no longer taken."""
    try:
        job = await run_sync(job_store.get, database, due.job_id)
        if job is None or job.finished_at != due.end:
            return  # pruned, or retried since: its next end is reported
        await _attempt(database, client, settings, due, job)
    except DatabaseUnavailable as error:
        logger.warning("webhook of job %s, attempt %d: the outcome is not recorded: %s", due.job_id, due.attempt, error)
    except Exception:
        logger.exception("webhook of job %s, attempt %d", due.job_id, due.attempt)


async def _attempt(
    database: Database, client: httpx.AsyncClient, settings: WebhookSettings, due: DueWebhook, job: Job
) -> None:
    try:
        await call(client, due, job, settings)
    except CallFailed as error:
        logger.warning("webhook of job %s, attempt %d: %s", due.job_id, due.attempt, error)
        await run_sync(webhooks.give_up if error.final else webhooks.fail, database, due, str(error))
    else:
        await run_sync(webhooks.settle, database, due)
