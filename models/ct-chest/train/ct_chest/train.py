"""Trains the network: `python -m ct_chest.train --work work`. Same seed, same machine, same threads: same weights."""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ct_chest.generator import FIRST_TEST_SEED
from ct_chest.labels import NAMES
from ct_chest.network import UNet, loss
from ct_chest.pool import draw_window, make_pool

RATE = 1e-2
WARM_UP_STEPS = 25
CHECKPOINT_STEPS = 200


def train(paths: list[Path], checkpoint: Path, *, steps: int, seed: int) -> UNet:
    """Trains on windows of these examples.

    Args:
        paths: Examples, from `make_pool`.
        checkpoint: Where the weights are kept now and then, to look at before the end.
        steps: Windows, one a step.
        seed: Decides the first weights, the windows and their order.

    Returns:
        The network with the exponential average of its weights.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = UNet(len(NAMES))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    began, mean = time.monotonic(), 0.0
    for step in range(steps):
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
            print(f"{step + 1}/{steps} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
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
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.examples > FIRST_TEST_SEED:
        parser.error(f"seeds from {FIRST_TEST_SEED} on are the tests'")
    paths = make_pool(arguments.work / "pool", range(arguments.examples), arguments.threads)
    weights = arguments.work / "weights.pt"
    network = train(paths, weights, steps=arguments.steps, seed=arguments.seed)
    torch.save(network.state_dict(), weights)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
