"""Asks for what a network's file does not say: the answers are a short config."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import click
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from inference_service.cli.display import printable
from inference_service.contract.labels import Label
from inference_service.contract.manifest_types import Modality, PercentRange, Range
from inference_service.contract.part import GridSpacing, WindowSize, check_orientation
from inference_service.contract.task_message import ChannelName
from inference_service.core.errors import BadRequest
from inference_service.core.files import MAX_CHANNELS
from inference_service.core.settings import Settings
from inference_service.importers.request import ImportRequest

if TYPE_CHECKING:
    from inference_service.importers.questions import OpenSource

_ANSWERS = "answers.json"
_ANY = "any"
_INTENSITIES = ("none", "z_score", "min_max", "fixed_range", "percentiles")
_USUAL_INTENSITY = {"CT": "fixed_range", "MR": "z_score"}
_FINITE = ConfigDict(allow_inf_nan=False)
_COUNT = TypeAdapter[int](Annotated[int, Field(ge=1, le=MAX_CHANNELS)])
_NAME = TypeAdapter[str](ChannelName)
_SPACING = TypeAdapter[GridSpacing](GridSpacing, config=_FINITE)
_WINDOW = TypeAdapter[WindowSize](WindowSize)
_RANGE = TypeAdapter[Range](Range, config=_FINITE)
_PERCENTILES = TypeAdapter[PercentRange](PercentRange, config=_FINITE)

Answer = TypeVar("Answer")
Values = TypeVar("Values", bound=Sequence[float | None])


@contextmanager
def answered(request: ImportRequest, settings: Settings, *, interactive: bool) -> Iterator[ImportRequest]:
    """Completes a request for a network without description by the answers to questions.

    Args:
        request: The request.
        settings: The folder for temporary files.
        interactive: Whether somebody can answer.

    Yields:
        The request, with a short config that exists meanwhile.

    Raises:
        BadRequest: Nobody can answer; the message has a short config to fill in.
    """
    from inference_service.importers.questions import undescribed
    from inference_service.importers.short_config import draft

    if request.config is not None:
        yield request
        return
    with undescribed(request.source, settings, request.time_limit_s) as source:
        if source is None:
            config = None
        elif interactive:
            config = _ask(source, request.modality)
        else:
            filled = _text(draft(source.describe()))
            raise BadRequest(
                "a TorchScript or ONNX file does not say how a scan is prepared for it. Complete this short config and "
                f"give it by --config FILE:\n{filled}"
            )
    if config is None:
        yield request
        return
    text = _text(config)
    click.echo(f"short config, for --config next time:\n{text}", err=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / _ANSWERS
        path.write_text(text, encoding="utf-8")
        yield replace(request, config=path)


def _text(config: Mapping[str, object]) -> str:
    """A config as JSON, with a line for each field."""
    lines = (f"  {json.dumps(field)}: {json.dumps(value, ensure_ascii=False)}" for field, value in config.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _ask(source: "OpenSource", modality: str | None) -> dict[str, object]:
    """Asks for the fields of a short config, with what is known or usual as defaults.

    Each answer is checked by the types of the manifest, and asked for again where it is invalid.
    """
    from inference_service.importers.short_config import draft

    signature = source.describe()
    known = draft(signature)
    if modality is None:
        modality = _choose("Modality of the scans", get_args(Modality), "other")
    count = signature.channels or _prompt("Number of input channels", "1", _COUNT.validate_python)
    names = [channel["name"] for channel in known["channels"]]  # type: ignore[attr-defined]
    names = names if len(names) == count else [f"channel {number}" for number in range(count)]
    channels = [_ask_channel(name, modality) for name in names]
    orientation = _prompt("Directions of the network's axes", str(known["orientation"]), _orientation)
    spacing_mm = _values("Voxel size along them in mm, or any", [None] * 3, _SPACING)
    window: WindowSize = tuple(known["window"])  # type: ignore[arg-type, assignment]
    if signature.window is None:
        window = _values("Voxels of a window (1 along the axis that planes lack), or any", window, _WINDOW)
    if signature.outputs is None:
        signature = source.describe(window)
        known = draft(signature)
    activation = _choose("Decision on labels", ("softmax", "sigmoid"), str(known["activation"]))
    usual = printable(", ".join(label["name"] for label in known["labels"]))  # type: ignore[attr-defined]
    first = 0 if activation == "softmax" else 1
    parse = partial(_labels, outputs=signature.outputs, first=first)
    return {
        "modality": modality,
        "channels": channels,
        "orientation": orientation,
        "spacing_mm": list(spacing_mm),
        "window": list(window),
        "activation": activation,
        "labels": _prompt("Labels, in the order of the outputs", usual, parse),
    }


def _ask_channel(name: str, modality: str) -> dict[str, object]:
    name = _prompt("Name of the channel", name, lambda text: _NAME.validate_python(text.strip()))
    kind = _choose(f"Intensities of {name}", _INTENSITIES, _USUAL_INTENSITY.get(modality, "none"))
    intensity: dict[str, object] = {"kind": kind}
    if kind == "fixed_range":
        intensity["input"] = list(_values("Values that become 0 and 1", [-1000, 1000], _RANGE))
    if kind == "percentiles":
        intensity["percentiles"] = list(_values("Percentiles that become 0 and 1", [0.5, 99.5], _PERCENTILES))
    return {"name": name, "intensity": intensity}


def _choose(question: str, choices: Sequence[str], default: str) -> str:
    return str(click.prompt(question, type=click.Choice(choices), default=default, err=True))


def _prompt(question: str, default: str, parse: Callable[[str], Answer]) -> Answer:
    """Asks until an answer can be parsed, each time with a sentence on what is wrong."""

    def checked(text: str) -> Answer:
        try:
            return parse(text)
        except ValidationError as error:
            raise click.UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    answer: Answer = click.prompt(question, default=default, value_proc=checked, err=True)
    return answer


def _values(question: str, default: Sequence[float | None], kind: TypeAdapter[Values]) -> Values:
    """Asks for as many values as the default has, separated by spaces; None for `any`."""
    shown = _ANY if all(value is None for value in default) else " ".join(_shown(value) for value in default)

    def parse(text: str) -> Values:
        words = text.replace(",", " ").split()
        words = words * len(default) if words == [_ANY] else words
        if len(words) != len(default):
            raise ValueError(f"expected {len(default)} values, separated by spaces")
        return kind.validate_python([None if word == _ANY else word for word in words])

    return _prompt(question, shown, parse)


def _orientation(text: str) -> str:
    """Directions in the patient in capitals, or axes of the file as they are."""
    orientation = text.strip()
    orientation = orientation if set(orientation) <= set("ijk") else orientation.upper()
    check_orientation(orientation)
    return orientation


def _labels(text: str, *, outputs: int | None, first: int) -> list[dict[str, object]]:
    """The labels of names that are separated by commas, numbered from `first` on."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError("expected a name for each output, separated by commas")
    if outputs is not None and len(names) != outputs:
        raise ValueError(f"expected {outputs} names, one for each output of the network, got {len(names)}")
    if len(set(names)) < len(names):
        raise ValueError("expected different names")
    labels = [Label(name=name, value=value) for value, name in enumerate(names, first)]
    return [{"name": label.name, "value": label.value} for label in labels]


def _shown(value: float | None) -> str:
    return _ANY if value is None else f"{value:g}"
