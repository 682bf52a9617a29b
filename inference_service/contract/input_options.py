"""The options of a request for reading and checking its input."""

from dataclasses import dataclass

from inference_service.contract.task_message import Tolerance


@dataclass(frozen=True)
class InputOptions:
    """How to read and check the input of one job.

    Attributes:
        series: SeriesInstanceUID of the series to segment; None: the only one.
        tolerate: Defects of a series' geometry that are corrected instead of refused.
        modality_check: Whether the scan must have the model's modality.
    """

    series: str | None = None
    tolerate: tuple[Tolerance, ...] = ()
    modality_check: bool = True


DEFAULT_INPUT_OPTIONS = InputOptions()
