import subprocess
import sys

import pytest

KILL = "from inference_service.jobs.lease import kill_process; kill_process()"
# The first process of a container, or of any other process namespace, ignores SIGKILL from within.
AS_FIRST = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]


def returncode(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("before", [[], AS_FIRST], ids=["a process", "the first process of a container"])
def test_a_process_can_kill_itself(before: list[str]) -> None:
    if before and returncode(*before, "true"):
        pytest.skip("this machine allows no process namespaces")
    assert returncode(*before, sys.executable, "-c", KILL) == 137
