from contextlib import nullcontext
from pathlib import Path

import pytest

from inference_service.core.errors import StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs.worker_registry import InstalledModel
from inference_service.worker.machine_watch import MachineWatch
from inference_service.worker.self_test import SelfTest

LUNG, BONE = InstalledModel("ct-lung", "1", "0" * 64), InstalledModel("ct-bone", "1", "1" * 64)
Answer = tuple[list[InstalledModel], bool] | StorageUnavailable


class ListingTest(SelfTest):
    """A self-test that lists the given models, one answer at each call."""

    answers: list[Answer]

    def installed_models(self) -> tuple[list[InstalledModel], bool]:
        answer = self.answers.pop(0)
        if isinstance(answer, StorageUnavailable):
            raise answer
        return answer


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
    watch = MachineWatch(self_test, period_s=1.0, fork_lock=nullcontext())
    watch.refresh_models()
    watch._models_at = 0.0
    watch.refresh_models()
    assert (set(watch.models), self_test.paused) == ({LUNG, BONE}, paused)
    watch.refresh_models()
    assert watch.models == [LUNG]
    watch.refresh_models()
    assert not self_test.answers
