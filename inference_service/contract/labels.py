"""The labels of a mask, their codes for DICOM, and the steps that clean them."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from inference_service.contract.manifest_types import LabelValue, Strict

_Shade = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[_Shade, _Shade, _Shade]
"""Red, green and blue, 0 to 255."""

# No control character, and no backslash, which separates values in DICOM.
_DICOM_TEXT = r"^[^\x00-\x1f\x7f\\]{1,64}$"


class CodedConcept(Strict):
    """A coded concept as in DICOM PS3.3 Table 8.8-1, for example SCT, 39607008, Lung."""

    scheme: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="Coding scheme designator; SCT is SNOMED CT.")
    value: str = Field(pattern=r"^[!-\[\]-~]{1,16}$", description="Code value in the coding scheme.")
    meaning: str = Field(pattern=_DICOM_TEXT, description="Code meaning, as text for people.")


class Label(Strict):
    """A label of the mask; by default, that of the output channel with its index."""

    name: str = Field(pattern=_DICOM_TEXT)
    value: LabelValue = Field(description="Value of the label in the mask.")
    category: CodedConcept | None = Field(
        None,
        description="Segmented Property Category for DICOM, from PS3.16 CID 7150, for example SCT, 123037004, "
        "Anatomical Structure. Default: SCT, 85756007, Tissue.",
    )
    type: CodedConcept | None = Field(
        None,
        description="Segmented Property Type for DICOM, for example SCT, 39607008, Lung. Default: SCT, 85756007, "
        "Tissue.",
    )
    modifier: CodedConcept | None = Field(
        None, description="Segmented Property Type Modifier for DICOM, for example SCT, 7771000, Left."
    )
    colour: Rgb | None = Field(
        None, description="Red, green and blue, 0 to 255. Default: one of this service's palette."
    )

    @model_validator(mode="after")
    def _type_is_known(self) -> Self:
        if self.modifier is not None and self.type is None:
            raise ValueError("a modifier needs the type that it modifies")
        return self


StepGrid = Annotated[
    Literal["scan", "network"],
    Field(
        description="The grid that the step is applied on. network: that of the network, before its labels go back to "
        "the scan. It needs a model of one part, with logits_interpolation nearest."
    ),
]


Connectivity = Annotated[
    Literal["faces", "edges", "corners"],
    Field(
        description="Which voxels belong together: those that share a face, or also those that share an edge, or also "
        "a corner (6, 18 or 26 neighbours; 1, 2 or 3 in SciPy and MONAI)."
    ),
]


class _ComponentStep(Strict):
    labels: tuple[int, ...] = Field(min_length=1)
    grid: StepGrid = "scan"
    connectivity: Connectivity = "corners"
    becomes: LabelValue | Literal["surroundings"] = Field(
        0,
        description="New value of the removed voxels. surroundings: for each component, the value with which it shares "
        "the most voxel faces.",
    )


class LargestComponent(_ComponentStep):
    """Removes all but the largest component of each label; of several of one size, all are kept."""

    step: Literal["largest_component"]
    together: bool = Field(
        False,
        description="Whether the labels count as one structure, of which the largest component is kept (nnU-Net's "
        "regions), instead of each label by itself.",
    )


class RemoveSmallComponents(_ComponentStep):
    """Removes the components of each label that are smaller than `min_volume_ml`, or smaller than `min_share` of its
    largest component."""

    step: Literal["remove_small"]
    min_volume_ml: PositiveFloat
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Smallest size that is kept, as a share of the label's largest component. It lets both parts stay "
        "of an organ that a scan may show in two parts, such as the base of a lung.",
    )


class FillHoles(Strict):
    """Gives a label all voxels that it encloses: those from which no path of connected voxels leads around the label to
    the border of the mask."""

    step: Literal["fill_holes"]
    labels: tuple[int, ...] = Field(min_length=1)
    grid: StepGrid = "scan"
    connectivity: Connectivity = "corners"


PostProcessing = Annotated[LargestComponent | RemoveSmallComponents | FillHoles, Field(discriminator="step")]
