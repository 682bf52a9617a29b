import os
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_files import regular_stack, write_enhanced, write_series

from inference_service.cohort.scan_folder import list_scans
from inference_service.core.errors import BadRequest, InputNotFound, MixedSeries

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a folder of files by their names; a name that ends in / is a sub-folder with one file."""

    def folder(*names: str) -> Path:
        for name in names:
            path = tmp_path / "scans" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir()
                path /= "1.dcm"
            path.write_text(name)
        return tmp_path / "scans"

    return folder


def listed(folder: Path, channels: int | None = None, reserved: tuple[str, ...] = ()) -> dict[str, list[str]]:
    found = list_scans(folder, channels=channels, reserved=reserved)
    return {scan.name: [path.name for path in scan.paths] for scan in found.scans}


def test_each_file_and_each_sub_folder_is_a_scan(make: Make) -> None:
    folder = make("b.nii.gz", "a.nii", "c.NRRD", "1.2.840.113", "d.tar.gz", "series.nii/")
    assert listed(folder) == {
        "1.2.840.113": ["1.2.840.113"],
        "a": ["a.nii"],
        "b": ["b.nii.gz"],
        "c": ["c.NRRD"],
        "d": ["d.tar.gz"],
        "series.nii": ["series.nii"],
    }


def test_a_header_and_its_voxels_are_one_scan(make: Make) -> None:
    folder = make("a.mhd", "a.raw", "B.HDR", "B.img.gz", "c.nhdr", "c.raw", "d.img", "e.mhd", "e.zraw")
    assert listed(folder) == {"B": ["B.HDR"], "a": ["a.mhd"], "c": ["c.nhdr"], "d": ["d.img"], "e": ["e.mhd"]}


def test_the_channels_of_a_case_are_one_scan(make: Make) -> None:
    folder = make(
        "p_1_0000.nii.gz", "p_1_0001.nii.gz", "p_2_0000.nii.gz", "p_2_0001.nii.gz", "p_3_0000.mhd", "p_3_0000.raw"
    )
    assert listed(folder) == {
        "p_1": ["p_1_0000.nii.gz", "p_1_0001.nii.gz"],
        "p_2": ["p_2_0000.nii.gz", "p_2_0001.nii.gz"],
        "p_3": ["p_3_0000.mhd"],
    }


@pytest.mark.parametrize(
    "names",
    [
        [f"ct_{number:04}.nii" for number in range(17)],  # more than a scan has channels
        ["ct_0001.nii", "ct_0002.nii"],
        ["ct_0000.nii", "ct_0002.nii"],
        ["ct_0000.nii", "ct_2019.nii"],
    ],
)
def test_numbered_files_that_cannot_be_channels_are_scans(make: Make, names: list[str]) -> None:
    assert listed(make(*names)) == {name.removesuffix(".nii"): [name] for name in names}


def test_a_model_of_one_channel_takes_numbered_files_for_scans(make: Make) -> None:
    folder = make("ct_0000.nii", "ct_0001.nii", "case_7_0000.nii")
    assert list(listed(folder, channels=1)) == ["case_7", "ct_0000", "ct_0001"]
    assert list(listed(folder, channels=2)) == ["case_7", "ct"]


def test_names_are_unique_and_those_of_files(make: Make) -> None:
    folder = make("a.nii", "a.nii.gz", "A.nrrd", "b_0000.nii", "b.nii", "c.nii", "C/", "results.csv.nii")
    assert listed(folder, reserved=("results.csv",)) == {
        "A.nrrd": ["A.nrrd"],
        "C": ["C"],
        "a.nii": ["a.nii"],
        "a.nii.gz": ["a.nii.gz"],
        "b.nii": ["b.nii"],
        "b_0000.nii": ["b_0000.nii"],
        "c.nii": ["c.nii"],
        "results.csv.nii": ["results.csv.nii"],
    }


def test_a_name_that_is_taken_gets_a_number(make: Make) -> None:
    assert listed(make("a.nii", "a.nrrd", "a.nii.nii")) == {
        "a.nii": ["a.nii.nii"],
        "a.nii-2": ["a.nii"],
        "a.nrrd": ["a.nrrd"],
    }


def test_names_are_safe(make: Make) -> None:
    long = "ü" * 120
    folder = make("-rf.nii", "a:b*.nii", f"{long}.nii", f"{long}1.nii", "Müller, Jörg.nii")
    (folder / os.fsdecode(b"\xff.nii")).write_text("")
    names = list(listed(folder))
    assert {"_rf", "a_b_", "_", "Müller, Jörg"} <= set(names)
    assert len(names) == 6
    assert all(len(name.encode()) <= 200 for name in names)


def test_hidden_files_and_tables_are_no_scans(make: Make) -> None:
    folder = make("a.nii", ".DS_Store", "._a.nii", "__MACOSX/", "dataset.json", "README.txt")
    os.mkfifo(folder / "pipe")
    found = list_scans(folder)
    assert [scan.name for scan in found.scans] == ["a"]
    assert found.others == ("README.txt", "dataset.json", "pipe")


def test_a_link_that_leads_nowhere_is_not_left_out(make: Make) -> None:
    folder = make("a.nii")
    (folder / "b.nii").symlink_to("gone.nii")
    assert list(listed(folder)) == ["a", "b"]


def test_a_folder_without_scans_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="holds no scan"):
        list_scans(make("a.csv"))
    with pytest.raises(InputNotFound, match="no such folder"):
        list_scans(tmp_path / "none")
    with pytest.raises(BadRequest, match="this is a file"):
        list_scans(tmp_path / "scans" / "a.csv")


def test_slices_of_one_series_are_not_taken_for_scans(tmp_path: Path) -> None:
    write_series(tmp_path, regular_stack())
    with pytest.raises(MixedSeries, match="put each series into a sub-folder"):
        list_scans(tmp_path)


def test_multi_frame_files_are_scans(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", regular_stack())
    write_series(tmp_path / "b", regular_stack())
    assert list(listed(tmp_path)) == ["a", "b"]


def test_a_fingerprint_changes_with_name_size_and_time(make: Make) -> None:
    folder = make("a.mhd", "a.raw", "b/")
    scans = {scan.name: scan for scan in list_scans(folder).scans}
    before = {name: scan.fingerprint() for name, scan in scans.items()}
    assert before == {name: scan.fingerprint() for name, scan in scans.items()}
    os.utime(folder / "a.raw", ns=(0, 0))
    (folder / "b" / "2.dcm").write_text("")
    assert scans["a"].fingerprint() != before["a"]
    assert scans["b"].fingerprint() != before["b"]


def test_the_source_of_channels_is_a_folder_of_links(make: Make, tmp_path: Path) -> None:
    folder = make("p_0000.mhd", "p_0000.raw", "p_0001.nii")
    (scan,) = list_scans(folder).scans
    with scan.source(tmp_path) as source:
        assert sorted(path.name for path in source.iterdir()) == ["p_0000.mhd", "p_0000.raw", "p_0001.nii"]
        assert (source / "p_0001.nii").read_text() == "p_0001.nii"
    assert not source.exists()
