"""Watches a worker's machine: lists and summarises its models, and repeats the self-test while the worker is paused.

It has a thread of its own, because a share with models may hang and a probe takes long: neither may delay heartbeats,
sweeps and forks.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from inference_service.contract.model_summary import ModelSummary
from inference_service.core.errors import StorageUnavailable
from inference_service.jobs.workers.worker_registry import InstalledModel
from inference_service.worker.model_summaries import SummaryReader
from inference_service.worker.self_test import SelfTest

logger = logging.getLogger(__name__)

_MODELS_PERIOD_S = 60.0
_MAX_TEST_DELAY_S = 60.0


class MachineWatch:
    """The watch of one worker's machine.

    Args:
        self_test: Tests the machine.
        summary_reader: Reads the summaries of its models.
        period_s: Time between two looks.
        fork_lock: Held while a connection is open, so that no fork copies one.
    """

    def __init__(
        self,
        self_test: SelfTest,
        summary_reader: SummaryReader,
        *,
        period_s: float,
        fork_lock: AbstractContextManager[object],
    ) -> None:
        self._self_test = self_test
        self._summary_reader = summary_reader
        self._period_s = period_s
        self._fork_lock = fork_lock
        self._test_at = 0.0
        self._test_delay_s = period_s
        self._models_at = 0.0
        self._stopped = threading.Event()
        self.models: Sequence[InstalledModel] = ()
        """The models that the worker has; those that cannot be read now are still among them."""
        self.summaries: Mapping[str, ModelSummary] = {}
        """Their summaries, by the SHA-256 of their manifests."""
        self.problem: str | None = None
        """Why the worker is paused; None if it is not, or if that is not known yet."""

    def start(self) -> None:
        """Lists the models, and starts the thread."""
        self.refresh_models()
        threading.Thread(target=self._run, name="machine-watch", daemon=True).start()

    def stop(self) -> None:
        """Stops the thread, without waiting for it: it may hang."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.refresh_models()
                self._repeat_test()
            except Exception:
                logger.exception("the machine could not be tested; the next test follows")
            self._stopped.wait(self._period_s)

    def refresh_models(self) -> None:
        """Lists the models now and then, soon again after an error. Without any model the worker is paused."""
        if time.monotonic() < self._models_at:
            return
        try:
            models, complete = self._self_test.usable_models(self._fork_lock)
        except StorageUnavailable:
            models, complete = [], False
        if not models:
            self._self_test.paused = True
        if complete:
            self.models = models
            self._models_at = time.monotonic() + _MODELS_PERIOD_S
        else:
            # Jobs for these models wait for this worker; without its report they would fail as model_not_found.
            self.models = list(dict.fromkeys([*models, *self.models]))
        self.summaries = self._summary_reader.read(self.models)

    def _repeat_test(self) -> None:
        """Tests the machine again while the worker is paused, at growing intervals, until the test passes.

        After losses of jobs, the intervals go on growing until a job succeeds: such a machine may pass the test.
        """
        if self._self_test.losses == 0 and not self._self_test.paused:
            self._test_delay_s = self._period_s
        if not self._self_test.paused or time.monotonic() < self._test_at:
            return
        self.problem = self._self_test.problem_of_losses() or self._self_test.problem(
            with_engine=True, fork_lock=self._fork_lock
        )
        if self.problem is None:
            self._self_test.paused = False
            logger.warning("this worker takes jobs again: its self-test passes")
        else:
            logger.error("this worker takes no jobs, next test in %.0f s: %s", self._test_delay_s, self.problem)
            self._test_at = time.monotonic() + self._test_delay_s
            self._test_delay_s = min(2 * self._test_delay_s, _MAX_TEST_DELAY_S)
