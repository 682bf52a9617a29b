"""Writes synthetic DICOM, for tests: one file a slice or one for all, any orientation, syntax and defect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

PATIENT = "Mueller^Hans"
PATIENT_ID = "PID-4711"
CT_INTERCEPT = -1024
Change = Callable[[int, Dataset], None]
Vector = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """Where slices lie, in DICOM's LPS+ mm, and what they hold.

    Attributes:
        voxels: Real values (columns, rows, slices), whole numbers.
        row: Unit vector along a row.
        column: Unit vector along a column.
        pixel_mm: Distance of pixels along a row, and along a column.
        positions_mm: Of each slice's first pixel.
        series_uid: SeriesInstanceUID.
    """

    voxels: NDArray[np.integer]
    row: Vector
    column: Vector
    pixel_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    series_uid: str = "1.2.3.4"
    changes: dict[str, object] = field(default_factory=dict)


def phantom(shape: tuple[int, int, int] = (9, 7, 6)) -> NDArray[np.int16]:
    """An L-shaped organ of 60 HU in a block of −100 HU in air, different on every axis."""
    voxels = np.full(shape, -1000, dtype=np.int16)
    voxels[1:-1, 1:-2, 1:] = -100
    voxels[2:4, 1:5, 2:5] = 60
    voxels[2:7, 4:5, 3:5] = 60
    return voxels


def straight(
    voxels: NDArray[np.integer] | None = None,
    *,
    row: Vector = (1, 0, 0),
    column: Vector = (0, 1, 0),
    pixel_mm: tuple[float, float] = (0.75, 1.25),
    step_mm: float = 2.5,
    drift_mm: Vector = (0, 0, 0),
    origin_mm: Vector = (-30.5, 12.25, -700.0),
) -> Stack:
    """Slices one above another; `drift_mm` is added to each step, in LPS+."""
    voxels = phantom() if voxels is None else voxels
    step = np.cross(row, column) * step_mm + drift_mm
    positions = np.array(origin_mm) + np.outer(np.arange(voxels.shape[2]), step)
    return Stack(voxels, row, column, pixel_mm, positions)


def affine_of(stack: Stack) -> NDArray[np.float64]:
    """Voxel index (column, row, slice) to RAS+ mm, of a stack whose positions are even."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(stack.row) * stack.pixel_mm[0]
    affine[:3, 1] = np.array(stack.column) * stack.pixel_mm[1]
    affine[:3, 2] = np.diff(stack.positions_mm[:2], axis=0)[0]
    affine[:3, 3] = stack.positions_mm[0]
    return np.diag([-1.0, -1, 1, 1]) @ affine


def write(
    folder: Path,
    stack: Stack,
    *,
    syntax: str = ExplicitVRLittleEndian,
    shuffled: bool = True,
    change: Change = lambda k, dataset: None,
) -> list[Path]:
    """Writes a CT series, a file for each slice, under names that say nothing of their order.

    Args:
        folder: Made where it is missing.
        stack: What to write.
        syntax: An uncompressed transfer syntax.
        shuffled: Whether names are in another order than slices.
        change: Called with each slice's index and what is about to be written; may change it.

    Returns:
        The files, in the order of slices.
    """
    folder.mkdir(exist_ok=True, parents=True)
    count = stack.voxels.shape[2]
    names = np.random.default_rng(5).permutation(count) if shuffled else np.arange(count)
    paths = []
    for k, name in enumerate(names):
        dataset = _plain(CTImageStorage, stack, syntax)
        dataset.SOPInstanceUID = f"{stack.series_uid}.{k + 1}"
        # As scanners do, and no reader should rely on.
        dataset.InstanceNumber = count - k
        dataset.SliceThickness = 7
        dataset.ImagePositionPatient = [*map(float, stack.positions_mm[k])]
        dataset.ImageOrientationPatient = [*map(float, stack.row), *map(float, stack.column)]
        dataset.PixelSpacing = [stack.pixel_mm[1], stack.pixel_mm[0]]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, CT_INTERCEPT
        set_stored(dataset, (stack.voxels[:, :, k] - CT_INTERCEPT).astype(np.uint16).T)
        change(k, dataset)
        paths.append(save(dataset, folder / f"{name:04}"))
    return paths


def write_enhanced(path: Path, stack: Stack, *, modality: str = "CT", shared: bool = True) -> Path:
    """Writes a multi-frame object, frames in a mixed order, orientation and spacing shared or in each frame."""
    kind = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    dataset = _plain(kind, stack, ExplicitVRLittleEndian)
    dataset.Modality = modality
    order = np.random.default_rng(3).permutation(stack.voxels.shape[2])
    dataset.NumberOfFrames = len(order)
    measures, orientation, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [stack.pixel_mm[1], stack.pixel_mm[0]], 7
    orientation.ImageOrientationPatient = [*map(float, stack.row), *map(float, stack.column)]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, CT_INTERCEPT, "HU"

    def add_common(item: Dataset) -> Dataset:
        item.PixelMeasuresSequence = Items([measures])
        item.PlaneOrientationSequence = Items([orientation])
        item.PixelValueTransformationSequence = Items([values])
        return item

    frames = []
    for k in order:
        position, item = Dataset(), Dataset()
        position.ImagePositionPatient = [*map(float, stack.positions_mm[k])]
        item.PlanePositionSequence = Items([position])
        frames.append(item if shared else add_common(item))
    dataset.SharedFunctionalGroupsSequence = Items([add_common(Dataset()) if shared else Dataset()])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    set_stored(dataset, (stack.voxels[:, :, order] - CT_INTERCEPT).astype(np.uint16).transpose(2, 1, 0))
    return save(dataset, path)


def write_mr(folder: Path, stack: Stack) -> list[Path]:
    """Writes an MR series of the same geometry, its values lifted to 0 and more."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
        dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.RescaleIntercept = 0

    return write(folder, stack, change=change)


def setting(name: str, value: object, *, only: int | None = None) -> Change:
    """A change that sets an element, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        if only is None or k == only:
            setattr(dataset, name, value)

    return change


def without(*names: str, only: int | None = None) -> Change:
    """A change that removes elements, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        for name in names if only is None or k == only else ():
            delattr(dataset, name)

    return change


def storing(stored: NDArray[np.integer], *, only: int | None = None) -> Change:
    """A change of the stored values, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        if only is None or k == only:
            set_stored(dataset, stored)

    return change


def set_stored(dataset: Dataset, stored: NDArray[np.integer], *, bits: int = 16) -> None:
    """Puts stored values, shape (rows, columns) or (frames, rows, columns), into a file of native syntax."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    big_endian = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path) -> Path:
    """Writes a data set in the transfer syntax that its meta information names."""
    path.parent.mkdir(exist_ok=True, parents=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _plain(kind: str, stack: Stack, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(kind), UID(f"{stack.series_uid}.9")
    meta.TransferSyntaxUID = UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, f"{stack.series_uid}.9"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = stack.series_uid, "1.2.9"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = PATIENT, PATIENT_ID
    dataset.PatientBirthDate, dataset.AccessionNumber = "19610203", "A-0815"
    for name, value in stack.changes.items():
        setattr(dataset, name, value)
    return dataset


SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
