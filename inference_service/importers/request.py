"""What an import is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference_service.contract.manifest_types import Modality

CheckpointKind = Literal["final", "best"]
"""The checkpoints that nnU-Net keeps of a fold."""


@dataclass(frozen=True)
class ImportRequest:
    """What is imported, and as what.

    Attributes:
        source: The source.
        name: Name of the model.
        version: Its version.
        licence: SPDX identifier of the licence of the weights; None: what the source states.
        config: See `ImportOptions`.
        labels: A file with labels; None: the source's own.
        allow_code: See `ImportOptions`.
        float16: Whether the networks are converted to float16.
        bf16: Whether the manifest allows bfloat16.
        configuration, folds, checkpoint, mirroring, task, roi, crop_by, label_table: See `ImportOptions`.
        modality: Modality of the model; None: what the source states.
        compare: The files of a scan, one for each channel, on which the model is compared with the source's own
            predictor; none: it is not compared.
    """

    source: Path
    name: str
    version: str
    licence: str | None = None
    config: Path | None = None
    labels: Path | None = None
    allow_code: bool = False
    float16: bool = False
    bf16: bool = False
    configuration: str | None = None
    folds: tuple[str, ...] | None = None
    checkpoint: CheckpointKind = "final"
    mirroring: bool = True
    modality: Modality | None = None
    task: str | None = None
    roi: tuple[str, ...] = ()
    crop_by: str | None = None
    label_table: Path | None = None
    compare: tuple[Path, ...] = ()
