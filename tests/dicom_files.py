"""Writes synthetic DICOM series for tests, single-frame or multi-frame, of any orientation, syntax and defect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path
from weakref import finalize

import highdicom
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
from scipy.spatial.transform import Rotation

PATIENT = "Mueller^Hans"
PATIENT_ID = "PID-4711"
CT_INTERCEPT = -1024
NATIVE_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# Called with the index of a slice and its data set before it is written; it may change the data set.
Change = Callable[[int, Dataset], None]
Vector = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """Positions of slices, in DICOM's LPS+ mm, and their voxels.

    Attributes:
        voxels: Real values (columns, rows, slices), integers.
        row: Unit vector along a row.
        column: Unit vector along a column.
        pixel_mm: Distance between pixels along a row, then along a column.
        positions_mm: Centre of each slice's first pixel.
        series_uid: SeriesInstanceUID.
        changes: Further attributes of every file, by keyword.
    """

    voxels: NDArray[np.integer]
    row: Vector
    column: Vector
    pixel_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    series_uid: str = "1.2.3.4"
    changes: dict[str, object] = field(default_factory=dict)


def phantom(shape: tuple[int, int, int] = (9, 7, 6)) -> NDArray[np.int16]:
    """An L-shaped organ of 60 HU in a block of −100 HU in air, different along every axis."""
    voxels = np.full(shape, -1000, dtype=np.int16)
    voxels[1:-1, 1:-2, 1:] = -100
    voxels[2:4, 1:5, 2:5] = 60
    voxels[2:7, 4:5, 3:5] = 60
    return voxels


def regular_stack(
    voxels: NDArray[np.integer] | None = None,
    *,
    row: Vector = (1, 0, 0),
    column: Vector = (0, 1, 0),
    pixel_mm: tuple[float, float] = (0.75, 1.25),
    step_mm: float = 2.5,
    drift_mm: Vector = (0, 0, 0),
    origin_mm: Vector = (-30.5, 12.25, -700.0),
) -> Stack:
    """Evenly spaced slices at right angles to their stack; `drift_mm` is added to each step, in LPS+."""
    voxels = phantom() if voxels is None else voxels
    step = np.cross(row, column) * step_mm + drift_mm
    positions = np.array(origin_mm) + np.outer(np.arange(voxels.shape[2]), step)
    return Stack(voxels, row, column, pixel_mm, positions)


def with_heights(stack: Stack, heights_mm: Vector) -> Stack:
    """The stack with slices at other heights; voxels are repeated for as many slices."""
    normal = np.cross(stack.row, stack.column)
    positions = stack.positions_mm[0] + np.outer(heights_mm, normal)
    voxels = np.stack([stack.voxels[:, :, k % stack.voxels.shape[2]] for k in range(len(heights_mm))], axis=2)
    return replace(stack, voxels=voxels, positions_mm=positions)


def oblique_rotation() -> NDArray[np.float64]:
    """A rotation about all three axes; shape (3, 3)."""
    return Rotation.from_euler("xyz", (8, -11, 14), degrees=True).as_matrix()


def axis_directions() -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """All 24 pairs of row and column directions along the world's axes; the normal follows from them."""
    unit = np.eye(3)
    return [(a * unit[i], b * unit[j]) for i, j in permutations(range(3), 2) for a, b in product((1.0, -1.0), repeat=2)]


def affine_of(stack: Stack) -> NDArray[np.float64]:
    """Voxel index (column, row, slice) to RAS+ mm, of a stack with even spacing."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(stack.row) * stack.pixel_mm[0]
    affine[:3, 1] = np.array(stack.column) * stack.pixel_mm[1]
    affine[:3, 2] = np.diff(stack.positions_mm[:2], axis=0)[0]
    affine[:3, 3] = stack.positions_mm[0]
    return np.diag([-1.0, -1, 1, 1]) @ affine


def write_series(
    folder: Path,
    stack: Stack,
    *,
    syntax: str = ExplicitVRLittleEndian,
    shuffled: bool = True,
    change: Change = lambda k, dataset: None,
) -> list[Path]:
    """Writes a CT series, one file a slice, under names that do not give their order.

    Args:
        folder: Created if it is missing.
        stack: The slices.
        syntax: An uncompressed transfer syntax.
        shuffled: Whether the order of names differs from that of slices.
        change: Applied to each slice before it is written.

    Returns:
        The files, in the order of slices.
    """
    folder.mkdir(exist_ok=True, parents=True)
    count = stack.voxels.shape[2]
    names = np.random.default_rng(5).permutation(count) if shuffled else np.arange(count)
    paths = []
    for k, name in enumerate(names):
        dataset = _new_dataset(CTImageStorage, stack, syntax)
        dataset.SOPInstanceUID = f"{stack.series_uid}.{k + 1}"
        # In reverse order, as some scanners number them; a reader must not rely on it.
        dataset.InstanceNumber = count - k
        dataset.SliceThickness = 7
        dataset.ImagePositionPatient = [*map(float, stack.positions_mm[k])]
        dataset.ImageOrientationPatient = [*map(float, stack.row), *map(float, stack.column)]
        dataset.PixelSpacing = [stack.pixel_mm[1], stack.pixel_mm[0]]
        dataset.RescaleSlope = 1
        dataset.RescaleIntercept = CT_INTERCEPT
        set_stored_values(dataset, (stack.voxels[:, :, k] - CT_INTERCEPT).astype(np.uint16).T)
        change(k, dataset)
        paths.append(save(dataset, folder / f"{name:04}"))
    return paths


def write_enhanced(path: Path, stack: Stack, *, modality: str = "CT", shared: bool = True) -> Path:
    """Writes a multi-frame instance with frames in mixed order, and orientation and spacing shared or per frame."""
    sop_class_uid = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    dataset = _new_dataset(sop_class_uid, stack, ExplicitVRLittleEndian)
    dataset.Modality = modality
    order = np.random.default_rng(3).permutation(stack.voxels.shape[2])
    dataset.NumberOfFrames = len(order)
    measures = Dataset()
    measures.PixelSpacing = [stack.pixel_mm[1], stack.pixel_mm[0]]
    measures.SliceThickness = 7
    orientation = Dataset()
    orientation.ImageOrientationPatient = [*map(float, stack.row), *map(float, stack.column)]
    transformation = Dataset()
    transformation.RescaleSlope = 1
    transformation.RescaleIntercept = CT_INTERCEPT
    transformation.RescaleType = "HU"

    def add_common(item: Dataset) -> Dataset:
        item.PixelMeasuresSequence = Items([measures])
        item.PlaneOrientationSequence = Items([orientation])
        item.PixelValueTransformationSequence = Items([transformation])
        return item

    frames = []
    for k in order:
        position = Dataset()
        position.ImagePositionPatient = [*map(float, stack.positions_mm[k])]
        item = Dataset()
        item.PlanePositionSequence = Items([position])
        frames.append(item if shared else add_common(item))
    dataset.SharedFunctionalGroupsSequence = Items([add_common(Dataset()) if shared else Dataset()])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    set_stored_values(dataset, (stack.voxels[:, :, order] - CT_INTERCEPT).astype(np.uint16).transpose(2, 1, 0))
    return save(dataset, path)


def write_mr(folder: Path, stack: Stack) -> list[Path]:
    """Writes an MR series of the same geometry, with values shifted to 0 and above."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = MRImageStorage
        dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.Modality = "MR"
        dataset.RescaleIntercept = 0

    return write_series(folder, stack, change=change)


def with_attribute(keyword: str, value: object, *, only: int | None = None) -> Change:
    """A change that sets an attribute, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        if only is None or k == only:
            setattr(dataset, keyword, value)

    return change


def without_attributes(*keywords: str, only: int | None = None) -> Change:
    """A change that removes attributes, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        for keyword in keywords if only is None or k == only else ():
            delattr(dataset, keyword)

    return change


def with_stored_values(stored: NDArray[np.integer], *, only: int | None = None) -> Change:
    """A change that sets stored values, of one slice only or of all."""

    def change(k: int, dataset: Dataset) -> None:
        if only is None or k == only:
            set_stored_values(dataset, stored)

    return change


def set_stored_values(dataset: Dataset, stored: NDArray[np.integer], *, bits: int = 16) -> None:
    """Sets native pixel data to stored values, shape (rows, columns) or (frames, rows, columns)."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    big_endian = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path) -> Path:
    """Writes a data set in the transfer syntax that its file meta information states."""
    path.parent.mkdir(exist_ok=True, parents=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _new_dataset(sop_class_uid: str, stack: Stack, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(f"{stack.series_uid}.9")
    meta.TransferSyntaxUID = UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = f"{stack.series_uid}.9"
    dataset.SeriesInstanceUID = stack.series_uid
    dataset.FrameOfReferenceUID = "1.2.9"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName = PATIENT
    dataset.PatientID = PATIENT_ID
    dataset.PatientBirthDate = "19610203"
    dataset.AccessionNumber = "A-0815"
    for keyword, value in stack.changes.items():
        setattr(dataset, keyword, value)
    return dataset


def read_segmentation(path: Path) -> highdicom.seg.Segmentation:
    """Opens a DICOM segmentation; highdicom's SQLite index of the frames is closed with the object."""
    seg = highdicom.seg.segread(path)
    finalize(seg, seg._db_con.close)
    return seg
