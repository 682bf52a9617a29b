"""Training and export of `ct-chest`; they need PyTorch, which `make traintest` installs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="PyTorch is not installed here: make traintest")

from training.ct_chest import export, pool, schedule, train, weights  # noqa: E402
from training.ct_chest.evaluation.scoring import MODEL  # noqa: E402
from training.ct_chest.feed import WINDOW  # noqa: E402
from training.ct_chest.labels import BONE, NAMES  # noqa: E402
from training.ct_chest.manifest import manifest_text  # noqa: E402
from training.ct_chest.network import SUPERVISED, Block, UNet, loss  # noqa: E402

PACKAGE = Path(train.__file__).parent
SHIPPED = MODEL / "model.onnx"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one stored example."""
    (path,) = pool.make_pool(tmp_path_factory.mktemp("pool"), [0], 1)
    return path


def test_the_network_returns_logits_at_three_resolutions() -> None:
    network = UNet(len(NAMES)).eval()
    with torch.inference_mode():
        scales = network.scales(torch.zeros(2, 1, 48, 32, 16))
    assert [tuple(logits.shape) for logits in scales] == [
        (2, len(NAMES), 48, 32, 16),
        (2, len(NAMES), 24, 16, 8),
        (2, len(NAMES), 12, 8, 4),
    ]
    assert len(scales) == SUPERVISED


def test_the_loss_is_lowest_for_the_true_shares() -> None:
    rng = np.random.default_rng(0)
    shape = (8, 8, 8)
    first, second = (rng.integers(0, len(NAMES) - 1, shape).astype(np.uint8) for _ in range(2))
    truth = train.spread(pool.Shares(first, second, rng.integers(0, 128, shape).astype(np.uint8)))
    np.testing.assert_allclose(truth.sum(1), 1, rtol=1e-6)
    right = (truth + 1e-6).log()
    values = {strength: float(loss([right * strength], truth)) for strength in (0.0, 0.5, 1.0)}
    assert values[1.0] < values[0.5] < values[0.0]
    # The last label does not occur and is not counted.
    assert float(loss([right], truth)) < 0.8
    wrong = right.roll(1, dims=1)
    assert float(loss([wrong], truth)) > values[0.0]


def test_a_resumed_training_gives_the_same_weights(example: Path, tmp_path: Path) -> None:
    straight = train.Training(seed=3)
    losses = [straight.take_step(example) for _ in range(3)]
    assert all(np.isfinite(losses))
    first = train.Training(seed=3)
    assert [first.take_step(example) for _ in range(2)] == losses[:2]
    first.save(tmp_path / "state.pt")
    other = train.Training(seed=4)
    other.resume(tmp_path / "state.pt")
    assert (other.step, other.take_step(example)) == (2, losses[2])
    for name, values in straight.average.state_dict().items():
        assert torch.equal(values, other.average.state_dict()[name]), name


# The exporter of opset 17 warns that it is deprecated, and that it exports instance norm in one mode only.
@pytest.mark.filterwarnings("ignore")
def test_an_exported_network_is_trained_further_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(main: Callable[[], None], *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
        main()

    work = tmp_path / "work"
    folder = tmp_path / "1"
    steps = schedule.LAST_CYCLE_BEGINS + 1
    scans = ("--first", 5, "--examples", 1, "--abdominal", 1)
    run(train.main, "--work", work, *scans, "--steps", steps, "--start", SHIPPED)
    assert {path.name for path in work.glob("examples-*/*/*.npz")} == {"5.npz", "6.npz"}
    run(export.main, "--weights", work / "weights.pt", "--folder", folder)
    trained = torch.load(work / "weights.pt", weights_only=True)
    shipped = weights.parameters_of(SHIPPED)
    again = weights.parameters_of(folder / "model.onnx")
    assert again.keys() == shipped.keys()
    for name, values in again.items():
        np.testing.assert_allclose(values, trained[name], atol=1e-6)
        # One step at a learning rate close to 0.
        np.testing.assert_allclose(values, shipped[name], atol=1e-3)
    added = onnx_values(folder / "model.onnx", "heads.0.bias") - again["heads.0.bias"]
    np.testing.assert_allclose(added, weights.BONE_LOGIT * (np.arange(len(NAMES)) == BONE), atol=1e-6)
    assert (folder / "manifest.json").read_text(encoding="utf-8") == manifest_text((folder / "model.onnx").read_bytes())
    torch.save({name: values + 0.02 for name, values in trained.items()}, work / "other.pt")
    mean = ("--mean-with", folder / "model.onnx", "--folder", tmp_path / "mean")
    run(export.main, "--weights", work / "other.pt", *mean)
    for name, values in weights.parameters_of(tmp_path / "mean" / "model.onnx").items():
        np.testing.assert_allclose(values, again[name] + 0.01, atol=1e-5)


def onnx_values(path: Path, name: str) -> NDArray[np.float32]:
    (found,) = (each for each in onnx.load(path).graph.initializer if each.name == name)
    values: NDArray[np.float32] = onnx.numpy_helper.to_array(found)
    return values


def test_a_trained_network_has_a_lower_loss_than_a_new_one(example: Path) -> None:
    trained = train.Training(seed=0)
    trained.start_from(SHIPPED)
    assert trained.step == schedule.LAST_CYCLE_BEGINS
    assert trained.take_step(example) < train.Training(seed=0).take_step(example)


def test_blocks_compute_channels_last_with_the_same_result() -> None:
    trained = train.Training(seed=0).network
    plain = UNet(len(NAMES))
    plain.load_state_dict(trained.state_dict())
    orders = []
    for module in trained.modules():
        if isinstance(module, Block):
            module.register_forward_hook(
                lambda _, __, out: orders.append(out.is_contiguous(memory_format=torch.channels_last_3d))
            )
    volume = torch.randn(1, 1, 32, 48, 16)
    with torch.inference_mode():
        torch.testing.assert_close(trained(volume), plain(volume), rtol=1e-4, atol=1e-4)
    assert all(orders)
    assert len(orders) > 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["--first", "-1"],
        ["--first", "499999", "--examples", "1", "--abdominal", "1"],
        ["--examples", "-5"],
        ["--examples", "0", "--abdominal", "0"],
    ],
)
def test_training_on_held_back_scans_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--work", str(tmp_path / "work"), *arguments])
    with pytest.raises(SystemExit):
        train.main()
    assert "held back" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def modules_behind(module: str) -> set[str]:
    """The module and all modules of the package that it imports, directly or not."""
    reached: set[str] = set()
    ahead = {module}
    while ahead:
        reached |= ahead
        files = [PACKAGE / f"{name.replace('.', '/')}.py" for name in ahead]
        sources = "\n".join(file.read_text(encoding="utf-8") for file in files)
        ahead = set(re.findall(r"^from training\.ct_chest\.([\w.]+) import", sources, re.MULTILINE)) - reached
    return reached


def test_a_change_to_a_module_behind_the_examples_draws_them_again() -> None:
    assert modules_behind("pool") == set(pool._DRAWN_BY)


def test_a_change_to_a_module_behind_the_training_starts_it_again() -> None:
    # Seeds are in the name of the state; export and manifest come after the training.
    assert modules_behind("train") - {"seeds"} == set(train._TRAINED_BY) | set(pool._DRAWN_BY)


def test_training_from_another_network_is_refused(tmp_path: Path) -> None:
    training = train.Training(seed=0)
    with pytest.raises(ValueError, match="of another network"):
        training.start_from(MODEL.parents[1] / "ct-tissue" / "1" / "model.onnx")
    # The same number of labels, but other widths.
    other = onnx.load(SHIPPED)
    stem = next(each for each in other.graph.initializer if each.name.startswith("stem.") and len(each.dims) > 1)
    stem.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stem)[:8], stem.name))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="of another network"):
        training.start_from(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="of another network"):
        export._means(training.network.state_dict(), weights.parameters_of(tmp_path / "other.onnx"))


def test_an_exported_network_is_trained_in_the_last_cycle_only(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["", "--work", "none", "--steps", str(schedule.LAST_CYCLE_BEGINS), "--start", str(SHIPPED)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        train.main()
    assert not Path("none").exists()


def test_windows_are_divisible_by_the_networks_strides() -> None:
    network = UNet(len(NAMES))
    assert all(size % 2 ** len(network.down) == 0 for size in WINDOW)
