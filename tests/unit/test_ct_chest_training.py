"""How `ct-chest` is trained and exported, where PyTorch is installed: `make traintest`."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed here: make traintest")

from ct_chest import pool, schedule, train  # noqa: E402
from ct_chest.export import export, parameters_of  # noqa: E402
from ct_chest.feed import WINDOW  # noqa: E402
from ct_chest.judge import MODEL  # noqa: E402
from ct_chest.labels import BONE, NAMES  # noqa: E402
from ct_chest.network import SUPERVISED, UNet, loss  # noqa: E402

SHIPPED = MODEL / "model.onnx"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pool.make_pool(tmp_path_factory.mktemp("pool"), range(2), 1)


def test_the_network_answers_at_three_resolutions() -> None:
    network = UNet(len(NAMES)).eval()
    with torch.inference_mode():
        scales = network.scales(torch.zeros(2, 1, 48, 32, 16))
    assert [tuple(logits.shape) for logits in scales] == [
        (2, len(NAMES), 48, 32, 16), (2, len(NAMES), 24, 16, 8), (2, len(NAMES), 12, 8, 4),
    ]  # fmt: skip
    assert len(scales) == SUPERVISED


def test_the_loss_is_least_where_each_voxel_has_its_shares() -> None:
    rng = np.random.default_rng(0)
    shape = (8, 8, 8)
    first, second = (rng.integers(0, len(NAMES) - 1, shape).astype(np.uint8) for _ in range(2))
    truth = train.spread(pool.Shares(first, second, rng.integers(0, 128, shape).astype(np.uint8)))
    np.testing.assert_allclose(truth.sum(1), 1, rtol=1e-6)
    right = (truth + 1e-6).log()
    values = {strength: float(loss([right * strength], truth)) for strength in (0.0, 0.5, 1.0)}
    assert values[1.0] < values[0.5] < values[0.0]
    # The last label does not occur, and is not missed.
    assert float(loss([right], truth)) < 0.8
    wrong = right.roll(1, dims=1)
    assert float(loss([wrong], truth)) > values[0.0]


def test_a_training_that_was_broken_off_goes_on_as_if_it_had_not_been(examples: list[Path], tmp_path: Path) -> None:
    straight = train.Training(seed=3)
    losses = [straight.take_step(examples[0]) for _ in range(3)]
    assert all(np.isfinite(losses))
    first = train.Training(seed=3)
    assert [first.take_step(examples[0]) for _ in range(2)] == losses[:2]
    first.keep(tmp_path / "state.pt")
    other = train.Training(seed=4)
    other.go_on(tmp_path / "state.pt")
    assert (other.step, other.take_step(examples[0])) == (2, losses[2])
    for name, values in straight.average.state_dict().items():
        assert torch.equal(values, other.average.state_dict()[name]), name


def test_what_was_exported_can_be_trained_on(examples: list[Path], tmp_path: Path) -> None:
    training = train.Training(seed=0)
    training.start_from(SHIPPED)
    assert training.step == schedule.LAST_CYCLE
    shipped = parameters_of(SHIPPED)
    agreement = export(training.network, tmp_path / "again.onnx")
    assert agreement.same_labels > 0.9999
    again = parameters_of(tmp_path / "again.onnx")
    assert again.keys() == shipped.keys()
    for name, values in again.items():
        # The bias that an export adds to was not added here.
        expected = shipped[name] - np.float32(0.3) * (np.arange(len(NAMES)) == BONE) if name == "heads.0.bias" else None
        np.testing.assert_allclose(values, shipped[name] if expected is None else expected, atol=1e-6)
    assert training.take_step(examples[0]) < train.Training(seed=0).take_step(examples[0])


def test_another_network_is_not_trained_on() -> None:
    training = train.Training(seed=0)
    with pytest.raises(ValueError, match="of another network"):
        training.start_from(MODEL.parents[1] / "ct-tissue" / "1" / "model.onnx")


def test_windows_are_multiples_of_what_the_network_halves() -> None:
    network = UNet(len(NAMES))
    assert all(size % 2 ** len(network.down) == 0 for size in WINDOW)
