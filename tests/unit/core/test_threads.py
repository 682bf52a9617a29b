import threading

import pytest

from inference_service.core.threads import SINGLE_THREAD, ThreadPool


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
def test_every_index_is_processed_once(count: int, size: int) -> None:
    seen: list[int] = []
    with ThreadPool(count) as threads:
        threads.for_each_slice(size, lambda part: seen.extend(range(size)[part]))

    assert sorted(seen) == list(range(size))


def test_slices_run_concurrently() -> None:
    together = threading.Barrier(3, timeout=10)
    with ThreadPool(3) as threads:

        def meet(part: slice) -> None:
            together.wait()

        threads.for_each_slice(3, meet)

    assert not together.broken


def test_a_short_range_is_not_split() -> None:
    parts: list[slice] = []
    with ThreadPool(4) as threads:
        threads.for_each_slice(9, parts.append, min_size=5)

    assert parts == [slice(0, 9)]


@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_in_a_slice_is_raised_after_all_slices_ended(bad: int) -> None:
    ended: list[int] = []

    def work(part: slice) -> None:
        if bad in range(6)[part]:
            raise ValueError(bad)
        ended.append(part.start)

    with ThreadPool(2) as threads, pytest.raises(ValueError, match=str(bad)):
        threads.for_each_slice(6, work)
    assert len(ended) == 1


def test_a_single_thread_is_the_calling_thread() -> None:
    names: set[str] = set()
    SINGLE_THREAD.for_each_slice(4, lambda part: names.add(threading.current_thread().name))

    assert names == {threading.current_thread().name}
