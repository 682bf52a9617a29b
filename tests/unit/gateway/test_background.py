import anyio
import pytest

from inference_service.gateway import background


def test_a_task_that_fails_starts_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(background, "_RESTART_DELAY_S", 0)
    starts = 0

    async def scenario() -> None:
        async with anyio.create_task_group() as group:

            async def task() -> None:
                nonlocal starts
                starts += 1
                if starts < 3:
                    raise RuntimeError("a fault of the task")
                group.cancel_scope.cancel()

            group.start_soon(background.keep_running, task)

    anyio.run(scenario)
    assert starts == 3
    assert len(caplog.records) == 2
