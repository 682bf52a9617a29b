"""The summary of a model: the fields of its manifest by which people choose it, bounded in length."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from inference_service.contract.labels import Rgb
from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colours

_MAX_TEXT = 2000
_MAX_LABELS = 1000


class _Part(BaseModel):
    # A later version may have written further fields.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ChannelSummary(_Part):
    """An input channel: a job has a scan for each."""

    name: str
    modality: str = Field(description="Modality of the channel's scan: CT, MR, PT, US or other.")


class LabelSummary(_Part):
    """A label of the mask."""

    value: int
    name: str
    colour: Rgb = Field(description="Red, green and blue, 0 to 255, as in previews and segmentations.")


class ModelSummary(_Part):
    """The fields of a manifest by which people choose a model."""

    description: str
    licence: str = Field(description="SPDX identifier of the licence of the weights.")
    intended_use: str
    modality: str = Field(description="CT, MR, PT, US or other.")
    channels: tuple[ChannelSummary, ...] = Field(
        description="The input channels. Of several, a request names a scan for each."
    )
    spacing_mm: tuple[float | None, float | None, float | None] = Field(
        description="Voxel size along each axis of the network, in mm; null: that of the scan. Of several parts, that "
        "of the first one."
    )
    labels: tuple[LabelSummary, ...] = Field(
        description=f"The labels of the mask but the background; the first {_MAX_LABELS} of them."
    )
    label_count: int = Field(description="Number of all these labels.")

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Returns the summary of a manifest. Long texts and lists are cut, as the manifest may be a stranger's."""
        modalities = {channel.name: channel.modality or manifest.modality for channel in manifest.channels}
        colours = label_colours(manifest.labels)
        labels = [label for label in manifest.labels if label.value in colours]
        return cls(
            description=_plain(manifest.description),
            licence=_plain(manifest.licence),
            intended_use=_plain(manifest.intended_use),
            modality=manifest.modality,
            channels=tuple(ChannelSummary(name=name, modality=modality) for name, modality in modalities.items()),
            spacing_mm=manifest.all_parts[0].spacing_mm,
            labels=tuple(
                LabelSummary(value=label.value, name=label.name, colour=colours[label.value])
                for label in labels[:_MAX_LABELS]
            ),
            label_count=len(labels),
        )


def _plain(text: str) -> str:
    """Returns the begin of a text without control characters, of which Postgres stores not all.

    >>> _plain("two\\nlines\\0")
    'two\\nlines'
    """
    printable = "".join(each for each in text[: 2 * _MAX_TEXT] if each == "\n" or each.isprintable())
    return printable if len(printable) <= _MAX_TEXT else f"{printable[: _MAX_TEXT - 1]}…"
