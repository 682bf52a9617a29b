"""The data set of a results folder: channels of its scans, and labels or regions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_service.contract.manifest_types import Modality
from inference_service.importers.nnunet.fields import Fields, Json, read_json, shown
from inference_service.importers.nnunet.results_folder import DATASET_FILE

_BACKGROUND = "background"
_IGNORE = "ignore"
_MAX_LABELS = 4096
_MAX_CHANNELS = 64
_MAX_VALUE = 65535
_MAX_NAME = 64
# What the first word of a channel's name is, in lower case, where people name the modality or the sequence.
_MODALITIES: Sequence[tuple[str, Modality]] = (
    ("ct|cta|cbct", "CT"),
    (r"mri?|t1\w*|t2\w*|flair|adc|dwi|pd|swi", "MR"),
    ("pet|pt|suv", "PT"),
    ("us|ultrasound", "US"),
)
_FACTS = {
    "name": "Data set",
    "description": "Description of the data",
    "reference": "Reference of the data",
    "licence": "Licence of the data",
    "license": "Licence of the data",
    "release": "Release of the data",
    "numTraining": "Scans in the training",
}
_MAX_FACT = 2000


@dataclass(frozen=True)
class Output:
    """What an output channel of the network decides.

    Attributes:
        name: The label, or the region.
        value: Its value in the mask.
        labels: The values of the label, or of those of the region, in the data set, ascending.
    """

    name: str
    value: int
    labels: tuple[int, ...]


class Dataset:
    """The content of dataset.json.

    Args:
        folder: The results folder.

    Attributes:
        channels: Names of the input channels.
        outputs: The output channels, in the network's order.
        has_regions: Whether the channels are regions, which may overlap: later ones overwrite earlier ones.
        values: The values of all labels but the background, ascending: those of a cascade's further channels.

    Raises:
        InputNotFound: The folder has no dataset.json.
        ModelInvalid: That is damaged, or contradicts itself.
    """

    def __init__(self, folder: Path) -> None:
        self.fields = read_json(folder / DATASET_FILE)
        self.channels = _channels(self.fields)
        labels = self.fields.child("labels")
        values = {name: _values(labels, name) for name in labels.values if name != _IGNORE}
        if values.get(_BACKGROUND) != [0]:
            labels.refuse(_BACKGROUND, f"expected 0, got {shown(labels.values.get(_BACKGROUND))}")
        if len(values) > _MAX_LABELS:
            self.fields.refuse("labels", f"expected at most {_MAX_LABELS} labels, got {len(values)}")
        self.has_regions = any(isinstance(each, list) and len(each) > 1 for each in labels.values.values())
        self.values = sorted({value for each in values.values() for value in each} - {0})
        if _IGNORE in labels and labels.whole(_IGNORE, 0, _MAX_VALUE) != max(self.values, default=0) + 1:
            labels.refuse(_IGNORE, f"expected the value after all others, {max(self.values, default=0) + 1}")
        if self.has_regions:
            if isinstance(labels.values[_BACKGROUND], str):
                labels.refuse(_BACKGROUND, 'expected 0 as a number: beside regions, nnU-Net takes "0" for a region')
            self.outputs = self._regions({name: each for name, each in values.items() if any(each)})
        else:
            self.outputs = _labels(labels, {each[0]: name for name, each in values.items()})

    @property
    def file_ending(self) -> str:
        """The ending of the files that nnU-Net reads."""
        return self.fields.text("file_ending", ".nii.gz")

    def modalities(self) -> list[Modality | None]:
        """Returns the modality of each channel, as far as its name tells it."""
        words = [re.split("[^a-z0-9]+", name.lower())[0] for name in self.channels]
        return [next((kind for known, kind in _MODALITIES if re.fullmatch(known, word)), None) for word in words]

    def facts(self) -> dict[str, str]:
        """Returns what dataset.json says about the data, by heading."""
        found = {heading: self.fields.values.get(key) for key, heading in _FACTS.items() if key in self.fields}
        return {
            heading: str(value)[:_MAX_FACT]
            for heading, value in found.items()
            if isinstance(value, str | int) and str(value).strip()
        }

    def label_fields(self) -> dict[str, object]:
        """Returns the fields of a manifest that decide labels."""
        return {
            "labels": [{"name": output.name, "value": output.value} for output in self.outputs],
            "activation": "sigmoid" if self.has_regions else "softmax",
            "outputs": [{"channel": channel, "value": output.value} for channel, output in enumerate(self.outputs)],
        }

    def _regions(self, regions: Mapping[str, Sequence[int]]) -> list[Output]:
        order = self.fields.wholes("regions_class_order", 1, _MAX_VALUE)
        if len(order) != len(regions) or len(set(order)) < len(order):
            self.fields.refuse("regions_class_order", f"expected {len(regions)} different values, one for each region")
        named = zip(_unique(list(regions)), order, regions.values(), strict=True)
        return [Output(name, value, tuple(labels)) for name, value, labels in named]


def _channels(fields: Fields) -> list[str]:
    # nnU-Net 1 said modality.
    key = "channel_names" if "channel_names" in fields else "modality"
    names = fields.child(key).values
    if not 1 <= len(names) <= _MAX_CHANNELS or set(names) != {str(number) for number in range(len(names))}:
        fields.refuse(key, f"expected names of 1 to {_MAX_CHANNELS} channels under 0, 1, …")
    return _unique([str(names[str(number)]) for number in range(len(names))])


def _labels(labels: Fields, names: dict[int, str]) -> list[Output]:
    if sorted(names) != list(range(len(labels.values) - (_IGNORE in labels.values))):
        wrong = next((name for value, name in sorted(names.items()) if value >= len(names)), None)
        # Where there is no gap, a value occurs twice.
        problem = "a value occurs twice" if wrong is None else f"{wrong} has {shown(labels.values[wrong])}"
        Fields({}, labels.file).refuse(
            "labels", f"expected the values 0, 1, … once each, as channels have them; {problem}"
        )
    unique = _unique([names[value] for value in range(len(names))])
    return [Output(name, value, (value,)) for value, name in enumerate(unique)]


def _values(labels: Fields, name: str) -> list[int]:
    value: Json = labels.values[name]
    if isinstance(value, list) and not value:
        labels.refuse(name, "expected at least one value")
    return sorted(set(labels.numbers_or_text(name, 0, _MAX_VALUE)))


def _unique(names: Sequence[str]) -> list[str]:
    """Names without control characters and backslashes, with a number where two are equal."""
    cleaned = [
        "".join(letter for letter in name.replace("\\", "/") if letter.isprintable()).strip()[:_MAX_NAME]
        or f"number {number}"
        for number, name in enumerate(names)
    ]
    return [
        name if cleaned.count(name) == 1 else f"{name[: _MAX_NAME - 6]} {number}" for number, name in enumerate(cleaned)
    ]
