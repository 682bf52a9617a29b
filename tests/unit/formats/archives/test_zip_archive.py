import io
import stat
import struct
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.core.errors import InputCorrupt, InputError, InputTooLarge, UnsupportedFormat
from inference_service.formats.archives import unpacked_files, zip_archive
from inference_service.formats.archives.unpacked_files import UnpackedFiles
from inference_service.formats.archives.zip_archive import is_zip, unpack_zip

LIMIT = 10_000
CONTENT = bytes(range(256)) * 4


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PLAIN = zipped({"a/1.dcm": CONTENT, "b/2": CONTENT[::-1]})


def unpack(source: Path, folder: Path, *, max_bytes: int) -> list[Path]:
    return unpack_zip(source, UnpackedFiles(folder, max_bytes))


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., list[bytes]]:
    def unpack_bytes(content: bytes, *, max_bytes: int = LIMIT) -> list[bytes]:
        (tmp_path / "input").write_bytes(content)
        return [path.read_bytes() for path in unpack(tmp_path / "input", tmp_path / "to", max_bytes=max_bytes)]

    return unpack_bytes


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_unpacked_in_order(unpacked: Callable[..., list[bytes]], method: int) -> None:
    assert unpacked(zipped({"z": CONTENT, "a": b"", "m": b"x"}, method)) == [CONTENT, b"", b"x"]


@pytest.mark.parametrize(
    "name",
    ["../out", "/abs", "a/../../out", "C:\\out", "..\\out", "nul", "x\0y", "a\nb", "x" * 5000, ".", "ä", "to/000000"],
)
def test_names_of_the_archive_are_not_used(tmp_path: Path, name: str) -> None:
    source = tmp_path / "inside" / "input"
    source.parent.mkdir()
    source.write_bytes(zipped({name: CONTENT, "other": b"x"}))
    paths = unpack(source, source.parent / "to", max_bytes=LIMIT)
    assert [path.name for path in paths] == ["000000", "000001"]
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert everything == {"inside", "inside/input", "inside/to", "inside/to/000000", "inside/to/000001"}


def test_errors_quote_no_name_of_the_archive(unpacked: Callable[..., list[bytes]]) -> None:
    damaged = zipped({"MUELLER.dcm": CONTENT}, zipfile.ZIP_STORED).replace(CONTENT, CONTENT[::-1])
    with pytest.raises(InputCorrupt) as caught:
        unpacked(damaged)
    text = "".join(traceback.format_exception(caught.value))
    assert "BadZipFile" in text
    assert "MUELLER" not in text


DIFFERENT_NAMES = [(b"a/1.dcm", b"a\\1.dcm"), (b"a/1.dcm", b"\x83\x5c\xff.dcm"), (b"\xc3\xa4.dcm", b"\xe4\xe4.dcm")]


@pytest.mark.parametrize(("before", "after"), DIFFERENT_NAMES)
@pytest.mark.parametrize("where", ["header", "directory", "both"])
def test_names_may_differ_or_lie_about_their_encoding(
    unpacked: Callable[..., list[bytes]], before: bytes, after: bytes, where: str
) -> None:
    header, directory = zipped({before.decode(): CONTENT, "b/2": CONTENT[::-1]}).split(b"PK\x01\x02", 1)
    header = header if where == "directory" else header.replace(before, after)
    directory = directory if where == "header" else directory.replace(before, after)
    assert unpacked(header + b"PK\x01\x02" + directory) == [CONTENT, CONTENT[::-1]]


def test_names_may_be_called_utf8_although_they_are_not(unpacked: Callable[..., list[bytes]]) -> None:
    names = {"\N{KATAKANA LETTER SO}.dcm": CONTENT, "\N{KATAKANA LETTER TA}.dcm": CONTENT[::-1]}
    archive = zipped(names).replace("\N{KATAKANA LETTER SO}".encode(), b"\x83\x5c\xff")
    assert unpacked(archive) == [CONTENT, CONTENT[::-1]]


def test_content_that_looks_like_a_directory_is_not_changed(unpacked: Callable[..., list[bytes]]) -> None:
    inner = zipped({"\N{KATAKANA LETTER SO}": CONTENT})
    files = [inner, inner[inner.index(b"PK\x01\x02") :]]
    assert unpacked(zipped({"1": files[0], "2": files[1]})) == files


def test_links_are_counted_and_left_out(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "input", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
        archive.writestr("file", "x")
    target = UnpackedFiles(tmp_path / "to", LIMIT)
    (path,) = unpack_zip(tmp_path / "input", target)
    assert path.read_text() == "x"
    assert target.links == 1


def test_folders_and_macos_metadata_are_skipped(unpacked: Callable[..., list[bytes]]) -> None:
    names = {"a/": b"", "b\\": b"", "a/1": b"x", "__MACOSX/a/._1": b"y", "__MACOSX\\._1": b"y", "c\\": b"z"}
    assert unpacked(zipped(names)) == [b"x", b"z"]


def test_a_folder_may_be_known_by_its_attribute_alone(unpacked: Callable[..., list[bytes]]) -> None:
    folder = zipfile.ZipInfo("a")
    folder.external_attr = 0x10
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(folder, b"")
        archive.writestr("a/1", b"x")
    assert unpacked(buffer.getvalue()) == [b"x"]


def test_files_that_have_the_limit_together_are_unpacked(unpacked: Callable[..., list[bytes]]) -> None:
    assert len(unpacked(PLAIN, max_bytes=2048)) == 2


def test_files_that_exceed_the_limit_together_are_refused(unpacked: Callable[..., list[bytes]]) -> None:
    with pytest.raises(InputTooLarge, match="more than 2047 bytes"):
        unpacked(PLAIN, max_bytes=2047)


def test_bytes_beyond_the_limit_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(zipped({"a": bytes(10**7), "b": bytes(10**7)}))
    with pytest.raises(InputTooLarge, match="more than 10000 bytes"):
        unpack(tmp_path / "input", tmp_path / "to", max_bytes=LIMIT)
    assert sum(path.stat().st_size for path in (tmp_path / "to").iterdir()) <= LIMIT


def test_an_entry_larger_than_its_stated_size_is_refused(unpacked: Callable[..., list[bytes]]) -> None:
    content = bytearray(zipped({"a": bytes(10**6)}))
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", 10)
    with pytest.raises(InputError):
        unpacked(bytes(content))


def test_too_many_files_are_refused(unpacked: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked_files, "MAX_FILES", 1)
    with pytest.raises(InputTooLarge, match="more than 1 files"):
        unpacked(PLAIN)


def test_a_huge_central_directory_is_not_read(
    unpacked: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_archive, "_MAX_READ_BYTES", 70_000)
    with pytest.raises(InputTooLarge, match="central directory"):
        unpacked(zipped({f"{number:01000}": b"" for number in range(100)}))


def test_an_encrypted_archive_is_refused(unpacked: Callable[..., list[bytes]]) -> None:
    content = bytearray(PLAIN)
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1
    with pytest.raises(UnsupportedFormat, match="encrypted"):
        unpacked(bytes(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(unpacked: Callable[..., list[bytes]], method: int) -> None:
    with pytest.raises(UnsupportedFormat, match=f"method {method}"):
        unpacked(zipped({"a": CONTENT}, method))


def test_a_nested_archive_stays_one_file(unpacked: Callable[..., list[bytes]]) -> None:
    assert unpacked(zipped({"inner.zip": PLAIN})) == [PLAIN]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(PLAIN, True), (zipped({}), True), (b"", False), (b"PK", False), (b"\x1f\x8b\x08\0", False)],
)
def test_a_zip_is_recognised_by_its_content(content: bytes, expected: bool) -> None:
    assert is_zip(content) is expected


def test_a_zip_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(4, len(PLAIN), 7):
        (tmp_path / "input").write_bytes(PLAIN[:length])
        with pytest.raises(InputCorrupt):
            unpack(tmp_path / "input", tmp_path / f"{length}", max_bytes=LIMIT)


def test_an_entry_with_a_negative_offset_is_refused(unpacked: Callable[..., list[bytes]]) -> None:
    content = bytearray(PLAIN)
    # A central directory that states a later start moves all offsets before the start of the file.
    content[-6:-2] = (2**31).to_bytes(4, "little")
    with pytest.raises(InputCorrupt):
        unpacked(bytes(content))


def test_an_entry_may_have_no_name(unpacked: Callable[..., list[bytes]]) -> None:
    assert unpacked(PLAIN.replace(b"b/2", b"\0/2")) == [CONTENT, CONTENT[::-1]]


def test_errors_of_the_file_system_are_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(PLAIN)
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "input", tmp_path / "missing" / "to", max_bytes=LIMIT)


@given(changes=st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_zip_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(PLAIN)
    for position, value in changes:
        content[position] = value
    folder = tmp_path_factory.mktemp("zip")
    (folder / "input").write_bytes(content)
    try:
        paths = unpack(folder / "input", folder / "to", max_bytes=LIMIT)
    except InputError:
        return
    assert sum(path.stat().st_size for path in paths) <= LIMIT
    assert {path.parent for path in folder.rglob("*") if path.is_file()} <= {folder, folder / "to"}
