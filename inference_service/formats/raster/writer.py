"""Writes masks as NRRD with the keys of a segmentation of 3D Slicer (`.seg.nrrd`), and as MetaImage (`.mha`).

Source of the keys: "Segmentations" in the developer guide of 3D Slicer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from inference_service.contract.labels import CodedConcept
from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colours
from inference_service.imaging.geometry import LPS_TO_RAS, Affine, spacing_mm

_NRRD_TYPES = {"u1": "uint8", "u2": "uint16"}
_METAIMAGE_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT"}
_TISSUE = CodedConcept(scheme="SCT", value="85756007", meaning="Tissue")


def write_segmentation_nrrd(path: Path, mask: NDArray[np.unsignedinteger], affine: Affine, manifest: Manifest) -> None:
    """Writes a mask with the name, colour and code of each label.

    Args:
        path: The file to write.
        mask: Shape (i, j, k).
        affine: Voxel index to RAS+ mm.
        manifest: The manifest of the model that made the mask.
    """
    directions = LPS_TO_RAS @ affine[:3, :3]
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[_code(mask)]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {_joined(mask.shape, ' ')}",
        f"space directions: {' '.join(_vector(axis) for axis in directions.T)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(LPS_TO_RAS @ affine[:3, 3])}",
        *_segments(mask, manifest),
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    with path.open("wb") as file:
        file.write("\n".join([*lines, "", ""]).encode())
        with igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as stream:
            stream.write(_stored(mask))


def write_metaimage(path: Path, mask: NDArray[np.unsignedinteger], affine: Affine) -> None:
    """Writes a mask.

    Args:
        path: The file to write.
        mask: Shape (i, j, k).
        affine: Voxel index to RAS+ mm; its axes are at right angles, as the format holds no others.
    """
    spacing = spacing_mm(affine)
    rows = (LPS_TO_RAS @ affine[:3, :3] / spacing).T
    content = isal_zlib.compress(_stored(mask))
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(content)}",
        f"TransformMatrix = {_joined(rows.ravel(), ' ')}",
        f"Offset = {_joined(LPS_TO_RAS @ affine[:3, 3], ' ')}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_joined(spacing, ' ')}",
        f"DimSize = {_joined(mask.shape, ' ')}",
        f"ElementType = {_METAIMAGE_TYPES[_code(mask)]}",
        "ElementDataFile = LOCAL",
    ]
    path.write_bytes("\n".join([*lines, ""]).encode() + content)


def _segments(mask: NDArray[np.unsignedinteger], manifest: Manifest) -> Iterator[str]:
    extent = _joined((bound for size in mask.shape for bound in (0, size - 1)), " ")
    labels = [label for label in manifest.labels if label.value]
    colours = label_colours(manifest.labels)
    for number, label in enumerate(labels):
        segment = f"Segment{number}"
        category, kind = label.category or _TISSUE, label.type or _TISSUE
        yield f"{segment}_ID:=Segment_{label.value}"
        yield f"{segment}_Name:={label.name}"
        yield f"{segment}_Color:={_joined((round(part / 255, 6) for part in colours[label.value]), ' ')}"
        yield f"{segment}_LabelValue:={label.value}"
        yield f"{segment}_Layer:=0"
        yield f"{segment}_Extent:={extent}"
        modifier = _term(label.modifier) if label.modifier else "^^"
        yield f"{segment}_Tags:=TerminologyEntry:~{_term(category)}~{_term(kind)}~{modifier}~~^^~^^|"


def _term(concept: CodedConcept) -> str:
    """A code in the notation of 3D Slicer, without the characters that separate its parts."""
    parts = (concept.scheme, concept.value, concept.meaning)
    return "^".join(part.translate(str.maketrans("^~|", "   ")) for part in parts)


def _code(mask: NDArray[np.unsignedinteger]) -> str:
    return f"u{mask.dtype.itemsize}"


def _stored(mask: NDArray[np.unsignedinteger]) -> memoryview:
    little_endian = mask.astype(mask.dtype.newbyteorder("<"), copy=False)
    return little_endian.ravel(order="F").data


def _vector(values: NDArray[np.float64]) -> str:
    return f"({_joined(values, ',')})"


def _joined(values: Iterable[float], separator: str) -> str:
    return separator.join(str(value) for value in values)
