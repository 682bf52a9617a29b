"""Targets that read scans: NIfTI files and pairs, NRRD and MetaImage files, DICOM files, DICOM series in a folder."""

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import nibabel
import numpy as np
from dicom_encoders import encode
from dicom_files import phantom, regular_stack, write_enhanced, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from fuzz.target import MAX_SCAN_BYTES, MAX_SCAN_VOXELS, Pieces, Target, scratch_folder
from inference_service.contract.input_options import InputOptions
from inference_service.embedded.phantom import chest_phantom
from inference_service.formats.nifti import write_volume
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan

CORPUS = Path(__file__).parents[1] / "corpus"
_LIMITS = ReadLimits(MAX_SCAN_VOXELS, MAX_SCAN_BYTES)
# Defects are corrected, not refused, so that the code that corrects them is reached.
_OPTIONS = InputOptions(tolerate=("uneven_spacing", "gantry_tilt", "analyze_orientation"))
# VRs with a length of four bytes in explicit transfer syntaxes (PS3.5 7.1.2).
_LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UC", b"UR", b"UT", b"SV", b"UV"}
_META_BYTES = 132

Element = tuple[bytes, bytes]


def read(files: Sequence[bytes]) -> None:
    """Reads files as one input, and checks the volume and that nothing else was written."""
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    try:
        source = folder / "in"
        (folder / "work").mkdir()
        if len(files) == 1:
            source.write_bytes(files[0])
        else:
            source.mkdir()
            for number, content in enumerate(files):
                (source / str(number)).write_bytes(content)
        scan = read_scan(source, folder / "work", _LIMITS, input_options=_OPTIONS)
        assert scan.volume.voxels.size <= MAX_SCAN_VOXELS
        assert np.isfinite(scan.volume.affine).all()
        assert np.isfinite(scan.volume.voxels).all()
        assert {path.name for path in folder.iterdir()} == {"in", "work"}
    finally:
        shutil.rmtree(folder)


def _read_nifti(data: bytes) -> None:
    pieces = Pieces(data)
    gzipped = pieces.byte() & 1
    content = pieces.rest()
    read([gzip.compress(content, compresslevel=1, mtime=0) if gzipped else content])


def _read_pair(data: bytes) -> None:
    """Reads a header, and a file with its voxels."""
    pieces = Pieces(data)
    gzipped = pieces.byte() & 1
    voxels = pieces.take(int.from_bytes(pieces.take(2)))
    read([pieces.rest(), gzip.compress(voxels, compresslevel=1, mtime=0) if gzipped else voxels])


def _pair_seeds() -> list[bytes]:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    affine = np.diag([-1.5, 2, 2.5, 1])
    seeds = []
    kinds: tuple[type[nibabel.analyze.AnalyzeImage], ...] = (
        nibabel.Nifti1Pair,
        nibabel.Nifti2Pair,
        nibabel.AnalyzeImage,
    )
    for kind in kinds:
        header, stored = _parts(kind(voxels, affine))
        seeds += [bytes([gzipped]) + len(stored).to_bytes(2) + stored + header for gzipped in (0, 1)]
    return seeds


def _parts(image: nibabel.analyze.AnalyzeImage) -> tuple[bytes, bytes]:
    """The header and the voxels of a pair."""
    header, voxels = io.BytesIO(), io.BytesIO()
    image.to_file_map({"header": nibabel.FileHolder(fileobj=header), "image": nibabel.FileHolder(fileobj=voxels)})
    return header.getvalue(), voxels.getvalue()


def _nifti_seeds() -> list[bytes]:
    path = scratch_folder() / "seed.nii.gz"
    write_volume(path, chest_phantom((5, 4, 3), (60.0, 60.0, 60.0)))
    plain = gzip.decompress(path.read_bytes())
    hostile = [path.read_bytes() for path in sorted(CORPUS.glob("*.nii*")) if path.stat().st_size < 4000]
    return [b"\0" + plain, b"\1" + plain, *(b"\0" + content for content in hostile)]


def _read_raster(data: bytes) -> None:
    """Reads an NRRD or MetaImage file, or a header and a file beside it."""
    pieces = Pieces(data)
    detached = pieces.byte() & 1
    beside = [pieces.take(int.from_bytes(pieces.take(2)))] if detached else []
    read([pieces.rest(), *beside])


def _raster_seeds() -> list[bytes]:
    voxels = bytes(range(48))
    shape = {"nrrd": "sizes: 2 3 4", "mha": "DimSize = 2 3 4"}
    texts = {
        "nrrd": "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nendian: little\nspace origin: (1,2,3)\n"
        "space directions: (0,0,2) (0.5,0,0) (0,1.5,0)\nbyte skip: 0\nline skip: 0\n",
        "mha": "ObjectType = Image\nNDims = 3\nElementSpacing = 1 2 3\nOffset = 1 2 3\nElementType = MET_SHORT\n"
        "BinaryDataByteOrderMSB = True\nTransformMatrix = 0 0 1 1 0 0 0 1 0\nHeaderSize = 0\n",
    }
    nrrd, mha = (f"{texts[name]}{shape[name]}\n" for name in texts)
    files = [
        f"{nrrd}encoding: raw\n\n".encode() + voxels,
        f"{nrrd}encoding: gzip\n\n".encode() + gzip.compress(voxels, mtime=0),
        f"{mha}ElementDataFile = LOCAL\n".encode() + voxels,
        f"{mha}CompressedData = True\nElementDataFile = LOCAL\n".encode() + zlib.compress(voxels),
    ]
    headers = [
        f"{nrrd}encoding: raw\ndata file: a.raw\n".encode(),
        f"{mha}ElementDataFile = a.raw\n".encode(),
    ]
    beside = b"\1" + len(voxels).to_bytes(2) + voxels
    return [*(b"\0" + content for content in files), *(beside + header for header in headers)]


def written(write: Callable[[Path], object]) -> list[bytes]:
    """The contents of the files that a function writes into a folder, by name."""
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    write(folder / "seed")
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def series_in(syntax: str, folder: Path) -> None:
    write_series(folder, regular_stack(phantom((5, 6, 3))), syntax=syntax)


def _encoded(syntax: str, folder: Path) -> None:
    for path in write_series(folder, regular_stack(phantom((5, 6, 3)))):
        encode(path, syntax)


def _enhanced(folder: Path) -> None:
    write_enhanced(folder, regular_stack(phantom((5, 6, 3))))


def _dicom_seeds() -> list[bytes]:
    native = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    seeds = [written(partial(series_in, syntax))[0] for syntax in native]
    seeds += [written(partial(_encoded, syntax))[0] for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless)]
    return [*written(_enhanced), *seeds]


@cache
def _elements() -> list[list[Element]]:
    """The elements of each file of a series: header and value. The first one is all before the data set."""
    return [_split(content) for content in written(partial(series_in, ExplicitVRLittleEndian))]


def _split(content: bytes) -> list[Element]:
    group_length = int.from_bytes(content[_META_BYTES + 8 : _META_BYTES + 12], "little")
    at = _META_BYTES + 12 + group_length
    elements = [(b"", content[:at])]
    while at < len(content):
        long = content[at + 4 : at + 6] in _LONG_VRS
        value = at + (12 if long else 8)
        end = value + int.from_bytes(content[at + (8 if long else 6) : value], "little")
        elements.append((content[at:value], content[value:end]))
        at = end
    return elements


def _joined(elements: Sequence[Element]) -> bytes:
    return b"".join(_with_length(header, len(value)) + value for header, value in elements)


def _with_length(header: bytes, length: int) -> bytes:
    if not header:
        return b""
    long = header[4:6] in _LONG_VRS
    return header[:8] + length.to_bytes(4, "little") if long else header[:6] + length.to_bytes(2, "little")


def _read_series(data: bytes) -> None:
    """Reads a series in which single elements were replaced, removed or doubled."""
    files = [list(elements) for elements in _elements()]
    pieces = Pieces(data)
    while pieces:
        kind = pieces.byte()
        chosen = files if kind & 4 else [files[kind % len(files)]]
        index = pieces.byte()
        value = pieces.piece()
        for elements in chosen:
            at = index % len(elements)
            header, old = elements[at]
            # Bits 4 and 5: replace the value, replace its start, remove the element, double it with another value.
            changed = {
                0: [(header, value)],
                1: [(header, value + old[len(value) :])],
                2: [],
                3: [(header, old), (header, value)],
            }[kind >> 4 & 3]
            elements[at : at + 1] = changed or [(b"", b"")]
    read([_joined(elements) for elements in files])


def _series_seeds() -> list[bytes]:
    """No change, and each element of all files with a text of two numbers."""
    changes = [bytes([4, index, 4]) + b"2\\3 " for index in range(1, len(_elements()[0]))]
    return [b"", *changes]


TARGETS = (
    Target("nifti", _read_nifti, _nifti_seeds),
    Target("pair", _read_pair, _pair_seeds),
    Target("raster", _read_raster, _raster_seeds),
    Target("dicom", lambda data: read([data]), _dicom_seeds),
    Target("series", _read_series, _series_seeds, max_input_bytes=1024),
)
