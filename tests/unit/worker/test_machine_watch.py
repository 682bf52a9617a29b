from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from inference_service.core.errors import StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs.workers.worker_registry import InstalledModel
from inference_service.worker.machine_watch import MachineWatch
from inference_service.worker.model_summaries import SummaryReader
from inference_service.worker.self_test import SelfTest

LUNG, BONE = InstalledModel("ct-lung", "1", "0" * 64), InstalledModel("ct-bone", "1", "1" * 64)
Answer = tuple[list[InstalledModel], bool] | StorageUnavailable


class ListingTest(SelfTest):
    """A self-test that lists the given models, one answer at each call."""

    answers: list[Answer]

    def usable_models(self, *_: object) -> tuple[list[InstalledModel], bool]:
        answer = self.answers.pop(0)
        if isinstance(answer, StorageUnavailable):
            raise answer
        return answer


def make_watch(self_test: SelfTest, folder: Path, *, period_s: float) -> MachineWatch:
    reader = SummaryReader(Settings(_env_file=None, models_path=folder), folder, nullcontext())
    return MachineWatch(self_test, reader, period_s=period_s, fork_lock=nullcontext())


@pytest.mark.parametrize(
    ("failing", "paused"),
    [(StorageUnavailable("no answer"), True), (([], False), True), (([LUNG], False), False)],
    ids=["folder", "all-models", "one-model"],
)
def test_models_that_cannot_be_read_are_still_reported_and_soon_read_again(
    tmp_path: Path, failing: Answer, paused: bool
) -> None:
    self_test = ListingTest(Settings(_env_file=None), tmp_path, worker="w")
    self_test.answers = [([LUNG, BONE], True), failing, ([LUNG], True)]
    watch = make_watch(self_test, tmp_path, period_s=1.0)
    watch.refresh_models()
    watch._models_at = 0.0
    watch.refresh_models()
    assert (set(watch.models), self_test.paused) == ({LUNG, BONE}, paused)
    watch.refresh_models()
    assert watch.models == [LUNG]
    watch.refresh_models()
    assert not self_test.answers


class PassingTest(SelfTest):
    """A self-test that finds no problem."""

    def problem(self, **_: object) -> str | None:
        return None


def test_a_worker_that_lost_jobs_is_paused_for_longer_each_time_until_a_job_succeeds(tmp_path: Path) -> None:
    self_test = PassingTest(Settings(_env_file=None), tmp_path, worker="w")
    watch = make_watch(self_test, tmp_path, period_s=2.0)

    def look(*, after_delay: bool = False) -> None:
        if after_delay:
            watch._test_at = 0.0
        watch._repeat_test()

    for _ in range(3):
        self_test.count_loss(uuid4())
    for next_delay_s in (4.0, 8.0):
        look()
        assert "check the memory" in str(watch.problem)
        look()
        assert self_test.paused
        look(after_delay=True)
        assert (self_test.paused, watch.problem) == (False, None)
        look()
        assert watch._test_delay_s == next_delay_s
        self_test.count_loss(uuid4())
        assert self_test.paused
    look()
    look(after_delay=True)
    self_test.end_losses()
    look()
    assert watch._test_delay_s == 2.0
    self_test.count_loss(uuid4())
    assert not self_test.paused
