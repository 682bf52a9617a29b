import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from inference_service.core.errors import InputCorrupt, InputNotFound, InputTooLarge
from inference_service.importers.source_files import (
    forbidden_in_torchscript,
    is_archive,
    is_checkpoint,
    is_torchscript,
    licence_of,
    only_folders,
    opened_source,
    torchscript_extra,
    unpack_named,
)


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def test_a_zip_is_unpacked_and_removed(tmp_path: Path) -> None:
    source = archive(tmp_path / "bundle.zip", {"v1/configs/a.json": b"{}", "v1/models/b": b"x", "__MACOSX/v1/a": b""})
    with opened_source(source, tmp_path) as folder:
        assert [str(path.relative_to(folder)) for path in only_folders(folder)] == [".", "v1"]
        assert sorted(path.name for path in (folder / "v1").rglob("*") if path.is_file()) == ["a.json", "b"]
    assert list(tmp_path.iterdir()) == [source]


def test_only_folders_end_where_there_is_more(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "b" / "file").touch()
    assert only_folders(tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert only_folders(tmp_path / "a" / "b" / "file") == [tmp_path / "a" / "b" / "file"]
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    assert len(only_folders(tmp_path / "loop")) == 16


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:/x", "a\\..\\..\\x", "."])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputCorrupt, match="out of the folder"):
        unpack_named(archive(tmp_path / "x.zip", {name: b"x"}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as target:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc")
    with pytest.raises(InputCorrupt, match="link"):
        unpack_named(path, tmp_path / "out")


def test_a_link_that_leads_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "fold_0").mkdir(parents=True)
    (source / "fold_0" / "weights").touch()
    (source / "same").symlink_to("fold_0")
    (tmp_path / "link").symlink_to(source)
    with opened_source(tmp_path / "link", tmp_path) as opened:
        assert opened == tmp_path / "link"
    (tmp_path / "secret").touch()
    link = source / "fold_0" / "checkpoint"
    for target, error, named in (
        ("../../secret", InputCorrupt, "fold_0/checkpoint is a link that leads out of the folder"),
        (tmp_path, InputCorrupt, "leads out of the folder"),
        ("missing", InputNotFound, "fold_0/checkpoint is a link that leads to no file"),
        ("checkpoint", InputNotFound, "leads to no file"),
    ):
        link.symlink_to(target)
        with pytest.raises(error, match=named), opened_source(source, tmp_path):
            pass
        link.unlink()


def test_a_zip_is_unpacked_within_limits(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "x.zip", {"zeros": bytes(10**6)})
    with pytest.raises(InputTooLarge, match="unpacks to more"):
        unpack_named(bomb, tmp_path / "out", max_bytes=10**5)
    assert (tmp_path / "out" / "zeros").stat().st_size <= 10**5


def test_a_zip_fits_on_the_disk_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=2**26 + 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputTooLarge, match="more than 100000 bytes, which fit here"):
        unpack_named(archive(tmp_path / "x.zip", {"zeros": bytes(10**6)}), tmp_path / "out")


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputCorrupt, match="one name"):
        unpack_named(archive(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"}), tmp_path / "out")


def test_torchscript_is_recognised_by_its_entries(tmp_path: Path) -> None:
    script = archive(
        tmp_path / "model.ts", {"m/data.pkl": b"", "m/constants.pkl": b"", "m/extra/inference.json": b'{"a": 1}'}
    )
    checkpoint = archive(tmp_path / "model.pt", {"m/data.pkl": b"", "m/data/0": b""})
    older = tmp_path / "older.pth"
    older.write_bytes(b"\x80\x02}")
    paths = (script, checkpoint, older, tmp_path)
    assert [is_torchscript(path) for path in paths] == [True, False, False, False]
    assert [is_checkpoint(path) for path in paths] == [False, True, True, False]
    assert not any(map(is_archive, paths))
    assert torchscript_extra(script, "inference.json", 4) == b'{"a"'
    assert torchscript_extra(script, "metadata.json", 4) is None
    with opened_source(script, tmp_path) as source:
        assert source == script


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="no such file"), opened_source(tmp_path / "none", tmp_path):
        pass


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("  Apache License\n  Version 2.0, January 2004\n", "Apache-2.0"),
        ("MIT License\n\nCopyright", "MIT"),
        ("All rights reserved", None),
    ],
)
def test_a_known_licence_is_recognised(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "LICENSE").write_text(text)
    assert licence_of(tmp_path) == licence


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('torch.save(state, "x")', "save"),
        ("t = torch\n    t . from_file('x')", "from_file"),
        ("getattr(torch, 'save')", "save"),
        (r"getattr(torch, '\x73ave')", "getattr"),
        ('getattr(self, "0"); self.saved', None),
    ],
)
def test_code_of_torchscript_that_reaches_for_files_is_found(tmp_path: Path, code: str, found: str | None) -> None:
    files = {"x/constants.pkl": b"save", "x/code/__torch__/net.py": code.encode()}
    assert forbidden_in_torchscript(archive(tmp_path / "x.ts", files)) == found
