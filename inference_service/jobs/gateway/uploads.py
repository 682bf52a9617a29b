"""Uploads through the HTTP gateway, which are recorded before their first byte is stored.

So the objects of an upload that became no job are found and removed a day later, wherever the gateway died.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import Text, cast, delete, exists, func, insert, or_, select, text, update

from inference_service.contract.task_message import UPLOAD_PREFIX
from inference_service.jobs.database import Database
from inference_service.jobs.gateway.limits import bytes_of_day, count_one_at_a_time
from inference_service.jobs.schema import JobRow, UploadRow

_KEPT_FOR = timedelta(days=1)
# Longer than a removal takes, unless the storage does not answer.
_RETRY_DELAY = timedelta(minutes=5)
_NEVER = text("'infinity'")
# Of two uploads for the same job, it uses one.
_USED = exists().where(JobRow.id == UploadRow.job_id, func.strpos(cast(JobRow.request, Text), UploadRow.prefix) > 0)


@dataclass(frozen=True)
class Upload:
    """One upload.

    Attributes:
        id: Its id.
        bucket: The bucket of its objects.
        prefix: The prefix of their keys, which ends in a slash.
    """

    id: UUID
    bucket: str
    prefix: str


def begin(database: Database, name: str, *, bucket: str, job_id: UUID) -> Upload:
    """Records an upload of an upstream for a job that does not exist yet."""
    upload_id = uuid4()
    upload = Upload(upload_id, bucket, f"{UPLOAD_PREFIX}{upload_id}/")
    values = {"id": upload_id, "name": name, "bucket": bucket, "prefix": upload.prefix, "job_id": job_id}
    with database.begin() as connection:
        connection.execute(insert(UploadRow).values(**values, remove_after=func.now() + _KEPT_FOR))
    return upload


def record_size(database: Database, upload: Upload, size_bytes: int) -> None:
    """Records the size of an upload."""
    with database.begin() as connection:
        connection.execute(update(UploadRow).where(UploadRow.id == upload.id).values(size_bytes=size_bytes))


def record_within(database: Database, upload: Upload, size_bytes: int, *, name: str, of_day: int) -> bool:
    """Records what has arrived of an upload, unless its name would have more than `of_day` bytes a day by it.

    Returns:
        Whether it is recorded.
    """
    with database.begin() as connection:
        count_one_at_a_time(connection)
        is_upload = UploadRow.id == upload.id
        earlier = connection.execute(select(UploadRow.size_bytes).where(is_upload)).scalar_one()
        if bytes_of_day(connection, name) - earlier + size_bytes > of_day:
            return False
        connection.execute(update(UploadRow).where(is_upload).values(size_bytes=size_bytes))
    return True


def abandon(database: Database, upload: Upload, size_bytes: int) -> None:
    """Records that no job will use an upload, so that its objects are removed soon; it counts for the day as others."""
    values = {"size_bytes": size_bytes, "remove_after": func.now()}
    with database.begin() as connection:
        connection.execute(update(UploadRow).where(UploadRow.id == upload.id).values(values))


def take_unused(database: Database) -> Upload | None:
    """Takes an upload whose objects are to be removed, as no job uses them; None if there is none.

    Others do not find it for some minutes, within which the caller removes the objects, or dies.
    """
    due = (
        select(UploadRow.id)
        .where(UploadRow.remove_after <= func.now(), ~_USED)
        .order_by(UploadRow.remove_after)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(UploadRow)
        .where(UploadRow.id == due)
        .values(remove_after=func.now() + _RETRY_DELAY)
        .returning(UploadRow.id, UploadRow.bucket, UploadRow.prefix)
    )
    with database.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else Upload(*row)


def mark_removed(database: Database, upload: Upload) -> None:
    """Records that the objects of an upload are removed."""
    with database.begin() as connection:
        # Its size counts up to the end of the day.
        statement = update(UploadRow).values(remove_after=_NEVER, job_id=None)
        connection.execute(statement.where(UploadRow.id == upload.id))


def forget_counted(database: Database) -> None:
    """Removes the rows of uploads that no longer count for a day, and have no objects of their own left."""
    with database.begin() as connection:
        past = UploadRow.created_at <= func.now() - _KEPT_FOR
        connection.execute(delete(UploadRow).where(past, or_(_USED, UploadRow.job_id.is_(None))))
