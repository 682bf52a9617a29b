"""The cache of fetched models, shared by the processes of one machine."""

import fcntl
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import JobCancelled, ModelInvalid, ModelNotFound, StorageUnavailable
from inference_service.model_store.model_cache import ModelCache

FILES = {"manifest.json": b"{}", "model.onnx": b"network"}
MIB = 2**20
_USES = 40


def index_of(name: str = "ct-lung", *, size: int = 7) -> ModelIndex:
    files = {**FILES, "model.onnx": name.encode().ljust(size, b"-")[:size]}
    entries = {
        file: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for file, content in files.items()
    }
    return ModelIndex.model_validate({"name": name, "version": "1", "files": entries})


def fetcher(name: str = "ct-lung", *, size: int = 7, fetched: list[str] | None = None) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        if fetched is not None:
            fetched.append(name)
        (folder / "manifest.json").write_bytes(FILES["manifest.json"])
        (folder / "model.onnx").write_bytes(name.encode().ljust(size, b"-")[:size])

    return fetch


def no_wait() -> None:
    raise AssertionError("no other process holds the lock")


@contextmanager
def held(cache: ModelCache, name: str = "ct-lung", *, size: int = 7) -> Iterator[Path]:
    with cache.holding(index_of(name, size=size), fetcher(name, size=size), no_wait) as folder:
        yield folder


def never(folder: Path) -> None:
    raise AssertionError("it is in the cache")


def left(folder: Path) -> list[str]:
    """The names in the cache, without its own lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def test_a_version_is_fetched_once(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, MIB)
    index = index_of()
    assert not cache.has(index)
    with held(cache) as folder:
        assert folder.relative_to(tmp_path) == Path(index.digest, "ct-lung", "1")
        assert {path.name for path in folder.iterdir()} == {*FILES}
    with ModelCache(tmp_path, MIB).holding(index, never, no_wait) as again:
        assert again == folder
    assert cache.has(index)
    assert left(tmp_path) == [index.digest]


@pytest.mark.parametrize(
    "error", [StorageUnavailable("no answer"), ModelInvalid("changed"), JobCancelled("on request")]
)
def test_nothing_of_a_failed_fetch_stays(tmp_path: Path, error: Exception) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise error

    cache = ModelCache(tmp_path, MIB)
    with pytest.raises(type(error)), cache.holding(index_of(), fail, no_wait):
        pass
    assert left(tmp_path) == []
    with held(cache):
        pass


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest", "all"])
def test_a_version_that_lacks_something_is_fetched_again(tmp_path: Path, damage: str) -> None:
    cache = ModelCache(tmp_path, MIB)
    with held(cache) as folder:
        pass
    if damage == "missing":
        (folder / "model.onnx").unlink()
    elif damage == "truncated":
        (folder / "model.onnx").write_bytes(b"ct")
    elif damage == "manifest":
        (folder / "manifest.json").write_bytes(b"[]")
    else:
        subprocess.run(["rm", "-rf", str(tmp_path)], check=True)
    assert not cache.has(index_of())
    with held(cache):
        assert (folder / "model.onnx").read_bytes() == b"ct-lung"
        assert (folder / "manifest.json").read_bytes() == b"{}"


def lose(path: Path) -> None:
    path.unlink()
    raise ModelNotFound(f"there is no {path.name}")


def test_a_file_that_is_damaged_on_the_disk_is_noticed_and_fetched_again(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, MIB)
    with held(cache) as folder:
        (folder / "model.onnx").write_bytes(b"CT-LUNG")
    with pytest.raises(StorageUnavailable, match="were damaged on this worker's disk"), held(cache):
        raise ModelInvalid("expected another sha256")
    with pytest.raises(StorageUnavailable, match="were damaged on this worker's disk"), held(cache) as folder:
        lose(folder / "model.onnx")
    with held(cache) as folder:
        assert (folder / "model.onnx").read_bytes() == b"ct-lung"


def test_an_invalid_model_whose_files_are_as_they_were_stored_stays_invalid(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, MIB)
    with pytest.raises(ModelInvalid, match="not finite"), held(cache):
        raise ModelInvalid("its logits are not finite")
    assert cache.has(index_of())


def test_a_version_larger_than_the_cache_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 100)
    with pytest.raises(ModelInvalid, match=r"has 102 bytes; this worker fetches at most 100 \(MODELS_CACHE_BYTES\)"):
        cache.holding(index_of(size=100), never, no_wait).__enter__()
    assert left(tmp_path) == []
    with held(cache, size=98):
        pass


def used_at(tmp_path: Path, name: str, at: float, *, size: int) -> None:
    os.utime(tmp_path / index_of(name, size=size).digest / "lock", (at, at))


def test_the_version_that_was_unused_for_the_longest_time_makes_room(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 300)
    for at, name in enumerate(("b", "a", "c")):
        with held(cache, name, size=90):
            pass
        used_at(tmp_path, name, at, size=90)
    with held(cache, "b", size=90):
        pass
    (tmp_path / "of-another-program").mkdir()
    with held(cache, "d", size=90):
        pass
    assert [name for name in "abcd" if cache.has(index_of(name, size=90))] == ["b", "c", "d"]
    assert (tmp_path / "of-another-program").exists()


def test_a_version_in_use_is_not_removed(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 200)
    with held(cache, "a", size=90) as folder:
        used_at(tmp_path, "a", 0, size=90)
        full = pytest.raises(StorageUnavailable, match="no room for model c 1 beside the models that jobs use")
        with held(cache, "b", size=90), full:
            cache.holding(index_of("c", size=90), never, no_wait).__enter__()
        with held(cache, "c", size=90):
            assert folder.exists()
        assert not cache.has(index_of("b", size=90))


def test_unused_versions_make_room_on_a_disk_that_is_smaller_than_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ModelCache(tmp_path, MIB)
    disk_bytes = 2**28 + 300

    def disk_usage(path: Path) -> tuple[int, int, int]:
        used = sum(each.stat().st_size for each in tmp_path.rglob("model.onnx"))
        return shutil._ntuple_diskusage(disk_bytes, used, disk_bytes - used)

    monkeypatch.setattr("inference_service.model_store.model_cache.shutil.disk_usage", disk_usage)
    for name in "abc":
        with held(cache, name, size=90):
            pass
    used_at(tmp_path, "b", 0, size=90)
    with held(cache, "d", size=90):
        assert [name for name in "abcd" if cache.has(index_of(name, size=90))] == ["a", "c", "d"]
        no_room = pytest.raises(StorageUnavailable, match="or free space on its disk")
        with held(cache, "a", size=90), held(cache, "c", size=90), no_room:
            cache.holding(index_of("e", size=90), never, no_wait).__enter__()


def test_a_folder_of_another_user_is_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("inference_service.model_store.model_cache.os.open", refuse)
    with pytest.raises(StorageUnavailable, match="cannot write its cache of models"):
        ModelCache(tmp_path, MIB).holding(index_of(), never, no_wait).__enter__()


def test_a_version_whose_removal_was_killed_keeps_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its files would no longer count."""

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cache = ModelCache(tmp_path, 150)
    with held(cache, "a", size=90):
        pass
    monkeypatch.setattr("inference_service.model_store.model_cache.shutil.rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        cache.holding(index_of("b", size=90), never, no_wait).__enter__()
    assert (tmp_path / index_of("a", size=90).digest / "size").read_text() == "92"


PROCESS = """
import sys, time
from pathlib import Path
from inference_service.contract.model_index import ModelIndex
from inference_service.model_store.model_cache import ModelCache

folder, index, content = Path(sys.argv[1]), ModelIndex.model_validate_json(sys.argv[2]), sys.argv[3]

def fetch(target):
    (target / "manifest.json").write_bytes(b"{}")
    (target / "model.onnx").write_text(content[:2])
    print("fetching", flush=True)
    sys.stdin.readline()
    (target / "model.onnx").write_text(content)

def wait():
    print("waiting", flush=True)

with ModelCache(folder, 2**20).holding(index, fetch, wait) as held:
    print("held", (held / "model.onnx").read_text(), flush=True)
    sys.stdin.readline()
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, str(folder), index_of().content().decode(), "ct-lung"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


@contextmanager
def processes(folder: Path, count: int) -> "Iterator[list[subprocess.Popen[str]]]":
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = stack.enter_context(start(folder))
            stack.callback(process.kill)
            started.append(process)
        yield started


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


def test_of_several_processes_one_fetches(tmp_path: Path) -> None:
    with processes(tmp_path, 3) as started:
        lines = {process.pid: line(process) for process in started}
        (fetching,) = (process for process in started if lines[process.pid] == "fetching")
        assert sorted(lines.values()) == ["fetching", "waiting", "waiting"]
        go_on(fetching)
        for process in started:
            while (said := line(process)) == "waiting":
                pass
            assert said == "held ct-lung"


def test_after_a_kill_in_the_middle_of_a_fetch_nothing_half_remains_and_another_process_fetches(tmp_path: Path) -> None:
    with processes(tmp_path, 2) as (first, second):
        said = {line(first): first, line(second): second}
        killed, waiting = said["fetching"], said["waiting"]
        killed.send_signal(signal.SIGKILL)
        while (now := line(waiting)) == "waiting":
            pass
        assert now == "fetching"
        # What the killed process left is gone; the staging folder is the second one's.
        assert len([path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".")]) == 1
        go_on(waiting)
        assert line(waiting) == "held ct-lung"
    assert left(tmp_path) == [index_of().digest]


def test_the_room_of_a_killed_fetch_is_free_again_before_that_of_others(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, 120)
    with held(cache, "other", size=90):
        pass
    with processes(tmp_path, 1) as (process,):
        assert line(process) == "fetching"
        process.kill()
    cache.remove_abandoned()
    assert not list(tmp_path.glob(".*"))
    with held(cache, "third", size=20):
        pass
    assert left(tmp_path) == sorted(index_of(name, size=size).digest for name, size in (("other", 90), ("third", 20)))


def test_a_cancelled_job_stops_waiting(tmp_path: Path) -> None:
    def cancelled() -> None:
        raise JobCancelled("on request")

    with processes(tmp_path, 1) as (process,):
        assert line(process) == "fetching"
        with pytest.raises(JobCancelled):
            ModelCache(tmp_path, MIB).holding(index_of(), never, cancelled).__enter__()


def test_a_job_that_waits_begins_beside_the_job_that_has_fetched_the_version(tmp_path: Path) -> None:
    """As where several jobs begin at one moment: the one that fetches goes on to use the version, for a long time."""
    entry = tmp_path / index_of().digest
    entry.mkdir()
    with (entry / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        waits: list[int] = []

        def arrive() -> None:
            waits.append(1)
            assert len(waits) == 1
            (entry / "ct-lung" / "1").mkdir(parents=True)
            fetcher()(entry / "ct-lung" / "1")

        with ModelCache(tmp_path, MIB).holding(index_of(), never, arrive) as folder:
            assert (folder / "model.onnx").exists()


def test_an_entry_that_is_removed_while_its_lock_is_awaited_is_made_again(tmp_path: Path) -> None:
    """As where one process removes a version at the moment at which another one opens its lock."""
    cache = ModelCache(tmp_path, MIB)
    with held(cache):
        pass
    entry = tmp_path / index_of().digest
    lock = (entry / "lock").open("r+")
    fcntl.flock(lock, fcntl.LOCK_EX)
    waits: list[int] = []
    fetched: list[str] = []

    def remove() -> None:
        waits.append(1)
        if len(waits) == 1:
            subprocess.run(["rm", "-rf", str(entry)], check=True)
            lock.close()

    with cache.holding(index_of(), fetcher(fetched=fetched), remove) as folder:
        assert fetched == ["ct-lung"]
        assert (folder / "model.onnx").exists()


def test_processes_that_fetch_and_remove_at_random_always_see_whole_versions(tmp_path: Path) -> None:
    """Room for two of four versions, and three processes that use them."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        counts = pool.starmap(_use_at_random, [(str(tmp_path), number) for number in range(3)])
    assert counts == [_USES] * 3
    assert sum(path.stat().st_size for path in tmp_path.rglob("model.onnx")) <= 220


def _use_at_random(folder: str, seed: int) -> int:
    chosen = random.Random(seed)
    cache = ModelCache(Path(folder), 220)
    used = 0
    while used < _USES:
        name = chosen.choice("abcd")
        with (
            suppress(StorageUnavailable),
            cache.holding(index_of(name, size=90), fetcher(name, size=90), lambda: None) as held_folder,
        ):
            assert (held_folder / "model.onnx").read_bytes() == name.encode().ljust(90, b"-")
            used += 1
    return used
