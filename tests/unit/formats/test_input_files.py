"""Archives and compressed files as inputs: alone, in a folder, within each other, damaged, too large."""

import bz2
import gzip
import io
import lzma
import stat
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import phantom, regular_stack, with_attribute, write_series
from pydicom.uid import MediaStorageDirectoryStorage

from inference_service.core.errors import (
    InputCorrupt,
    InputNotFound,
    InputTooLarge,
    MixedSeries,
    ServiceError,
    UnsupportedFormat,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
LIMITS = ReadLimits(max_voxels=1000, max_bytes=10**6)
DEFLATED = zipfile.ZIP_DEFLATED

Pack = Callable[[Mapping[str, bytes]], bytes]


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVES: dict[str, Pack] = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda files: gzip.compress(tarred(files)),
    "tar.bz2": lambda files: bz2.compress(tarred(files)),
    "tar.xz": lambda files: lzma.compress(tarred(files)),
    "tar.zst": lambda files: zstd.compress(tarred(files)),
    "tar.gz.gz": lambda files: gzip.compress(gzip.compress(tarred(files))),
    "zip.gz": lambda files: gzip.compress(zipped(files)),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
    "gz.gz": lambda content: gzip.compress(gzip.compress(content)),
}
HEADERS = {
    "nrrd": b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nendian: little\nspace origin: (1,2,3)\n"
    b"space directions: (0,0,2) (0.5,0,0) (0,1.5,0)\nsizes: 3 4 5\nencoding: raw\n\n",
    "mha": b"ObjectType = Image\nNDims = 3\nElementSpacing = 1 2 3\nOffset = 1 2 3\nElementType = MET_SHORT\n"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nDimSize = 3 4 5\nElementDataFile = LOCAL\n",
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Scan]:
    """Reads a file, or a folder of files, as one input."""

    def read_input(content: bytes | Mapping[str, bytes], limits: ReadLimits = LIMITS) -> Scan:
        (tmp_path / "work").mkdir(exist_ok=True)
        source = tmp_path / "in"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            source.mkdir()
            for name, each in content.items():
                (source / name).write_bytes(each)
        return read_scan(source, tmp_path / "work", limits)

    return read_input


@pytest.fixture
def nifti(tmp_path: Path) -> bytes:
    return bytes(nibabel.Nifti1Image(VOXELS, np.diag([1.5, 2, 2.5, 1])).to_bytes())


@pytest.fixture
def series(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in write_series(tmp_path / "series", regular_stack())}


@pytest.mark.parametrize("form", ARCHIVES)
def test_a_volume_in_an_archive_is_read(read: Callable[..., Scan], nifti: bytes, form: str) -> None:
    scan = read(ARCHIVES[form]({"scan/.DS_Store": b"\0\0\0\1Bud1", "scan/ct": gzip.compress(nifti)}))
    np.testing.assert_array_equal(scan.volume.voxels, VOXELS, strict=True)
    assert (scan.set_aside, scan.warnings) == ({"no_volume": 1}, ())


@pytest.mark.parametrize("form", ARCHIVES)
def test_a_series_in_an_archive_is_read(read: Callable[..., Scan], series: dict[str, bytes], form: str) -> None:
    scan = read(ARCHIVES[form]({"README": b"text", **series}))
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)
    assert (scan.input_format, scan.set_aside, scan.warnings) == ("dicom", {"not_dicom": 1}, ())


@pytest.mark.parametrize("outer", ARCHIVES)
@pytest.mark.parametrize("inner", ARCHIVES)
def test_an_archive_in_an_archive_is_unpacked(
    read: Callable[..., Scan], series: dict[str, bytes], outer: str, inner: str
) -> None:
    scan = read(ARCHIVES[outer]({"viewer.exe": b"MZ", "export": ARCHIVES[inner](series)}))
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)


def test_archives_are_not_unpacked_deeper(read: Callable[..., Scan], nifti: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="an archive within archives, 3 deep"):
        read(zipped({"a": tarred({"b": zipped({"c": nifti})})}))


def test_several_archives_are_unpacked_as_one_input(read: Callable[..., Scan], series: dict[str, bytes]) -> None:
    names = sorted(series)
    files = {
        "1.zip": zipped({name: series[name] for name in names[:3]}),
        "2.tar": tarred({n: series[n] for n in names[3:]}),
    }
    np.testing.assert_array_equal(read({**files, "README": b"text"}).volume.voxels, phantom(), strict=True)


def test_archives_of_several_series_are_refused_as_such(read: Callable[..., Scan], tmp_path: Path) -> None:
    from dataclasses import replace

    archives = {}
    for uid in ("1.2.1", "1.2.2"):
        paths = write_series(tmp_path / uid, replace(regular_stack(), series_uid=uid))
        archives[uid] = zipped({path.name: path.read_bytes() for path in paths})
    with pytest.raises(MixedSeries, match="2 series"):
        read(zipped(archives))


def test_archives_beside_a_volume_stay_packed(
    read: Callable[..., Scan], series: dict[str, bytes], nifti: bytes
) -> None:
    scan = read(zipped({**series, "viewer.jar": zipped({"a": nifti}), "old.tar": tarred({"b": nifti})}))
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)
    assert (scan.set_aside, scan.warnings) == ({"not_dicom": 2}, ())


def test_a_directory_of_dicom_files_is_no_volume(
    read: Callable[..., Scan], series: dict[str, bytes], tmp_path: Path
) -> None:
    change = with_attribute("SOPClassUID", MediaStorageDirectoryStorage)
    directory = write_series(tmp_path / "directory", regular_stack(phantom((5, 4, 1))), change=change)[0].read_bytes()
    scan = read({"DICOMDIR": directory, "images.zip": zipped(series)})
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)
    assert scan.set_aside == {"no_image": 1}


@pytest.mark.parametrize("form", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["nii", *HEADERS])
def test_a_compressed_file_is_read(read: Callable[..., Scan], nifti: bytes, kind: str, form: str) -> None:
    content = nifti if kind == "nii" else HEADERS[kind] + VOXELS.tobytes(order="F")
    scan = read({"scan": COMPRESSIONS[form](content), "other.gz": gzip.compress(b"text")})
    np.testing.assert_array_equal(scan.volume.voxels, VOXELS, strict=True)
    assert scan.set_aside == {"no_volume": 1}


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_single_compressed_slices_are_read(read: Callable[..., Scan], series: dict[str, bytes], form: str) -> None:
    last = max(series)
    scan = read({**series, last: COMPRESSIONS[form](series[last])})
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)
    assert (scan.set_aside, scan.warnings) == ({}, ())


def test_a_truncated_compressed_slice_gives_a_warning(read: Callable[..., Scan], tmp_path: Path) -> None:
    *others, last = (path.read_bytes() for path in write_series(tmp_path / "series", regular_stack()))
    scan = read({str(number): content for number, content in enumerate([*others, gzip.compress(last)[:-9]])})
    assert scan.volume.shape[2] == len(others)
    assert [warning.code for warning in scan.warnings] == [WarningCode.UNREADABLE_FILES]


def test_a_truncated_compressed_file_is_refused(read: Callable[..., Scan], series: dict[str, bytes]) -> None:
    with pytest.raises(InputCorrupt, match="gzip stream is truncated"):
        read(gzip.compress(series[max(series)])[:-9])


@pytest.mark.parametrize("form", [form for form in ARCHIVES if form != "zip"])
def test_an_archive_truncated_anywhere_is_refused(tmp_path: Path, series: dict[str, bytes], form: str) -> None:
    content = ARCHIVES[form](series)
    if form == "tar":
        content = content.rstrip(b"\0")
    for number, length in enumerate(range(600, len(content) - 1, len(content) // 30)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "in").write_bytes(content[:length])
        with pytest.raises(InputCorrupt, match="truncated"):
            read_scan(folder / "in", folder, LIMITS)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_of_links_alone_are_refused_as_such(read: Callable[..., Scan], kind: str) -> None:
    with pytest.raises(InputNotFound, match="symbolic links alone, 2 in all"):
        read(links(kind, 2, {}))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_an_archive_give_a_warning(read: Callable[..., Scan], series: dict[str, bytes], kind: str) -> None:
    scan = read(zipped({"inner": links(kind, 3, series)}))
    np.testing.assert_array_equal(scan.volume.voxels, phantom(), strict=True)
    assert [warning.code for warning in scan.warnings] == [WarningCode.LINKS_IGNORED]
    assert "3 in all" in scan.warnings[0].message


def links(kind: str, count: int, files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for number in range(count):
                entry = zipfile.ZipInfo(f"link{number}")
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, "../../etc/passwd")
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for number in range(count):
            link = tarfile.TarInfo(f"link{number}")
            link.type = tarfile.SYMTYPE
            link.linkname = "../../etc/passwd"
            packed.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


OTHERS = {
    b"7z\xbc\xaf\x27\x1c\0\4": "a 7z archive",
    b"Rar!\x1a\x07\x00": "a RAR archive",
    b"Rar!\x1a\x07\x01\x00": "a RAR archive",
    b"MSCF\0\0\0\0": "a cabinet",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d\x90": "compress",
    b"LZIP\1": "lzip",
    b"Salted__": "encrypted by OpenSSL",
    b"-----BEGIN PGP MESSAGE-----": "encrypted by PGP",
    bytes(32768) + b"\1CD001": "an image of a disc",
}


@pytest.mark.parametrize(("start", "name"), OTHERS.items())
@pytest.mark.parametrize("packed", [False, True])
def test_other_containers_are_refused_by_name(read: Callable[..., Scan], start: bytes, name: str, packed: bool) -> None:
    content = start + b"x" * 1000
    with pytest.raises(UnsupportedFormat, match=f"the input is .*{name}"):
        read(zipped({"README": b"text", "export": content}) if packed else content)


def test_too_many_compressions_are_named(read: Callable[..., Scan], nifti: bytes) -> None:
    for _ in range(4):
        nifti = gzip.compress(nifti)
    with pytest.raises(UnsupportedFormat, match="compressed more than 3 times"):
        read(nifti)


@pytest.mark.parametrize("form", ARCHIVES)
def test_an_archive_without_files_is_refused(read: Callable[..., Scan], form: str) -> None:
    with pytest.raises(ServiceError) as caught:
        read(ARCHIVES[form]({}))
    assert isinstance(caught.value, InputNotFound if "zip" in form else UnsupportedFormat)


@pytest.mark.parametrize("form", ARCHIVES)
@pytest.mark.parametrize("nested", [False, True])
def test_the_limit_holds_for_all_unpacked_files_together(
    tmp_path: Path, read: Callable[..., Scan], form: str, nested: bool
) -> None:
    bomb = ARCHIVES[form]({"a": bytes(10**7), "b": bytes(10**7)})
    content = zipped({"bomb": bomb, "other": ARCHIVES[form]({"c": bytes(500_000)})}) if nested else bomb
    tracemalloc.start()
    try:
        with pytest.raises(InputTooLarge, match="the input unpacks to more than 1000000 bytes"):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 3 * 10**7
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file()) <= 10**6


def test_a_compressed_volume_is_decompressed_within_the_limit(read: Callable[..., Scan]) -> None:
    with pytest.raises(InputTooLarge, match="more than 1000000 bytes"):
        read(gzip.compress(HEADERS["nrrd"] + bytes(10**7)))


def test_names_of_an_archive_are_not_used(read: Callable[..., Scan], tmp_path: Path, nifti: bytes) -> None:
    names = ["../out", "/abs", "a/../../out", "to/000000", "x" * 300]
    read(zipped({"../../inner": tarred(dict.fromkeys(names, b"x") | {"../scan": nifti})}))
    unpacked = tmp_path / "work" / "unpacked"
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.parent != unpacked} == {tmp_path / "in"}
    assert {path.name for path in unpacked.iterdir()} == {f"{number:06}" for number in range(7)}
