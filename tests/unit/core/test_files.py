import hashlib
from pathlib import Path

import pytest

from inference_service.core import files
from inference_service.core.errors import InputNotFound, InputTooLarge
from inference_service.core.files import channel_number, input_sha256, list_files, list_input, numbered_name


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_files_of_all_subfolders_are_sorted_by_path(tmp_path: Path) -> None:
    names = ["z.dcm", "b/2.dcm", "b/10.dcm", "a/c/1.dcm"]
    folder = write(tmp_path, dict.fromkeys(names, b"x"))
    assert list_files(folder, max_bytes=100) == sorted(folder / name for name in names)


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"1.dcm": b"1", "a/2.dcm": b"2", "a/b/3.dcm": b"3"})
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.dcm").symlink_to(outside / "1.dcm")
    (folder / "a").symlink_to(outside / "a")
    assert list_files(folder, max_bytes=100) == [folder / "1.dcm", folder / "a/2.dcm", folder / "a/b/3.dcm"]
    assert input_sha256(folder) == input_sha256(outside)
    (tmp_path / "link").symlink_to(folder)
    assert len(list_files(tmp_path / "link", max_bytes=100)) == 3


def test_loops_of_links_end_and_a_file_with_several_names_is_listed_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a/1.dcm": b"1", "b/2.dcm": b"2"})
    digest = input_sha256(folder)
    (folder / "a/up").symlink_to(folder)
    (folder / "b/self").symlink_to(folder / "b")
    (folder / "c").symlink_to(folder / "b/2.dcm")
    assert [path.read_bytes() for path in list_files(folder, max_bytes=2)] == [b"1", b"2"]
    assert input_sha256(folder) == digest


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_to_no_file_is_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path, {"1.dcm": b"x"})
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(InputNotFound, match="a symbolic link in the folder leads to no file"):
        list_files(tmp_path, max_bytes=100)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputNotFound):
        list_files(tmp_path, max_bytes=100)


def test_the_limit_on_files_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    folder = write(tmp_path, {"1": b"", "2": b"", "3": b""})
    assert len(list_files(folder, max_bytes=100)) == 3
    write(folder, {"4": b""})
    with pytest.raises(InputTooLarge, match="holds more than 3 files"):
        list_files(folder, max_bytes=100)


def test_the_limit_on_bytes_is_exact_and_applies_to_all_files_together(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": b"12345", "a/2": b"678"})
    assert len(list_files(folder, max_bytes=8)) == 2
    with pytest.raises(InputTooLarge, match="holds 8 bytes; this service takes at most 7"):
        list_files(folder, max_bytes=7)


def test_the_hash_of_a_file_is_the_sha256_of_its_content(tmp_path: Path) -> None:
    write(tmp_path, {"scan.nii": b"voxels"})
    assert input_sha256(tmp_path / "scan.nii") == hashlib.sha256(b"voxels").hexdigest()


def test_the_hash_of_a_folder_does_not_depend_on_names_and_subfolders(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"1.dcm": b"one", "2.dcm": b"two", "3.dcm": b"three"})
    second = write(tmp_path / "second", {"a/z": b"one", "b": b"three", "c/d/y": b"two"})
    assert input_sha256(first) == input_sha256(second)


@pytest.mark.parametrize(
    "contents",
    [{"1": b"one"}, {"1": b"one", "2": b"two", "3": b"two"}, {"1": b"one", "2": b"twO"}],
    ids=["missing file", "repeated file", "changed file"],
)
def test_the_hash_of_a_folder_depends_on_the_content_of_every_file(tmp_path: Path, contents: dict[str, bytes]) -> None:
    folder = write(tmp_path / "scan", {"1": b"one", "2": b"two"})
    assert input_sha256(write(tmp_path / "other", contents)) != input_sha256(folder)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scan.hdr", ["scan.img"]),
        ("scan.img", ["scan.hdr"]),
        ("SCAN.HDR", ["SCAN.IMG"]),
        ("scan.hdr.gz", ["scan.img.gz"]),
        ("scan.img.gz", ["scan.hdr"]),
        ("scan.nhdr", ["scan.raw.gz"]),
        ("scan.mhd", ["scan.raw", "scan.zraw"]),
        ("a.b.hdr", ["a.b.img"]),
        ("scan.nii", []),
        ("scan", []),
        (".hdr", []),
    ],
)
def test_the_other_part_of_a_file_belongs_to_it(tmp_path: Path, name: str, parts: list[str]) -> None:
    others = ["scan2.img", "b.hdr", "scan.txt", "scan", "scan.nii", "img"]
    folder = write(tmp_path / "in", {each: each.encode() for each in (name, *parts, *others)})
    source = folder / name
    assert list_input(source, max_bytes=1) == [source, *(folder / part for part in parts)]
    if parts:
        alone = write(tmp_path / "alone", {each: each.encode() for each in (name, *parts)})
        assert input_sha256(source) == input_sha256(alone)


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("case_0000.nii.gz", 0), ("case_0001", 1), ("CASE_0015.NRRD", 15), ("a/b_0002.mhd", 2), ("_0003.nii", 3),
        ("000007_0004", 4), ("x_0001.nii.gz.zst", 1), ("case_0016.nii", None), ("case_1970.nii", None),
        ("case_001.nii", None),
        ("case_00001.nii", None), ("case0001.nii", None), ("case_0001/scan.nii", None), ("case_0001_seg.nii", None),
        ("case_0001.a.b.c.d", None), ("case_0001.", None), ("case_0001.nii\n", None), ("case_٠٠٠١.nii", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_channel_is_read_from_the_end_of_a_name(name: str, channel: int | None) -> None:
    assert channel_number(name) == channel
    assert numbered_name(12, name) == ("000012" if channel is None else f"000012_{channel:04}")
    assert channel_number(numbered_name(12, name)) == channel


def test_the_ending_of_a_name_matters_for_several_channels_alone(tmp_path: Path) -> None:
    folders = {
        "first": {"a_0000.nii": b"T1", "a_0001.nii": b"FLAIR"},
        "renamed": {"b_0000.nii": b"T1", "000007_0001": b"FLAIR"},
        "swapped": {"a_0001.nii": b"T1", "a_0000.nii": b"FLAIR"},
    }
    written = {name: write(tmp_path / name, files) for name, files in folders.items()}
    alone = {name: input_sha256(folder) for name, folder in written.items()}
    assert len(set(alone.values())) == 1
    several = {name: input_sha256(folder, ["T1", "FLAIR"]) for name, folder in written.items()}
    assert several["first"] == several["renamed"] != several["swapped"]


def test_the_hash_of_channels_depends_on_their_order(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"T1", "b": b"FLAIR"})
    scans = {"T1": tmp_path / "a", "FLAIR": tmp_path / "b"}
    assert input_sha256(scans, ["T1", "FLAIR"]) != input_sha256(scans, ["FLAIR", "T1"])
    assert input_sha256({"CT": tmp_path / "a"}, ["CT"]) == input_sha256(tmp_path / "a")
