"""Ties a deployment to one Redis, and each Redis to one deployment.

A deployment is a database of jobs and what serves it. Its workers write its id into Redis, so that another deployment
does not take its messages. They record in the database which Redis they use, so that workers with different ones do not
send all messages again and again. A Redis that has lost its data, or has replaced another one, is accepted once no live
worker uses the other one.
"""

from datetime import timedelta
from functools import cached_property
from uuid import UUID

from sqlalchemy import Connection, exists, func, select, update

from inference_service.core.errors import ConfigurationError, OtherRedisInUse
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import App
from inference_service.jobs.queues.redis_state import RedisState, claim_queues, owner_key
from inference_service.jobs.schema import DeploymentRow, WorkerRow


class RedisOwnership:
    """Checks the ownership for one worker or client.

    Args:
        app: The connection to Redis.
        database: The jobs' database.
        live_within_s: Seconds without a heartbeat after which a worker counts as dead.
        worker: The worker's name; None for a client.
    """

    def __init__(self, app: App, database: Database, *, live_within_s: float, worker: str | None = None) -> None:
        self._app = app
        self._database = database
        self._live_within = timedelta(seconds=live_within_s)
        self._worker = worker

    @cached_property
    def deployment_id(self) -> UUID:
        """The id of the deployment, which `migrate` has made."""
        with self._database.connection() as connection:
            return connection.execute(select(DeploymentRow.id)).scalar_one()

    def verify(self, redis: RedisState) -> None:
        """Checks that Redis belongs to this deployment, or to none.

        Raises:
            ConfigurationError: Redis belongs to another deployment.
            DatabaseUnavailable: Postgres does not answer.
        """
        if redis.owner not in (None, str(self.deployment_id)):
            raise ConfigurationError(
                "this Redis belongs to another deployment: set REDIS_PREFIX, or another database in REDIS_URL; if that "
                f"deployment no longer exists, delete the key {owner_key(self._app)}"
            )

    def claim(self, redis: RedisState) -> None:
        """Verifies the owner, and makes this deployment the owner if there is none.

        Raises:
            ConfigurationError: Redis belongs to another deployment.
            DatabaseUnavailable: Postgres does not answer.
            QueueUnavailable: Redis does not answer.
        """
        self.verify(redis)
        if redis.owner is None:
            claim_queues(self._app, self.deployment_id)

    def require_common(self, redis: RedisState) -> None:
        """Checks that no live worker uses another Redis.

        Raises:
            OtherRedisInUse: The workers use another Redis.
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.connection() as connection:
            recorded = connection.execute(select(DeploymentRow.redis)).scalar_one()
            self._require_unused(connection, recorded, redis)

    def adopt(self, redis: RedisState) -> None:
        """Checks that no other live worker uses another Redis, and records that the workers use this one.

        Raises:
            OtherRedisInUse: Other workers use another Redis.
            DatabaseUnavailable: Postgres does not answer.
        """
        own_row = update(WorkerRow).where(WorkerRow.name == self._worker)
        with self._database.begin() as connection:
            connection.execute(own_row.where(WorkerRow.redis.is_distinct_from(redis.place)).values(redis=redis.place))
        with self._database.begin() as connection:
            recorded = connection.execute(select(DeploymentRow.redis).with_for_update()).scalar_one()
            self._require_unused(connection, recorded, redis)
            if recorded != redis.place:
                connection.execute(update(DeploymentRow).values(redis=redis.place))

    def _require_unused(self, connection: Connection, recorded: str | None, redis: RedisState) -> None:
        """Checks that no other live worker uses the recorded Redis if it is not this one."""
        if recorded in (None, redis.place):
            return
        seen = WorkerRow.seen_at > func.now() - self._live_within
        used = exists().where(WorkerRow.redis == recorded, seen, WorkerRow.name.is_distinct_from(self._worker))
        if connection.execute(select(used)).scalar_one():
            raise OtherRedisInUse(
                f"the workers of this deployment use another Redis ({recorded}) than this one ({redis.place}): "
                "wait if Redis has just restarted or failed over, else give all the same REDIS_URL and REDIS_PREFIX"
            )
