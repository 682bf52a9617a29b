"""The process that reads a source: what it imports, how long it may take, and what it may answer."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import wait_for

from inference_service.core.errors import InternalError, ModelInvalid, ServiceError, TimeLimit
from inference_service.importers import isolation
from inference_service.importers.isolation import Isolation
from inference_service.importers.sandbox import namespace_prefix

Run = Callable[..., list[tuple[str, float]]]

# A child of its own session, which has the lock too, would outlive the process group.
HANGING = """
import fcntl, subprocess, sys, time

lock = open({lock!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
for own_session in (False, True):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(command, pass_fds=[lock.fileno()], start_new_session=own_session)
print('{{"activity": "waiting", "share": 0.5}}', flush=True)
time.sleep(600)
"""
LEAVING = """
import fcntl, subprocess, sys

lock = open({lock!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[lock.fileno()])
print('{{"result": {{"left": 1}}}}', flush=True)
"""
SILENT = """
import time

print('{"activity": "running", "share": 0.25}', flush=True)
time.sleep(2.5)
print('{"result": {}}')
"""
LEAVING_FILES = """
import os

home = os.environ["HOME"]
assert os.listdir(home) == []
open(home + "/.profile", "w")
print('{"result": {}}')
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs Python in place of the isolated process, and returns the progress."""
    monkeypatch.setattr(isolation, "_MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run_python(code: str, time_limit_s: float = 60) -> list[tuple[str, float]]:
        (tmp_path / "stand_in.py").write_text(code)
        seen: list[tuple[str, float]] = []
        Isolation(tmp_path, time_limit_s).run("predict", {}, progress=lambda *step: seen.append(step))
        return seen

    return run_python


def is_free(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may be called in the folder of a hostile source."""
    (tmp_path / "json.py").write_text("open('ran', 'w')\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelInvalid, match="there is no action unknown"):
        Isolation(scratch).run("unknown", {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not namespace_prefix(), reason="without namespaces, a child may leave the process group")
def test_a_task_that_takes_too_long_is_ended_with_its_children(run: Run, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(TimeLimit, match="source's own predictor took longer than 3 s and was ended; --time-limit"):
        run(HANGING.format(lock=str(lock)), time_limit_s=3)
    wait_for(lambda: is_free(lock))


def test_children_in_the_process_group_end_where_there_are_no_namespaces(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "namespace_prefix", tuple)
    lock = tmp_path / "lock"
    with pytest.raises(TimeLimit):
        run(HANGING.format(lock=str(lock)).replace("(False, True)", "(False,)"), time_limit_s=2)
    wait_for(lambda: is_free(lock))


def test_children_that_a_task_leaves_behind_end_with_it(run: Run, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    run(LEAVING.format(lock=str(lock)))
    wait_for(lambda: is_free(lock))


def test_progress_comes_again_while_a_task_says_nothing(run: Run) -> None:
    seen = run(SILENT)
    assert set(seen) == {("running", 0.25)}
    assert len(seen) >= 2


@pytest.mark.parametrize(
    ("says", "named"),
    [
        ("print('hello')", "not JSON"),
        ("print('[' * 100_000)", "not JSON"),
        ("print([1])", "no object"),
        ("import sys; sys.stdout.write('x' * 2**25)", "without end"),
        ("print('{\"error\": 1}')", "predictor failed"),
        ("raise SystemExit(3)", "predictor failed"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(run: Run, says: str, named: str) -> None:
    with pytest.raises(InternalError, match=named):
        run(says)


@pytest.mark.parametrize("share", ["NaN", "-1", "null", "[]"])
def test_a_share_is_from_0_to_1_whatever_the_process_says(run: Run, share: str) -> None:
    assert run(f"""print('{{"activity": "a", "share": {share}}}'); print('{{"result": {{}}}}')""") == [("a", 0.0)]


def test_each_task_has_a_home_of_its_own(run: Run, tmp_path: Path) -> None:
    run(LEAVING_FILES)
    run(LEAVING_FILES)
    assert not list(tmp_path.glob("home-*"))


def test_an_onnx_file_is_loaded_by_the_isolated_process(tmp_path: Path) -> None:
    (tmp_path / "test" / "1").mkdir(parents=True)
    with pytest.raises(ServiceError, match=r"has no manifest\.json"):
        Isolation(tmp_path).run("check_model", {"folder": str(tmp_path / "test" / "1")})
