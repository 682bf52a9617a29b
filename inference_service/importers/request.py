"""What an import is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference_service.contract.manifest_types import Modality

CheckpointKind = Literal["final", "best"]
"""The checkpoints that nnU-Net keeps of a fold."""
DEFAULT_TIME_LIMIT_S = 3600
"""An export takes minutes, and the predictor of five folds on a large scan up to an hour on a few cores."""
MAX_TIME_LIMIT_S = 604_800
"""A week."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of sources, most of which only some kinds take.

    Attributes:
        config: Which config of a bundle, or a short config for TorchScript and ONNX; None: the usual one, or none.
        configuration: Which of nnU-Net's configurations; None: the only one, or the one that nnU-Net chose.
        folds: Which of nnU-Net's folds; None: those that nnU-Net chose, or all.
        checkpoint: Which of nnU-Net's checkpoints.
        mirroring: Whether mirrored windows are averaged, where the training allows it.
        modality: Modality of the model; None: the source's.
        allow_code: Whether Python of the source may build its network.
        task: Which of TotalSegmentator's tasks; None: the only one.
        roi: The labels of TotalSegmentator that are kept; none: all.
        crop_by: The installed model to whose labels TotalSegmentator's scans are cropped, as name or name/version.
        label_table: A table with codes and colours of TotalSegmentator's labels; None: that of its package.
        time_limit_s: The most seconds that a step in a process of its own may take.
    """

    config: Path | None = None
    configuration: str | None = None
    folds: tuple[str, ...] | None = None
    checkpoint: CheckpointKind = "final"
    mirroring: bool = True
    modality: Modality | None = None
    allow_code: bool = False
    task: str | None = None
    roi: tuple[str, ...] = ()
    crop_by: str | None = None
    label_table: Path | None = None
    time_limit_s: float = DEFAULT_TIME_LIMIT_S


@dataclass(frozen=True)
class ImportRequest(SourceOptions):
    """What is imported, and as what.

    Attributes:
        source: The source.
        name: Name of the model.
        version: Its version.
        licence: SPDX identifier of the licence of the weights; None: the source's.
        labels: A file with labels; None: the source's own.
        float16: Whether the networks are converted to float16.
        bf16: Whether the manifest allows bfloat16.
        compare: The files of a scan, one for each channel, on which the model is compared with the source's own
            predictor; none: it is not compared.
    """

    source: Path
    name: str
    version: str
    licence: str | None = None
    labels: Path | None = None
    float16: bool = False
    bf16: bool = False
    compare: tuple[Path, ...] = ()
