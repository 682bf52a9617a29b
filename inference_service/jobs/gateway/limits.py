"""Limits of a name, which hold for all its tokens and all processes of the gateway together."""

from datetime import timedelta

from sqlalchemy import Connection, func, select, text

from inference_service.jobs.schema import JobRow, JobState, UploadRow

_DAY = timedelta(days=1)


def count_one_at_a_time(connection: Connection) -> None:
    """Makes the transactions that count something against a limit follow one another.

    It locks a table, as the gateway's role has no right to advisory locks. A transaction that has written to the table
    before must not call this.
    """
    connection.execute(text(f"LOCK TABLE {UploadRow.__tablename__} IN SHARE ROW EXCLUSIVE MODE"))


def queued_jobs(connection: Connection, name: str) -> int:
    """The number of queued jobs of a name."""
    statement = select(func.count()).where(JobRow.state == JobState.QUEUED, JobRow.submitted_by == name)
    return connection.execute(statement).scalar_one()


def bytes_of_day(connection: Connection, name: str) -> int:
    """The bytes that a name has uploaded within 24 hours."""
    total = select(func.coalesce(func.sum(UploadRow.size_bytes), 0)).where(
        UploadRow.name == name, UploadRow.created_at > func.now() - _DAY
    )
    return int(connection.execute(total).scalar_one())
