"""Asks for what a network's file does not say: the answers are a short config."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import click

from inference_service.cli.display import printable
from inference_service.contract.manifest_types import Modality
from inference_service.core.errors import BadRequest
from inference_service.core.settings import Settings
from inference_service.importers.request import ImportRequest

if TYPE_CHECKING:
    from inference_service.importers.questions import OpenSource

_ANSWERS = "answers.json"
_ANY = "any"
_INTENSITIES = ("none", "z_score", "min_max", "fixed_range", "percentiles")
_USUAL_INTENSITY = {"CT": "fixed_range", "MR": "z_score"}


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
    with undescribed(request.source, settings) as source:
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
    """Asks for the fields of a short config, with what is known or usual as defaults."""
    from inference_service.importers.short_config import draft

    signature = source.describe()
    known = draft(signature)
    if modality is None:
        modality = _choose("Modality of the scans", get_args(Modality), "other")
    count = signature.channels or click.prompt("Number of input channels", type=click.IntRange(1), default=1, err=True)
    names = [channel["name"] for channel in known["channels"]]  # type: ignore[attr-defined]
    names = names if len(names) == count else [f"channel {number}" for number in range(count)]
    channels = [_ask_channel(name, modality) for name in names]
    orientation = click.prompt("Directions of the network's axes", default=str(known["orientation"]), err=True).upper()
    spacing_mm = _numbers("Voxel size along them in mm, or any", [None] * 3)
    window: list[float | None] = list(known["window"])  # type: ignore[call-overload]
    if signature.window is None:
        window = _numbers("Voxels of a window (1 along the axis that planes lack), or any", window)
    sizes = [None if size is None else int(size) for size in window]
    if signature.outputs is None:
        signature = source.describe(sizes)
        known = draft(signature)
    activation = _choose("Decision on labels", ("softmax", "sigmoid"), str(known["activation"]))
    usual = printable(", ".join(label["name"] for label in known["labels"]))  # type: ignore[attr-defined]
    names = [name.strip() for name in click.prompt("Labels, in the order of the outputs", usual, err=True).split(",")]
    first = 0 if activation == "softmax" else 1
    return {
        "modality": modality,
        "channels": channels,
        "orientation": orientation,
        "spacing_mm": spacing_mm,
        "window": sizes,
        "activation": activation,
        "labels": [{"name": name, "value": number + first} for number, name in enumerate(names)],
    }


def _ask_channel(name: str, modality: str) -> dict[str, object]:
    name = click.prompt("Name of the channel", default=name, err=True)
    kind = _choose(f"Intensities of {name}", _INTENSITIES, _USUAL_INTENSITY.get(modality, "none"))
    intensity: dict[str, object] = {"kind": kind}
    if kind == "fixed_range":
        intensity["input"] = _numbers("Values that become 0 and 1", [-1000, 1000])
    if kind == "percentiles":
        intensity["percentiles"] = _numbers("Percentiles that become 0 and 1", [0.5, 99.5])
    return {"name": name, "intensity": intensity}


def _choose(question: str, choices: Sequence[str], default: str) -> str:
    return str(click.prompt(question, type=click.Choice(choices), default=default, err=True))


def _numbers(question: str, default: Sequence[float | None]) -> list[float | None]:
    """Asks for as many numbers as the default has, separated by spaces; null for `any`."""
    shown = _ANY if all(value is None for value in default) else " ".join(_shown(value) for value in default)
    while True:
        words = click.prompt(question, default=shown, err=True).replace(",", " ").split()
        words = words * len(default) if words == [_ANY] else words
        try:
            numbers = [None if word == _ANY else float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) == len(default):
            return numbers
        click.echo(f"Expected {len(default)} numbers, separated by spaces.", err=True)


def _shown(value: float | None) -> str:
    return _ANY if value is None else f"{value:g}"
