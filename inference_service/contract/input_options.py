"""The options of a request for reading and checking its input."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from inference_service.contract.slice_selection import SelectValue, check_selection
from inference_service.contract.task_message import SegmentRequest, Tolerance
from inference_service.core.errors import BadRequest


@dataclass(frozen=True)
class InputOptions:
    """How to read and check the input of one job.

    Attributes:
        series: SeriesInstanceUID of the series to segment; None: the only one.
        tolerate: Defects of a series' geometry that are corrected instead of refused.
        modality_check: Whether the scan must have the model's modality.
        select: Values of attributes, by keyword, of the slices to segment; empty: all slices of the series.
        channels: The options of each channel, by name, if the request names a scan for each.

    Raises:
        BadRequest: The selection has an unknown attribute or an invalid value.
    """

    series: str | None = None
    tolerate: tuple[Tolerance, ...] = ()
    modality_check: bool = True
    select: Mapping[str, SelectValue] = field(default_factory=dict)
    channels: Mapping[str, "InputOptions"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            check_selection(self.select)
        except ValueError as error:
            raise BadRequest(f"input.select: {error}") from None

    @classmethod
    def of(cls, request: SegmentRequest) -> Self:
        """Returns the options of a request."""
        scan = request.input
        options = cls(scan.series, request.options.tolerate, request.options.modality_check, scan.select)
        channels = {
            name: replace(options, series=channel.series, select=channel.select)
            for name, channel in scan.channels.items()
        }
        return replace(options, channels=channels)

    def of_channel(self, name: str) -> "InputOptions":
        """Returns the options for the scan of one channel."""
        return self.channels.get(name, self)


DEFAULT_INPUT_OPTIONS = InputOptions()


def check_channels(given: Collection[str], expected: Sequence[str]) -> None:
    """Checks that there is a scan for each channel of a model.

    Raises:
        BadRequest: A channel is missing or unknown. The message names the model's channels alone.
    """
    if set(given) != set(expected):
        raise BadRequest(
            f"input.channels: expected a scan for each channel of the model, by its name: {', '.join(expected)}"
        )
