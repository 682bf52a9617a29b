"""What an importer reads from a source: the interface between the kinds of sources and everything that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Protocol

from pydantic import Field

from inference_service.contract.labels import Label
from inference_service.contract.manifest_types import Strict
from inference_service.contract.part import OutputChannel
from inference_service.importers.isolation import Isolation
from inference_service.importers.request import SourceOptions

# The least voxels along an axis of any size.
_FREE_AXIS_VOXELS = 64


class LabelChoice(Strict):
    """The content of the file of `--labels`: the labels of the mask, and the channels that decide them."""

    labels: tuple[Label, ...] = Field(min_length=1, description="The labels of the mask, as in a manifest.")
    outputs: tuple[OutputChannel, ...] = Field(
        (),
        description="The value of each output channel, in the order in which sigmoid channels write. Default: one for "
        "each label, in the order of the labels.",
    )


@dataclass(frozen=True)
class ImportOptions(SourceOptions):
    """What is asked for, beside the source.

    Attributes:
        scratch: A folder for temporary files.
        labels: Labels that take the place of the source's; None: the source's own.
        models_path: The folder of all models.
    """

    scratch: Path
    labels: LabelChoice | None = None
    models_path: Path = Path("models")

    @property
    def isolation(self) -> Isolation:
        """Where the tasks of the import run."""
        return Isolation(self.scratch, self.time_limit_s)


@dataclass(frozen=True)
class NetworkRecipe:
    """How a process of its own builds one network.

    Attributes:
        file: Name of the ONNX file in the model's folder.
        builder: Name of the builder in `isolated.builders`.
        arguments: Its arguments, as JSON.
        input_shape: Channels and spatial size of an input that the network takes, (channels, *window).
        free_axes: Spatial axes (0, 1, 2) along which the network takes other sizes too.
    """

    file: str
    builder: str
    arguments: Mapping[str, object]
    input_shape: tuple[int, ...]
    free_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class NetworkCopy:
    """A network that is an ONNX file already.

    Attributes:
        file: Name of the ONNX file in the model's folder.
        source: The file.
        external_data: Names of the files beside it that hold tensors.
    """

    file: str
    source: Path
    external_data: Sequence[str] = ()


@dataclass(frozen=True)
class Reference:
    """How a process of its own runs the source's own predictor.

    Attributes:
        predictor: Name of the predictor in `isolated.prediction`.
        arguments: Its arguments, as JSON.
        shares_memory: Whether it starts processes with which it shares memory.
    """

    predictor: str
    arguments: Mapping[str, object]
    shares_memory: bool = False


@dataclass(frozen=True)
class Taken:
    """A part of the manifest, and the place in the source that it was taken from."""

    what: str
    where: str


@dataclass(frozen=True)
class StatedDice:
    """Dice coefficients that a source states about itself. This service has not measured them.

    Attributes:
        where: The place in the source, and what was measured.
        mean: The mean over the labels; None: it is undefined, as where a label does not occur.
        labels: That of each label, by name, as far as they are stated.
    """

    where: str
    mean: float | None
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedModel:
    """A model as a source describes it, before its networks are exported.

    Attributes:
        kind: The kind of source, such as MONAI bundle.
        manifest: The fields of the manifest without name, version, licence and the checksums of the networks.
        networks: The networks.
        licence: SPDX identifier of the licence that the source states; None: it states none.
        taken: The parts of the manifest, and their places in the source.
        assumed: What the source does not say, and what differs from it: sentences for the model's card.
        facts: What the source says about itself: lines for the model's card, by heading.
        stated_dice: What it says about its accuracy; None: nothing.
        reference: The source's own predictor; None: there is none.
        code: Classes of the source's own Python that are run.
    """

    kind: str
    manifest: Mapping[str, object]
    networks: Sequence[NetworkRecipe | NetworkCopy]
    licence: str | None = None
    taken: Sequence[Taken] = ()
    assumed: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    stated_dice: StatedDice | None = None
    reference: Reference | None = None
    code: Sequence[str] = ()


class Importer(Protocol):
    """Reads one kind of source.

    Attributes:
        kind: The kind, such as MONAI bundle.
        options: The options of `ImportOptions` that such a source takes, of those that not all sources take.
    """

    kind: str
    options: frozenset[str]

    def recognises(self, source: Path) -> bool:
        """Returns True if a file or folder is a source of this kind, as its content says."""

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """Reads a source.

        Raises:
            ModelInvalid: The source is damaged, contradicts itself, or has what a manifest cannot say.
            InputNotFound: A part of it is missing.
        """


def tried_size(window: Sequence[int | None], multiple_of: int = 1) -> tuple[int, ...]:
    """Returns the size of an input by which a network is exported.

    >>> tried_size((96, None), 48)
    (96, 96)

    Args:
        window: Voxels along each axis that the network has; None: any number.
        multiple_of: What the number of voxels along such an axis is a multiple of.
    """
    free = multiple_of * ceil(_FREE_AXIS_VOXELS / multiple_of)
    return tuple(size or free for size in window)
