"""Whatever comes in: a scan or an InputError, no other exception, and no file outside the job's folder."""

import io
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_encoders import encode
from dicom_files import phantom, straight, write, write_enhanced
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference_service.errors import InputError
from inference_service.readers import Wishes, read_scan

TOLERANT = Wishes(tolerate=("uneven_spacing", "gantry_tilt"))
MAX_VOXELS = 20_000
MAX_BYTES = 10**6
NATIVE = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
PACKED = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)

Changes = list[tuple[float, int]]
# Where in the file, as a share of it, and the byte that is put there.
damage = st.tuples(
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=12),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[list[bytes]]:
    """Series of a few files each."""
    folder = tmp_path_factory.mktemp("originals")
    stack = straight(phantom((40, 36, 3)))
    series = [write(folder / syntax, stack, syntax=syntax) for syntax in NATIVE]
    for syntax in PACKED:
        paths = write(folder / syntax, stack)
        for path in paths:
            encode(path, syntax)
        series.append(paths)
    series.append([write_enhanced(folder / "enhanced", straight())])
    return [[path.read_bytes() for path in paths] for paths in series]


def damaged(content: bytes, changes: Changes, kept: float) -> bytes:
    changed = bytearray(content)
    for share, value in changes:
        changed[int(share * len(changed))] = value
    return bytes(changed[: int(kept * len(changed))])


def survives(folder: Path, files: Sequence[bytes]) -> None:
    """Reads files from a folder or, if it is one, as a file."""
    source, work = folder / "in", folder / "work"
    work.mkdir(parents=True)
    if len(files) == 1:
        source.write_bytes(files[0])
    else:
        source.mkdir()
        for number, content in enumerate(files):
            (source / str(number)).write_bytes(content)
    before = {path for path in folder.rglob("*") if work not in path.parents}
    try:
        scan = read_scan(source, work, max_voxels=MAX_VOXELS, max_bytes=MAX_BYTES, wishes=TOLERANT)
    except InputError as error:
        message = error.message
    else:
        message = "".join(scan.warnings)
        assert scan.volume.voxels.size <= MAX_VOXELS
        assert np.isfinite(scan.volume.affine).all()
        assert np.isfinite(scan.volume.voxels).all()
    assert not any(secret in message for secret in ("Mueller", "4711", "0815", "19610203", str(folder)))
    assert {path for path in folder.rglob("*") if work not in path.parents} == before


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


@settings(max_examples=100)
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\0" * 128 + b"DICM", b"PK\3\4", b"\x08\0\5\0CS"]))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes) -> None:
    survives(tmp_path_factory.mktemp("hostile"), [start + content])


def test_elements_that_claim_to_be_huge_or_endless_are_refused(tmp_path: Path, originals: list[list[bytes]]) -> None:
    """Every length in the header, one after the other, becomes the largest there is."""
    (content,) = originals[-1]
    randomly = random.Random(0)
    for number, start in enumerate(randomly.sample(range(132, len(content) - 4), 150)):
        survives(tmp_path / str(number), [content[:start] + b"\xff\xff\xff\xff" + content[start + 4 :]])


def test_sequences_nested_without_end_are_refused(tmp_path: Path, originals: list[list[bytes]]) -> None:
    content = originals[0][0]
    nested = (b"\x28\0\0\x30\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 5000
    at = content.index(b"\x28\0\x02\0")
    survives(tmp_path, [content[:at] + nested + content[at:]])
