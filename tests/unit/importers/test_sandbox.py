import subprocess
import sys
from pathlib import Path

import pytest

from inference_service.importers.sandbox import find_limits, network_prefix

WRITE = """
import sys
from pathlib import Path
from inference_service.importers.sandbox import restrict_writing

own, other = map(Path, sys.argv[1:])
(other / "removed").touch()
restrict_writing([own])
(own / "written").write_text("x")
(own / "written").rename(own / "moved")
Path("/dev/null").write_text("x")
assert (other / "removed").read_text() == ""
for attempt in ((other / "new").touch, (other / "removed").unlink, (other / "folder").mkdir):
    try:
        attempt()
    except PermissionError:
        continue
    raise AssertionError(attempt)
"""


@pytest.mark.skipif(not find_limits().writing, reason="the kernel has no Landlock")
def test_a_process_writes_to_its_own_folders_alone(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    subprocess.run([sys.executable, "-c", WRITE, str(own), str(other)], check=True)
    assert [path.name for path in own.iterdir()] == ["moved"]
    assert [path.name for path in other.iterdir()] == ["removed"]


@pytest.mark.skipif(not find_limits().network, reason="the kernel has no namespaces of networks for this user")
def test_a_process_has_no_network_beside_an_unconfigured_loopback() -> None:
    listing = subprocess.run(
        [*network_prefix(), sys.executable, "-c", "import socket; print([n for _, n in socket.if_nameindex()])"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert listing.stdout.strip() == "['lo']"
