"""Tars, made by Python's tarfile in all its formats, and forged ones."""

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.core.errors import InputCorrupt, InputError, InputTooLarge, UnsupportedFormat
from inference_service.formats.archives import tar_archive, unpacked_files
from inference_service.formats.archives.tar_archive import BLOCK_BYTES, is_tar, unpack_tar
from inference_service.formats.archives.unpacked_files import UnpackedFiles

LIMIT = 10_000
CONTENT = bytes(range(256)) * 5
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END = bytes(2 * BLOCK_BYTES)


def tarred(entries: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return packed(((tarfile.TarInfo(name), content) for name, content in entries.items()), form)


def packed(entries: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def entry(kind: bytes, content: bytes = b"", *, size: bytes | None = None, name: bytes = b"x") -> bytes:
    """An entry with a valid checksum, whatever it states."""
    header = bytearray(BLOCK_BYTES)
    header[: len(name)] = name
    header[124:136] = (f"{len(content):011o}".encode() if size is None else size).ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar\00000"
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + content + bytes(-len(content) % BLOCK_BYTES)


def pax(*records: bytes) -> bytes:
    lines = []
    for record in records:
        length = len(record) + 2
        while len(str(length)) + len(record) + 2 != length:
            length = len(str(length)) + len(record) + 2
        lines.append(b"%d %s\n" % (length, record))
    return entry(b"x", b"".join(lines))


PLAIN = tarred({"a/1.dcm": CONTENT, "b/2": CONTENT[::-1], "empty": b""})


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., list[bytes]]:
    def unpack_bytes(content: bytes, *, max_bytes: int = LIMIT) -> list[bytes]:
        paths = unpack_tar(io.BytesIO(content), UnpackedFiles(tmp_path / "to", max_bytes))
        return [path.read_bytes() for path in paths]

    return unpack_bytes


LONG_NAMES = ["x" * 90, "y" * 300, "ä/" * 200, "../out", "/abs"]
NAMES = [*((form, name) for form in ("gnu", "pax") for name in LONG_NAMES), ("ustar", "x" * 90), ("ustar", "../out")]


@pytest.mark.parametrize(("form", "name"), NAMES)
def test_files_are_unpacked_in_order(tmp_path: Path, form: str, name: str) -> None:
    names = {name: CONTENT, "a/b": b"", "m": b"x"}
    content = tarred(names, FORMATS[form])
    assert is_tar(content)
    paths = unpack_tar(io.BytesIO(content), UnpackedFiles(tmp_path / "to", LIMIT))
    assert [path.read_bytes() for path in paths] == [CONTENT, b"", b"x"]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [f"to/{number:06}" for number in range(3)]


@pytest.mark.parametrize("form", FORMATS)
def test_other_entries_than_files_are_left_out(tmp_path: Path, form: str) -> None:
    entries = []
    for kind in (
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ):
        made = tarfile.TarInfo("entry")
        made.type = kind
        made.linkname = "/etc/" + "passwd" * 40 if form != "ustar" else "/etc/passwd"
        entries += [(made, b""), (tarfile.TarInfo("file"), CONTENT)]
    target = UnpackedFiles(tmp_path / "to", LIMIT)
    paths = unpack_tar(io.BytesIO(packed(entries, FORMATS[form])), target)
    assert [path.read_bytes() for path in paths] == [CONTENT] * 6
    assert target.links == 1


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7", b"Z"])
def test_files_have_several_kinds(unpack: Callable[..., list[bytes]], kind: bytes) -> None:
    assert unpack(entry(kind, CONTENT) + END) == [CONTENT]


@pytest.mark.parametrize("kind", [b"L", b"K", b"N", b"g", b"D"])
def test_data_that_are_no_file_are_skipped(unpack: Callable[..., list[bytes]], kind: bytes) -> None:
    assert unpack(entry(kind, CONTENT) + entry(b"0", b"x") + END) == [b"x"]


def test_folders_of_old_archives_end_in_a_slash(unpack: Callable[..., list[bytes]]) -> None:
    assert unpack(entry(b"\0", name=b"a/") + entry(b"\0", b"x") + END) == [b"x"]


def test_an_extended_header_states_the_size_of_a_file(unpack: Callable[..., list[bytes]]) -> None:
    header = entry(b"0", size=b"00000000001")
    content = pax(b"path=other", b"size=1280", b"comment=size=3") + header + CONTENT + bytes(256) + entry(b"0", b"x")
    assert unpack(content + END) == [CONTENT, b"x"]


def test_a_size_may_be_in_base_256(unpack: Callable[..., list[bytes]]) -> None:
    size = b"\x80" + len(CONTENT).to_bytes(11)
    assert unpack(entry(b"0", size=size) + CONTENT + bytes(256) + END) == [CONTENT]


def test_checksums_of_signed_bytes_are_accepted(unpack: Callable[..., list[bytes]]) -> None:
    made = bytearray(entry(b"0", b"", name=b"\xe4\xf6"))
    made[148:156] = b" " * 8
    made[148:156] = f"{sum(made) - 512:06o}\0 ".encode()
    assert is_tar(bytes(made))
    assert unpack(bytes(made) + END) == [b""]


def test_archives_one_after_the_other_are_unpacked_as_one(unpack: Callable[..., list[bytes]]) -> None:
    assert unpack(PLAIN + tarred({"c": b"x"})) == [CONTENT, CONTENT[::-1], b"", b"x"]


def test_an_archive_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    end = len(PLAIN.rstrip(b"\0"))
    end += -end % BLOCK_BYTES
    for length in range(0, end, 7):
        with pytest.raises(InputCorrupt, match="truncated"):
            unpack_tar(io.BytesIO(PLAIN[:length]), UnpackedFiles(tmp_path / f"{length}", LIMIT))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (PLAIN + b"garbage", "checksum"),
        (PLAIN + b"x" * BLOCK_BYTES, "checksum"),
        (entry(b"0", CONTENT).replace(b"ustar", b"vstar") + END, "checksum"),
        (entry(b"0", size=b"77777777777") + CONTENT, "truncated"),
        (entry(b"0", size=b"\x80" + b"\xff" * 11) + CONTENT, "truncated"),
        (entry(b"0", size=b"\xff" * 12) + CONTENT, "invalid header"),
        (entry(b"0", size=b"-1") + CONTENT, "invalid header"),
        (entry(b"0", size=b"9") + CONTENT, "invalid header"),
        (pax(b"size=-1") + entry(b"0") + END, "invalid header"),
        (pax(b"size=0x10") + entry(b"0") + END, "invalid header"),
        (pax(b"size=" + b"9" * 30) + entry(b"0") + END, "invalid header"),
        (pax(b"size=9999999999999999999") + entry(b"0", CONTENT), "truncated"),
        (entry(b"x", b"0 a=b\n") + END, "invalid header"),
        (entry(b"x", b"1000 a=b\n") + END, "invalid header"),
        (entry(b"x", b"-5 a=b\n") + END, "invalid header"),
        (entry(b"x", b"99999999999999999999999 a=b\n") + END, "invalid header"),
        (entry(b"x", b"6 a=b") + END, "invalid header"),
        (entry(b"x", bytes(range(1, 256))) + END, "invalid header"),
        (entry(b"x", size=b"00010000001") + END, "extended header of 2097153 bytes"),
    ],
)
def test_a_damaged_or_forged_archive_is_refused(unpack: Callable[..., list[bytes]], content: bytes, text: str) -> None:
    with pytest.raises(InputCorrupt, match=text):
        unpack(content)


SPARSE_PAX = (b"GNU.sparse.major=1", b"GNU.sparse.map=0,1", b"GNU.sparse.realsize=99999999999")


@pytest.mark.parametrize(
    "content", [entry(b"S", CONTENT), *(pax(record) + entry(b"0", CONTENT) for record in SPARSE_PAX)]
)
def test_sparse_files_are_refused(unpack: Callable[..., list[bytes]], content: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="sparse"):
        unpack(content + END)


def test_one_of_several_volumes_is_refused(unpack: Callable[..., list[bytes]]) -> None:
    with pytest.raises(UnsupportedFormat, match="several volumes"):
        unpack(entry(b"M", CONTENT) + END)


def test_files_that_have_the_limit_together_are_unpacked(unpack: Callable[..., list[bytes]]) -> None:
    assert len(unpack(PLAIN, max_bytes=2 * len(CONTENT))) == 3


def test_files_that_exceed_the_limit_together_are_refused(unpack: Callable[..., list[bytes]], tmp_path: Path) -> None:
    with pytest.raises(InputTooLarge, match="more than 2559 bytes"):
        unpack(PLAIN, max_bytes=2 * len(CONTENT) - 1)
    assert sum(path.stat().st_size for path in (tmp_path / "to").iterdir()) < 2 * len(CONTENT)


@pytest.mark.parametrize(
    "content", [entry(b"L", bytes(10**6)) + END, bytes(10**6), b"".join([pax(b"a=" + b"b" * 10**5)] * 10) + END]
)
def test_skipped_data_are_limited_too(
    unpack: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(tar_archive, "MAX_FILES", 100)
    with pytest.raises(InputTooLarge, match="more than 419600 bytes"):
        unpack(entry(b"0") + content)


def test_too_many_files_are_refused(unpack: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked_files, "MAX_FILES", 2)
    with pytest.raises(InputTooLarge, match="more than 2 files"):
        unpack(PLAIN)


@pytest.mark.parametrize("content", [b"", bytes(10240), CONTENT, b"text " * 200, PLAIN[:511], b"0" * 512])
def test_other_content_is_no_tar(content: bytes) -> None:
    assert not is_tar(content)


@given(changes=st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_archive_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(PLAIN)
    for position, value in changes:
        content[position] = value
    folder = tmp_path_factory.mktemp("tar")
    try:
        paths = unpack_tar(io.BytesIO(content), UnpackedFiles(folder / "to", LIMIT))
    except InputError:
        return
    assert sum(path.stat().st_size for path in paths) <= LIMIT
    assert {path.parent for path in folder.rglob("*") if path.is_file()} <= {folder / "to"}


HEADERS = st.builds(
    entry,
    st.sampled_from([bytes([kind]) for kind in b"\x0001234567xXgLKNDSMVAZ"]),
    st.binary(max_size=700),
    size=st.none() | st.binary(max_size=12) | st.integers(0, 2**33).map(lambda size: f"{size:011o}".encode()),
)


@given(entries=st.lists(HEADERS, max_size=5), records=st.lists(st.binary(max_size=40), max_size=3))
def test_entries_with_valid_checksums_are_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], records: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    content = pax(*records) + b"".join(entries) + END
    try:
        paths = unpack_tar(io.BytesIO(content), UnpackedFiles(folder / "to", LIMIT))
    except InputError:
        return
    assert sum(path.stat().st_size for path in paths) <= LIMIT
