"""What a request says about its input beyond where it lies."""

from dataclasses import dataclass

from inference_service.contract.task_message import Tolerance


@dataclass(frozen=True)
class InputOptions:
    """What a request says of its input.

    Attributes:
        series: SeriesInstanceUID of the series that is meant; None takes the only one.
        tolerate: What of a series' geometry is mended rather than refused.
        modality_check: Whether it must be of the model's modality.
    """

    series: str | None = None
    tolerate: tuple[Tolerance, ...] = ()
    modality_check: bool = True


DEFAULT_INPUT_OPTIONS = InputOptions()
