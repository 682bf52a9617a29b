"""Tokens of the HTTP gateway: who may do what, and how much of it.

A token is a random text that is shown once. The table has its SHA-256 alone, which suffices as nobody can guess 256
random bits. Several tokens may have one name: the upstream that they belong to, and whose jobs they see.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from secrets import token_urlsafe
from uuid import UUID, uuid4

from sqlalchemy import delete, insert, select

from inference_service.jobs.database import Database
from inference_service.jobs.schema import TokenRow

_PREFIX = "ist_"
_RANDOM_BYTES = 32


class TokenRole(StrEnum):
    """What the owner of a token may do."""

    READ = "read"
    """Look at the jobs of its name."""
    SUBMIT = "submit"
    """Submit and cancel jobs in its name as well."""
    ADMIN = "admin"
    """Look at all jobs and cancel them, and submit jobs."""


@dataclass(frozen=True)
class Limits:
    """How much a token may ask for; None is no limit.

    Attributes:
        requests_per_s: Requests a second, on the average of some seconds, of one process of the gateway.
        bytes_per_day: Bytes that its name uploads within 24 hours.
        queued_jobs: Jobs of its name that wait at a time.
    """

    requests_per_s: float | None = None
    bytes_per_day: int | None = None
    queued_jobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token without its secret.

    Attributes:
        id: Names the token where it is listed or removed.
        name: The upstream that it belongs to.
        role: What it may do.
        limits: How much of it.
        created_at: Time when it was made.
    """

    id: UUID
    name: str
    role: TokenRole
    limits: Limits
    created_at: datetime


_LIMITS = [each.name for each in fields(Limits)]
_COLUMNS = [getattr(TokenRow, name) for name in ("id", "name", "role", "created_at", *_LIMITS)]


def add(database: Database, name: str, role: TokenRole, limits: Limits) -> tuple[UUID, str]:
    """Makes a token.

    Returns:
        Its id, and the token itself, which is stored nowhere.
    """
    secret = _PREFIX + token_urlsafe(_RANDOM_BYTES)
    token_id = uuid4()
    values = {each: getattr(limits, each) for each in _LIMITS}
    with database.begin() as connection:
        connection.execute(
            insert(TokenRow).values(id=token_id, name=name, role=role, secret_sha256=_sha256(secret), **values)
        )
    return token_id, secret


def find(database: Database, secret: str) -> Token | None:
    """The token with this secret; None where there is none."""
    with database.connection() as connection:
        row = connection.execute(select(*_COLUMNS).where(TokenRow.secret_sha256 == _sha256(secret))).one_or_none()
    return None if row is None else _token(row._asdict())


def list_tokens(database: Database) -> Sequence[Token]:
    """All tokens, by name and age."""
    statement = select(*_COLUMNS).order_by(TokenRow.name, TokenRow.created_at)
    with database.connection() as connection:
        return [_token(row._asdict()) for row in connection.execute(statement)]


def remove(database: Database, token_id: UUID) -> bool:
    """Removes a token, which is refused from the next request on.

    Returns:
        False if there is none with this id.
    """
    with database.begin() as connection:
        removed = connection.execute(delete(TokenRow).where(TokenRow.id == token_id).returning(TokenRow.id))
        return removed.first() is not None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: dict[str, object]) -> Token:
    limits = Limits(**{name: row.pop(name) for name in _LIMITS})  # type: ignore[arg-type]
    return Token(**row | {"role": TokenRole(str(row["role"])), "limits": limits})  # type: ignore[arg-type]
