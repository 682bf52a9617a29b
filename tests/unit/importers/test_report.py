"""The messages of the isolated process about the windows of a predictor."""

import pytest

from inference_service.importers.isolated import report
from inference_service.importers.isolated.report import WindowProgress


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """All progress that is told."""
    messages: list[tuple[str, float]] = []
    monkeypatch.setattr(report, "tell_progress", lambda *message: messages.append(message))
    return messages


def test_the_windows_of_each_fold_count_in_their_part(told: list[tuple[str, float]]) -> None:
    tqdm = WindowProgress("running", 0.2, 0.6, passes=2)
    for _ in range(2):
        # As nnU-Net does.
        with tqdm(desc=None, total=4, disable=True) as bar:
            for _ in range(4):
                bar.update()
    assert [activity for activity, _ in told] == ["running"] * 9
    assert [share for _, share in told] == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6])


def test_windows_are_passed_on_and_more_passes_than_expected_do_no_harm(told: list[tuple[str, float]]) -> None:
    tqdm = WindowProgress("running", 0.0, 1.0)
    # As MONAI does.
    assert list(tqdm(range(0, 6, 2))) == [0, 2, 4]
    assert list(tqdm(range(1000))) == [*range(1000)]
    assert [share for _, share in told] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_many_windows_are_told_in_steps(told: list[tuple[str, float]]) -> None:
    assert sum(1 for _ in WindowProgress("running", 0.0, 1.0)(range(100_000))) == 100_000
    assert 150 < len(told) < 250
