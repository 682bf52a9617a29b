"""Commands of the HTTP gateway: run it, and make, list and remove its tokens."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from uuid import UUID

import click
from rich.table import Column, Table

from inference_service.cli.display import console, print_json
from inference_service.cli.options import json_option
from inference_service.core.settings import SUBMITTER_PATTERN, get_settings
from inference_service.jobs.database import Database, connect
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole


@click.command()
def gateway() -> None:
    """Run the HTTP gateway.

    It listens on GATEWAY_HOST and GATEWAY_PORT. While there are no tokens, it listens to this machine alone.
    """
    from inference_service.gateway.server import run_gateway

    run_gateway(get_settings())


@click.group("tokens")
def tokens_group() -> None:
    """Make, list and remove the tokens by which the HTTP gateway knows its callers."""


@contextmanager
def _database() -> Iterator[Database]:
    with closing(connect(get_settings())) as database:
        yield database


@tokens_group.command("add")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in TokenRole]),
    required=True,
    help="read: look at the jobs of NAME; submit: submit and cancel them, too; admin: all jobs.",
)
@click.option("--requests-per-s", type=click.FloatRange(0, min_open=True), help="Most requests a second.")
@click.option("--bytes-per-day", type=click.IntRange(1), help="Most bytes that NAME uploads in 24 hours.")
@click.option("--queued-jobs", type=click.IntRange(1), help="Most jobs of NAME that wait at a time.")
@json_option
def add(
    name: str,
    role: str,
    requests_per_s: float | None,
    bytes_per_day: int | None,
    queued_jobs: int | None,
    as_json: bool,
) -> None:
    """Make a token for the upstream NAME, and print it once.

    Several tokens may have one name, such as the old and the new one while they are exchanged.
    """
    if not re.fullmatch(SUBMITTER_PATTERN, name):
        raise click.BadParameter("NAME may have at most 100 letters, digits and ._@:/-")
    with _database() as database:
        token_id, secret = tokens.add(
            database, name, TokenRole(role), Limits(requests_per_s, bytes_per_day, queued_jobs)
        )
    if as_json:
        print_json({"id": str(token_id), "token": secret})
    else:
        click.echo(f"id: {token_id}", err=True)
        click.echo(secret)


@tokens_group.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List the tokens without their secrets."""
    with _database() as database:
        found = tokens.list_tokens(database)
    if as_json:
        print_json([asdict(token) for token in found])
        return
    table = Table(Column("token", no_wrap=True), "name", "role", "created", "requests/s", "bytes/day", "queued jobs")
    for token in found:
        limits = ("" if limit is None else f"{limit:g}" for limit in asdict(token.limits).values())
        table.add_row(str(token.id), token.name, token.role, f"{token.created_at:%Y-%m-%d %H:%M}", *limits)
    console().print(table)


@tokens_group.command("remove")
@click.argument("token_id", metavar="TOKEN", type=click.UUID)
@json_option
def remove(token_id: UUID, as_json: bool) -> None:
    """Remove a token by its id; it is refused from then on."""
    with _database() as database:
        removed = tokens.remove(database, token_id)
    if not removed:
        raise click.ClickException(f"there is no token {token_id}")
    if as_json:
        print_json({"removed": str(token_id)})
    else:
        click.echo(f"removed {token_id}")


COMMANDS = (gateway, tokens_group)
