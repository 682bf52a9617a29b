"""Options that several commands share. Options that belong together reach a command as one value."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias, get_args
from uuid import UUID

import click

from inference_service.contract.input_options import InputOptions
from inference_service.contract.manifest_types import Modality
from inference_service.contract.task_message import OutputFormat, Priority, Tolerance
from inference_service.importers.request import (
    DEFAULT_TIME_LIMIT_S,
    MAX_TIME_LIMIT_S,
    CheckpointKind,
    ImportRequest,
)

Command: TypeAlias = Callable[..., None]
Decorator: TypeAlias = Callable[[Command], Command]

_SELECTION = "--select KEYWORD=VALUE, and each keyword once"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> timedelta | None:
    """Reads an option that is a whole number with a unit, such as 90d; a callback of the option."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a whole number with the unit s, m, h or d, such as 1h")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _finite(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    """Refuses a text for a number that is none, which click takes; a callback of the option."""
    if not math.isfinite(value):
        raise click.BadParameter("expected a number")
    return value


def selection(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str | None]:
    """Reads options of the form KEYWORD=VALUE; a callback of the option. An empty value is none."""
    return {keyword: value or None for keyword, value in _assignments(values, _SELECTION)}


def scans_of_channels(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Reads options of the form NAME=IN; a callback of the option."""
    return dict(_assignments(values, "--channel NAME=IN, and each channel once"))


def folds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Reads an option with nnU-Net's folds, such as 0,1,2; a callback of the option."""
    if value is None:
        return None
    names = value.replace(",", " ").split()
    if not names or len(set(names)) < len(names) or not all(re.fullmatch("[0-9]{1,4}|all", name) for name in names):
        raise click.BadParameter(f"{value!r} is no list of folds, such as 0,1,2, or all")
    return tuple(names)


def _assignments(values: Iterable[str], expected: str) -> list[tuple[str, str]]:
    """Splits texts of the form NAME=VALUE, each with another name."""
    split = [text.partition("=") for text in values]
    if not all(name and separator for name, separator, _ in split) or len({name for name, *_ in split}) < len(split):
        raise click.BadParameter(f"expected {expected}")
    return [(name, value) for name, _, value in split]


each_option = click.option(
    "--each",
    is_flag=True,
    help="Take IN for a folder of many scans, one a file or sub-folder, and segment each. A further run goes on.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
job_argument = click.argument("job_id", metavar="JOB", type=click.UUID)


@dataclass(frozen=True)
class ModelOptions:
    """The model to run.

    Attributes:
        model: Name of the model.
        model_version: Version of the model; None takes the highest installed one.
    """

    model: str
    model_version: str | None


@dataclass(frozen=True)
class InputArguments:
    """The scans to segment, and how they are read.

    Attributes:
        channels: The scan of each channel, by name; empty: there is one input.
        series: UIDs of series: of the only input, or NAME=UID of a channel's.
        tolerate: Defects of the geometry that are corrected.
        modality_check: Whether the scans must have the modality of the model.
        select: KEYWORD=VALUE of attributes of slices: of the only input, or NAME=KEYWORD=VALUE of a channel's.
    """

    channels: Mapping[str, str]
    series: tuple[str, ...]
    tolerate: tuple[Tolerance, ...]
    modality_check: bool
    select: tuple[str, ...]

    def options(self) -> InputOptions:
        """Returns the options for reading the scans.

        Raises:
            click.BadParameter: An option names no channel, or one that has no scan.
            BadRequest: An attribute or its value is not allowed.
        """
        base = InputOptions(tolerate=self.tolerate, modality_check=self.modality_check)
        if not self.channels:
            return self._scan_options(base, self.series, self.select)
        series = self._by_channel(self.series, "--series NAME=UID")
        select = self._by_channel(self.select, "--select NAME=KEYWORD=VALUE")
        channels = {name: self._scan_options(base, series[name], select[name]) for name in self.channels}
        return replace(base, channels=channels)

    def _scan_options(self, base: InputOptions, series: Sequence[str], select: Iterable[str]) -> InputOptions:
        if len(series) > 1:
            raise click.BadParameter("--series is given more than once for one scan")
        selected = {keyword: value or None for keyword, value in _assignments(select, _SELECTION)}
        return replace(base, series=series[0] if series else None, select=selected)

    def _by_channel(self, values: Iterable[str], expected: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self.channels}
        for text in values:
            name, separator, value = text.partition("=")
            if not separator or name not in found:
                raise click.BadParameter(f"expected {expected}, with the name of a --channel")
            found[name].append(value)
        return found


@dataclass(frozen=True)
class OutputOptions:
    """How and where the result is stored.

    Attributes:
        formats: Formats of the mask, beside NIfTI.
        scan: Whether the scan is stored, too.
        prefix: Folder of the results in the output bucket; None takes the job's id.
    """

    formats: tuple[OutputFormat, ...]
    scan: bool
    prefix: str | None = None


@dataclass(frozen=True)
class JobOptions:
    """How a job is enqueued.

    Attributes:
        priority: Priority of the job.
        reuse: Whether an earlier result for the same input, model and options is used.
        job_id: Id of the job; None makes a new one.
    """

    priority: str
    reuse: bool
    job_id: UUID | None


@dataclass(frozen=True)
class FollowOptions:
    """Options of a command that submits jobs and may follow them.

    Attributes:
        wait: Whether to wait until the jobs are finished.
        each: Whether the input is a folder of many scans.
        target: With `each`, the folder of the results.
        at_once: With `each`, the most jobs that wait or run at a time.
    """

    wait: bool
    each: bool
    target: Path | None
    at_once: int


def _grouped(
    parameter: str, value_type: Callable[..., Any], *options: Decorator, without: Sequence[str] = ()
) -> Decorator:
    """Adds options to a command, which receives them as one value.

    Args:
        parameter: The command's parameter.
        value_type: A dataclass whose fields have the names of the options.
        options: The options.
        without: Fields that have no option, and keep their default.
    """
    fields = dataclasses.fields(value_type)  # type: ignore[arg-type]
    names = [field.name for field in fields if field.name not in without]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def call(**values: object) -> None:
            value = value_type(**{name: values.pop(name) for name in names})
            command(**values, **{parameter: value})

        decorated: Command = call
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


model_options = _grouped(
    "model",
    ModelOptions,
    click.option("--model", required=True, help="Name of the model."),
    click.option("--model-version", help="Version of the model; default: the highest installed version."),
)
_SELECTED = (
    "the slices with this value of an attribute, such as TemporalPositionIdentifier=2, if the series has several "
    "acquisitions; may be given several times."
)
_tolerate_option = click.option(
    "--tolerate",
    type=click.Choice(get_args(Tolerance)),
    multiple=True,
    help="Accept this defect of the geometry, and correct it where possible; may be given several times.",
)
_modality_option = click.option(
    "--modality-check/--no-modality-check",
    default=True,
    show_default=True,
    help="Reject a scan whose modality is not the model's.",
)
input_options = _grouped(
    "input_options",
    InputOptions,
    click.option("--series", help="SeriesInstanceUID of the series to read, if the input has several."),
    _tolerate_option,
    _modality_option,
    click.option(
        "--select",
        metavar="KEYWORD=VALUE",
        multiple=True,
        callback=selection,
        help=f"Read {_SELECTED}",
    ),
    without=("channels",),
)
input_arguments = _grouped(
    "arguments",
    InputArguments,
    click.option(
        "--channel",
        "channels",
        metavar="NAME=IN",
        multiple=True,
        callback=scans_of_channels,
        help="The scan of a channel, by the channel's name in the model's manifest, in place of IN; once for each "
        "channel of the model.",
    ),
    click.option(
        "--series",
        metavar="UID",
        multiple=True,
        help="SeriesInstanceUID of the series to segment, if the input has several. With --channel: NAME=UID.",
    ),
    _tolerate_option,
    _modality_option,
    click.option(
        "--select",
        metavar="KEYWORD=VALUE",
        multiple=True,
        help=f"Segment {_SELECTED} With --channel: NAME=KEYWORD=VALUE.",
    ),
)
_format_option = click.option(
    "--format",
    "formats",
    type=click.Choice(get_args(OutputFormat)),
    multiple=True,
    help="Write the mask in this format too, beside NIfTI; may be given several times.",
)
_scan_option = click.option(
    "--scan",
    is_flag=True,
    help="Write the scan too, as scan.nii.gz on the grid of the mask, for viewers that do not read the input.",
)
file_options = _grouped("output", OutputOptions, _format_option, _scan_option, without=("prefix",))
output_options = _grouped(
    "output",
    OutputOptions,
    _format_option,
    _scan_option,
    click.option("--prefix", help="Folder of the results in the output bucket; default: the job's id."),
)
job_options = _grouped(
    "job",
    JobOptions,
    click.option(
        "--priority",
        type=click.Choice([priority.value for priority in Priority]),
        default=Priority.ROUTINE.value,
        show_default=True,
        help="Queue of the job: urgent jobs run first.",
    ),
    click.option(
        "--reuse", is_flag=True, help="Use an earlier result for the same input, model and options, if there is one."
    ),
    click.option(
        "--job-id", type=click.UUID, help="Id of the job; default: a new one. Submitting the same id again is harmless."
    ),
)
follow_options = _grouped(
    "follow",
    FollowOptions,
    click.option("--wait", is_flag=True, help="Wait until the job is finished; with --each, all jobs."),
    each_option,
    click.option(
        "--to",
        "target",
        metavar="OUT",
        type=click.Path(path_type=Path, file_okay=False),
        help="With --each, the folder of the results. A further run with the same folder goes on.",
    ),
    click.option(
        "--at-once",
        type=click.IntRange(1, 1000),
        default=16,
        show_default=True,
        help="With --each, the most jobs that wait or run at a time; the next scan is uploaded when one has ended.",
    ),
)
_PATH = click.Path(path_type=Path)
import_options = _grouped(
    "request",
    ImportRequest,
    click.argument("source", type=_PATH),
    click.option("--name", required=True, help="Name of the model."),
    click.option("--version", default="1", show_default=True, help="Version of the model, such as 1 or 1.2."),
    click.option("--licence", help="SPDX identifier of the licence of the weights; default: what the source states."),
    click.option("--config", type=_PATH, help="Which config of a bundle, or a short config for TorchScript and ONNX."),
    click.option("--labels", type=_PATH, help="A JSON file with labels, in place of the source's."),
    click.option(
        "--modality", type=click.Choice(get_args(Modality)), help="Modality of the scans, in place of the source's."
    ),
    click.option(
        "--configuration", help="Which of nnU-Net's configurations; default: the only one, or nnU-Net's own choice."
    ),
    click.option(
        "--folds",
        callback=folds,
        metavar="LIST",
        help="Which of nnU-Net's folds, such as 0,1,2 or all; default: nnU-Net's own choice, or all that are there.",
    ),
    click.option(
        "--checkpoint",
        type=click.Choice(get_args(CheckpointKind)),
        default="final",
        show_default=True,
        help="Which of nnU-Net's checkpoints.",
    ),
    click.option(
        "--mirroring/--no-mirroring",
        default=True,
        show_default=True,
        help="Average mirrored windows where nnU-Net's training allows it: two to eight times as long.",
    ),
    click.option(
        "--allow-code",
        is_flag=True,
        help="Run Python of a bundle that defines its network, in a process with limits. Only for sources you trust.",
    ),
    click.option(
        "--task",
        help="Which of TotalSegmentator's tasks, such as total or total_fast; default: the only one. nnunet takes the "
        "source for nnU-Net's, whatever its data set is called.",
    ),
    click.option(
        "--roi", multiple=True, metavar="LABEL", help="Keep this label of TotalSegmentator alone; repeatable."
    ),
    click.option(
        "--crop-by",
        metavar="MODEL",
        help="Crop scans to what this installed model finds, as TotalSegmentator does for some tasks and with --roi; "
        "NAME or NAME/VERSION.",
    ),
    click.option(
        "--label-table",
        type=_PATH,
        help="A CSV with codes and colours of TotalSegmentator's labels; default: that of its installed package.",
    ),
    click.option(
        "--time-limit",
        "time_limit_s",
        type=click.FloatRange(1, MAX_TIME_LIMIT_S),
        callback=_finite,
        default=DEFAULT_TIME_LIMIT_S,
        show_default=True,
        metavar="SECONDS",
        help="The most seconds for each step of the import, such as an export or the source's own predictor.",
    ),
    click.option("--float16", is_flag=True, help="Convert the networks to float16."),
    click.option("--bf16", is_flag=True, help="Allow bfloat16 where ONNX_PRECISION asks for it."),
    click.option(
        "--compare",
        type=_PATH,
        multiple=True,
        help="A scan on which the model is compared with the source's own predictor; once for each channel.",
    ),
)
