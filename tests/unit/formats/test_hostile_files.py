"""Every input gives a scan or an InputError, no other exception, and no file outside the job's folder."""

import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from dicom_encoders import encode
from dicom_files import phantom, regular_stack, with_attribute, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import InputError
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan

TOLERANT = InputOptions(tolerate=("uneven_spacing", "gantry_tilt"))
MAX_VOXELS = 20_000
MAX_BYTES = 10**6
NATIVE = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
PACKED = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)

Changes = list[tuple[float, int]]
# Positions as a share of the file with the byte to put there, and the share of the file that is kept.
damage = st.tuples(
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=12),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[list[bytes]]:
    """Series of a few files each."""
    folder = tmp_path_factory.mktemp("originals")
    stack = regular_stack(phantom((40, 36, 3)))
    series = [write_series(folder / syntax, stack, syntax=syntax) for syntax in NATIVE]
    for syntax in PACKED:
        paths = write_series(folder / syntax, stack)
        for path in paths:
            encode(path, syntax)
        series.append(paths)
    series.append([write_enhanced(folder / "enhanced", regular_stack())])
    return [[path.read_bytes() for path in paths] for paths in series]


def damaged(content: bytes, changes: Changes, kept: float) -> bytes:
    changed = bytearray(content)
    for share, value in changes:
        changed[int(share * len(changed))] = value
    return bytes(changed[: int(kept * len(changed))])


def survives(folder: Path, files: Sequence[bytes]) -> InputError | None:
    """Reads a folder of files, or a single file, and checks the outcome; returns the error of a refused input."""
    source = folder / "in"
    work = folder / "work"
    work.mkdir(parents=True)
    if len(files) == 1:
        source.write_bytes(files[0])
    else:
        source.mkdir()
        for number, content in enumerate(files):
            (source / str(number)).write_bytes(content)
    before = {path for path in folder.rglob("*") if work not in path.parents}
    refusal: InputError | None = None
    try:
        scan = read_scan(source, work, ReadLimits(MAX_VOXELS, MAX_BYTES), input_options=TOLERANT)
    except InputError as error:
        refusal = error
        message = error.message
    else:
        message = "".join(warning.message for warning in scan.warnings)
        assert scan.volume.voxels.size <= MAX_VOXELS
        assert np.isfinite(scan.volume.affine).all()
        assert np.isfinite(scan.volume.voxels).all()
    assert not any(secret in message for secret in ("Mueller", "4711", "0815", "19610203", str(folder)))
    assert {path for path in folder.rglob("*") if work not in path.parents} == before
    return refusal


@pytest.mark.parametrize("which", range(len(NATIVE) + len(PACKED) + 1))
@settings(max_examples=100)
@given(hurt=damage, everywhere=st.booleans())
def test_a_damaged_series_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    originals: list[list[bytes]],
    which: int,
    hurt: tuple[Changes, float],
    everywhere: bool,
) -> None:
    files = originals[which]
    survives(
        tmp_path_factory.mktemp("hostile"),
        [damaged(content, *hurt) if everywhere or not number else content for number, content in enumerate(files)],
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@settings(max_examples=60)
@given(hurt=damage)
def test_a_damaged_zip_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, originals: list[list[bytes]], method: int, hurt: tuple[Changes, float]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for number, content in enumerate(originals[0]):
            archive.writestr(f"../{number}", content)
    survives(tmp_path_factory.mktemp("hostile"), [damaged(buffer.getvalue(), *hurt)])


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@settings(max_examples=60)
@given(hurt=damage)
def test_a_damaged_tar_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    originals: list[list[bytes]],
    mode: Literal["w", "w:gz", "w:bz2", "w:xz"],
    hurt: tuple[Changes, float],
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for number, content in enumerate(originals[0]):
            entry = tarfile.TarInfo(f"../{number}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    survives(tmp_path_factory.mktemp("hostile"), [damaged(buffer.getvalue(), *hurt)])


@settings(max_examples=100)
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\0" * 128 + b"DICM", b"PK\3\4", b"\x08\0\5\0CS"]))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes) -> None:
    assert survives(tmp_path_factory.mktemp("hostile"), [start + content]) is not None


def test_elements_of_a_huge_or_undefined_length_are_read_or_refused(
    tmp_path: Path, originals: list[list[bytes]]
) -> None:
    """Random places in the header become the largest length."""
    (content,) = originals[-1]
    randomly = random.Random(0)
    outcomes = [
        survives(tmp_path / str(number), [content[:start] + b"\xff\xff\xff\xff" + content[start + 4 :]])
        for number, start in enumerate(randomly.sample(range(132, len(content) - 4), 150))
    ]
    assert sum(refusal is not None for refusal in outcomes) > 50


def test_endlessly_nested_sequences_are_refused(tmp_path: Path, originals: list[list[bytes]]) -> None:
    content = originals[0][0]
    nested = (b"\x28\0\0\x30\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 5000
    at = content.index(b"\x28\0\x02\0")
    assert survives(tmp_path, [content[:at] + nested + content[at:]]) is not None


@contextmanager
def bounded_memory(size_bytes: int) -> Iterator[None]:
    """Checks that the block allocates no more than this at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()


def little_memory(content: bytes) -> AbstractContextManager[None]:
    """Checks that memory stays within twenty times the size of a file."""
    return bounded_memory(20 * len(content))


@pytest.mark.parametrize("name", ["ImageType", "ImagePositionPatient", "SeriesInstanceUID", "NumberOfFrames"])
def test_endless_values_are_refused(tmp_path: Path, name: str) -> None:
    path = write_series(
        tmp_path / "in", regular_stack(), syntax=ImplicitVRLittleEndian, change=with_attribute("NumberOfFrames", 1)
    )[0]
    content = path.read_bytes()
    values = b"1\\" * 300_000 + b"1 "
    start = content.index(struct.pack("<HH", Tag(name).group, Tag(name).element), 132)
    (size,) = struct.unpack("<I", content[start + 4 : start + 8])
    path.write_bytes(content[: start + 4] + struct.pack("<I", len(values)) + values + content[start + 8 + size :])
    for other in (tmp_path / "in").iterdir():
        if other != path:
            other.unlink()
    with little_memory(path.read_bytes()), pytest.raises(InputError, match="longer than 4096 bytes"):
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_no_more_is_allocated_than_a_file_holds(tmp_path: Path, syntax: str) -> None:
    """Each element in turn states a length of 4 GB."""
    path = write_series(tmp_path / "in", regular_stack(phantom((5, 6, 1))), syntax=syntax)[0]
    content = path.read_bytes()
    for start in range(132, len(content) - 4, 2):
        path.write_bytes(content[:start] + b"\xf0\xff\xff\xff" + content[start + 4 :])
        with bounded_memory(2**22), suppress(InputError):
            read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize("frames", [b"3 ", b"99999 "])
def test_impossible_numbers_of_frames_are_refused(tmp_path: Path, frames: bytes) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack())
    content = path.read_bytes()
    start = content.index(struct.pack("<HH2s", 0x5200, 0x9230, b"SQ"))
    pixels = content.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 100_000
    content = content[:start] + struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, len(items)) + items + content[pixels:]
    count = struct.pack("<HH2sH", 0x0028, 0x0008, b"IS", 2) + b"6 "
    assert count in content
    path.write_bytes(content.replace(count, count[:6] + struct.pack("<H", len(frames)) + frames))
    with little_memory(items), pytest.raises(InputError, match=r"100\d\d\d items of sequences|99999 frames"):
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))


def test_memory_for_items_is_required_before_they_are_parsed(tmp_path: Path) -> None:
    required: list[int] = []
    read_scan(
        write_enhanced(tmp_path / "in", regular_stack()),
        tmp_path,
        ReadLimits(MAX_VOXELS, require_memory=required.append),
    )
    assert required[0] > 6 * 2048
