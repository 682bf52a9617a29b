"""Types that the parts of a manifest share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SHA256_PATTERN = r"^[0-9a-f]{64}$"

Modality = Literal["CT", "MR", "PT", "US", "other"]
Percent = Annotated[float, Field(ge=0, le=100)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]
Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]


def _increasing(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError(f"expected two increasing numbers, got {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_increasing)]
PercentRange = Annotated[tuple[Percent, Percent], AfterValidator(_increasing)]


class Strict(BaseModel):
    """An immutable part of a manifest, in which unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
