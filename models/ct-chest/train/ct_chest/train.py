"""Trains the network: `python -m ct_chest.train --work work`. Same seed, same machine, same threads: same weights.

Two stages: on scans of any part of the trunk, then on scans of the abdomen too, whose gas is no lung. What a stage made
is kept, and a run that was broken off goes on after the last one.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ct_chest.generator import FIRST_TEST_SEED
from ct_chest.labels import NAMES
from ct_chest.network import UNet, loss
from ct_chest.pool import draw_window, make_pool

WARM_UP_STEPS = 25
CHECKPOINT_STEPS = 200


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        steps: Windows, one a step.
        schedule_steps: When the rate, falling along half a cosine, would be 0.
        rate: The highest learning rate.
        abdominal: Whether scans of the abdomen are among the examples.
    """

    steps: int
    schedule_steps: int
    rate: float
    abdominal: bool


STAGES = (
    Stage(steps=1000, schedule_steps=3000, rate=1e-2, abdominal=False),
    Stage(steps=2100, schedule_steps=2100, rate=6e-3, abdominal=True),
)


def train(network: UNet, paths: list[Path], stage: Stage, checkpoint: Path, *, seed: int) -> UNet:
    """Trains on windows of these examples.

    Args:
        network: Where it begins; changed.
        paths: Examples, from `make_pool`.
        stage: How long and how fast.
        checkpoint: Where the weights are kept now and then, to look at before the end.
        seed: Decides the windows and their order.

    Returns:
        The network with the exponential average of its weights.
    """
    rng = np.random.default_rng(seed)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(network.parameters(), lr=stage.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, stage.schedule_steps))
    began, mean = time.monotonic(), 0.0
    for step in range(stage.steps):
        drawn, truth = draw_window(paths[int(rng.integers(len(paths)))], rng)
        volume, labels = torch.from_numpy(drawn)[None, None], torch.from_numpy(truth)[None]
        with torch.autocast("cpu", torch.bfloat16):
            scales = network.scales(volume)
        value = loss(scales, labels)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        mean += (value.item() - mean) * max(0.02, 1 / (step + 1))
        if step % 20 == 19:
            print(f"{step + 1}/{stage.steps} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
        if step % CHECKPOINT_STEPS == CHECKPOINT_STEPS - 1:
            torch.save(average.module.state_dict(), checkpoint)
    averaged: UNet = average.module
    return averaged


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 0.5 * (1 + float(np.cos(np.pi * step / steps)))


def main() -> None:
    """Makes the examples, trains, and keeps the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the examples and the weights")
    parser.add_argument("--examples", type=int, default=320, help="scans of any part of the trunk")
    parser.add_argument("--abdominal", type=int, default=130, help="scans of the abdomen besides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, count = arguments.work, arguments.examples
    last = count + arguments.abdominal
    if last > FIRST_TEST_SEED:
        parser.error(f"seeds from {FIRST_TEST_SEED} on are the tests'")
    paths = make_pool(work / "pool", range(count), arguments.threads)
    more = make_pool(work / "abdominal", range(count, last), arguments.threads, abdominal=True)
    torch.manual_seed(arguments.seed)
    network = UNet(len(NAMES))
    for number, stage in enumerate(STAGES):
        done = work / f"stage-{number}.pt"
        if not done.exists():
            chosen = paths + more if stage.abdominal else paths
            network = train(network, chosen, stage, work / "weights.pt", seed=arguments.seed + number)
            torch.save(network.state_dict(), done)
        network.load_state_dict(torch.load(done, weights_only=True))
    torch.save(network.state_dict(), work / "weights.pt")


if __name__ == "__main__":
    main()
