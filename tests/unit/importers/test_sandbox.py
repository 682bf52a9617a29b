import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inference_service.importers.sandbox import _landlock_version, find_limits, namespace_prefix

HAS_SCOPES = _landlock_version() >= 6
WRITE = """
import os, stat, sys
from pathlib import Path
from inference_service.importers.sandbox import restrict

own, other = map(Path, sys.argv[1:])
(other / "removed").touch()
restrict([own])
(own / "written").write_text("x")
(own / "written").rename(own / "moved")
Path("/dev/null").write_text("x")
assert (other / "removed").read_text() == ""
attempts = (
    (other / "new").touch,
    (other / "removed").unlink,
    (other / "folder").mkdir,
    Path("/dev/shm/inference-service-test").touch,
    lambda: os.mknod(own / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 0)),
)
for attempt in attempts:
    try:
        attempt()
    except PermissionError:
        continue
    raise AssertionError(attempt)
"""
REACH_OUT = """
import os, signal, socket, sys
from inference_service.importers.sandbox import restrict

restrict([])
attempts = (
    lambda: os.kill(int(sys.argv[1]), signal.SIGUSR1),
    lambda: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[2]),
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3]))),
)
for attempt in attempts:
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


@pytest.mark.skipif(not HAS_SCOPES, reason="the kernel's Landlock has no scopes")
def test_a_process_reaches_neither_processes_nor_sockets_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    name = f"inference-service-{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as tcp:
            abstract.bind("\0" + name)
            abstract.listen()
            port = str(tcp.getsockname()[1])
            subprocess.run([sys.executable, "-c", REACH_OUT, str(os.getpid()), name, port], check=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signals == []


@pytest.mark.skipif(not find_limits().network, reason="the kernel has no namespaces of networks for this user")
def test_a_process_has_no_network_beside_an_unconfigured_loopback() -> None:
    listing = subprocess.run(
        [*namespace_prefix(), sys.executable, "-c", "import socket; print([n for _, n in socket.if_nameindex()])"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert listing.stdout.strip() == "['lo']"
