"""Trains the network on CPUs: `python -m training.ct_chest.train --work work`.

The same seed gives the same weights on the same machine with the same number of threads. An interrupted run resumes
from its last checkpoint if sources and arguments are unchanged. `--start model.onnx` trains an exported network for the
last cycle only.
"""

import argparse
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.ct_chest.labels import NAMES
from training.ct_chest.network import Block, UNet, loss
from training.ct_chest.pool import Shares, digest, make_pool, pool_folder
from training.ct_chest.schedule import CYCLES, LAST_CYCLE_BEGINS, STEPS, rate
from training.ct_chest.seeds import FIRST_HELD_BACK_SEED
from training.ct_chest.weights import parameters_of
from training.ct_chest.windows import draw_window

CHECKPOINT_EVERY_STEPS = 200
# Modules that decide how the network learns from the examples: after a change the training starts again.
_TRAINED_BY = ("feed", "labels", "network", "schedule", "train", "weights", "windows")


class Training:
    """A network in training, the moving average of its weights, and the number of steps so far.

    Attributes:
        average: The network with the exponential moving average of its weights.
        step: Number of windows seen.
        in_bfloat16: Whether this CPU multiplies bfloat16 in hardware; without, float32 is ten times as fast.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.step = 0
        self.in_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self.rng = np.random.default_rng(seed)
        self.network = UNet(len(NAMES))
        _keep_channels_last(self.network)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=CYCLES[0].highest, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def take_step(self, path: Path) -> float:
        """Trains on one window of an example and returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step)
        volume, shares = draw_window(path, self.rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            scales = self.network.scales(torch.from_numpy(volume)[None, None])
        value = loss(scales, spread(shares))
        self.optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return float(value.detach())

    def start_from(self, path: Path) -> None:
        """Continues from an exported network before the last cycle; its coarse heads, not exported, start untrained.

        Raises:
            ValueError: The file is the export of another network.
        """
        parameters = {name: torch.from_numpy(values) for name, values in parameters_of(path).items()}
        ours = self.network.state_dict()
        coarse = {name: ours[name] for name in ours if name.startswith("heads.") and not name.startswith("heads.0.")}
        try:
            self.network.load_state_dict(coarse | parameters)
        except RuntimeError as error:
            raise ValueError(f"{path} is of another network: {error}") from error
        self.step = LAST_CYCLE_BEGINS

    def save(self, path: Path) -> None:
        """Writes a checkpoint."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        part = path.with_suffix(".part")
        torch.save({**parts, "step": self.step, "rng": self.rng.bit_generator.state}, part)
        part.rename(path)

    def resume(self, path: Path) -> None:
        """Continues from a checkpoint that `save` wrote."""
        state = torch.load(path, weights_only=True)
        for name in ("network", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        self.rng.bit_generator.state = state["rng"]


def _keep_channels_last(network: UNet) -> None:
    """Restores the channels-last layout after each block, which instance norm undoes: 1.4 times as fast on a CPU."""
    network.to(memory_format=torch.channels_last_3d)
    for module in network.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, __, out: out.contiguous(memory_format=torch.channels_last_3d))


def spread(shares: Shares) -> torch.Tensor:
    """Each label's share of each voxel, shape (1, labels, i, j, k), float32."""
    first, second = (torch.from_numpy(values.astype(np.int64))[None, None] for values in (shares.first, shares.second))
    share = torch.from_numpy(shares.share.astype(np.float32) / 255)[None, None]
    truth = torch.zeros((1, len(NAMES), *share.shape[2:]))
    return truth.scatter_(1, first, 1 - share).scatter_add_(1, second, share)


def main() -> None:
    """Draws the examples, trains, and writes the weights."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    training = Training(arguments.seed)
    # Read before the examples are drawn, which takes long: sources and start may change on disk meanwhile.
    trained_by = digest(*_TRAINED_BY)
    start = "nothing"
    if arguments.start:
        training.start_from(arguments.start)
        start = sha256(arguments.start.read_bytes()).hexdigest()[:12]
    first = arguments.first
    middle = first + arguments.examples
    last = middle + arguments.abdominal
    pool = pool_folder(arguments.work)
    paths = make_pool(pool / "trunk", range(first, middle), arguments.threads)
    paths += make_pool(pool / "abdominal", range(middle, last), arguments.threads, abdominal=True)
    state = pool / f"state-{arguments.seed}-{first}-{middle}-{last}-{arguments.threads}-{trained_by}-{start}.pt"
    if state.exists():
        training.resume(state)
        print(f"resumes at step {training.step} from {state}", flush=True)  # noqa: T201
    if training.step > arguments.steps:
        raise SystemExit(f"{state} is at step {training.step} already")
    began = time.monotonic()
    mean = float("nan")
    while training.step < arguments.steps:
        value = training.take_step(paths[int(training.rng.integers(len(paths)))])
        mean = value if np.isnan(mean) else mean + 0.02 * (value - mean)
        if training.step % 20 == 0:
            print(f"{training.step}/{arguments.steps} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
        if training.step % CHECKPOINT_EVERY_STEPS == 0:
            training.save(state)
    torch.save(training.average.module.state_dict(), arguments.work / "weights.pt")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the examples and the weights")
    parser.add_argument("--examples", type=int, default=360, help="scans of any part of the trunk")
    parser.add_argument("--abdominal", type=int, default=110, help="additional scans of the abdomen")
    parser.add_argument("--first", type=int, default=0, help="seed of the first scan; each seed is another patient")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="training steps, one window each; with fewer the learning rate does not reach 0",
    )
    parser.add_argument("--start", type=Path, help="an exported model.onnx to train for the last cycle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    first = arguments.first
    last = arguments.first + arguments.examples + arguments.abdominal
    if min(first, arguments.examples, arguments.abdominal) < 0 or not first < last <= FIRST_HELD_BACK_SEED:
        most = FIRST_HELD_BACK_SEED - 1
        parser.error(f"expected seeds from 0 to {most}, got {first} to {last - 1}: later ones are held back for tests")
    if arguments.start and arguments.steps <= LAST_CYCLE_BEGINS:
        parser.error(f"expected more than {LAST_CYCLE_BEGINS} --steps with --start: only the last cycle is trained")
    if arguments.steps > STEPS:
        parser.error(f"expected at most {STEPS} --steps: the learning rate of later ones is not defined")
    return arguments


if __name__ == "__main__":
    main()
