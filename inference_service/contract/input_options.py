"""The options of a request for reading and checking its input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    Raises:
        BadRequest: The selection has an unknown attribute or an invalid value.
    """

    series: str | None = None
    tolerate: tuple[Tolerance, ...] = ()
    modality_check: bool = True
    select: Mapping[str, SelectValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            check_selection(self.select)
        except ValueError as error:
            raise BadRequest(f"input.select: {error}") from None

    @classmethod
    def of(cls, request: SegmentRequest) -> Self:
        """Returns the options of a request."""
        options = request.options
        return cls(request.input.series, options.tolerate, options.modality_check, request.input.select)


DEFAULT_INPUT_OPTIONS = InputOptions()
