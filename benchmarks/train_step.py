"""A training step (forward, backward, momentum update) of the MLP or the CNN against its peers."""

import argparse
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import at_least, interleave, median_ratio, quartiles

Step = Callable[[], object]
LR, MOMENTUM = 0.01, 0.9


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels in the shape of MNIST's."""
    rng = np.random.default_rng(0)
    images = rng.random((size, 1, 28, 28), dtype=np.float32)
    return images, rng.integers(0, 10, size)


def tinygrad_nnfs_step(model: str, size: int) -> Step:
    from tinygrad_nnfs.models.cnn import CNN
    from tinygrad_nnfs.models.mlp import MLP

    from tinygrad_nnfs import optim
    from tinygrad_nnfs.ops import softmax_cross_entropy

    network = {"mlp": MLP, "cnn": CNN}[model]()
    optimizer = optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    images, labels = batch(size)

    def step() -> None:
        loss = softmax_cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def torch_step(model: str, size: int, channels_last: bool = False) -> Step:
    import torch
    from torch import nn

    networks = {
        "mlp": lambda: nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(784, 128), nn.LeakyReLU(0.01), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.LeakyReLU(0.01), nn.Dropout(0.2)),
            nn.Linear(64, 10),
        ),
        "cnn": lambda: nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.LeakyReLU(0.01)),
            *(nn.Conv2d(32, 64, 3), nn.LeakyReLU(0.01), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Conv2d(64, 128, 3), nn.LeakyReLU(0.01), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(3200, 512), nn.LeakyReLU(0.01), nn.Dropout(0.5)),
            nn.Linear(512, 10),
        ),
    }
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = networks[model]().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    loss_of = nn.CrossEntropyLoss()
    arrays = batch(size)
    images = torch.from_numpy(arrays[0]).to(memory_format=layout)
    labels = torch.from_numpy(arrays[1])

    def step() -> None:
        loss = loss_of(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[str, int], Step]] = {
    "tinygrad_nnfs": tinygrad_nnfs_step,
    "torch": torch_step,
    "torch-channels-last": lambda model, size: torch_step(model, size, channels_last=True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=["mlp", "cnn"], default="cnn")
    parser.add_argument("--batch-size", type=at_least(1), default=64, metavar="N")
    parser.add_argument(
        "--against",
        nargs="*",
        choices=[name for name in CONTENDERS if name != "tinygrad_nnfs"],
        default=["torch"],
        help="the peers (default: torch, in its default NCHW layout)",
    )
    parser.add_argument(
        "--rounds", type=at_least(2), default=10, metavar="N", help="turns of each peer"
    )
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> None:
    if options.memory_of:
        print(added_memory(options.memory_of, options.model, options.batch_size))
        return
    if options.against and importlib.util.find_spec("torch") is None:
        sys.exit("benchmarks: PyTorch is not installed: pip install 'tinygrad_nnfs[bench]'")

    names = ["tinygrad_nnfs", *options.against]
    calls, warm_up = (10, 3) if options.model == "cnn" else (200, 30)
    steps = {name: CONTENDERS[name](options.model, options.batch_size) for name in names}
    times = interleave(steps, options.rounds, calls, warm_up)

    print(f"{options.model} training step, batch {options.batch_size}, float32, default threads")
    print(f"{options.rounds} interleaved rounds of {calls} steps\n")
    print(f"{'':22}{'median ms':>10}{'quartiles':>18}{'ratio':>8}{'MB added':>10}")
    for name in names:
        low, median, high = (1e3 * t for t in quartiles(times[name]))
        ratio = median_ratio(times["tinygrad_nnfs"], times[name], calls)
        memory = memory_in_fresh_process(name, options)
        spread = f"{low:.3f}-{high:.3f}"
        print(f"{name:22}{median:10.3f}{spread:>18}{ratio:8.2f}{memory:10.0f}")
    print(
        "\nratio: tinygrad_nnfs's time over this one's, the median over the rounds of the ratio of"
    )
    print("their medians in a round; below 1, tinygrad_nnfs is faster")
    print("MB added: the process's peak after 10 steps, less its peak before the first")


def added_memory(name: str, model: str, size: int) -> float:
    """MB by which ten steps raise this process's peak memory. Meant for a fresh process."""
    step = CONTENDERS[name](model, size)
    before = _peak_memory()
    for _ in range(10):
        step()
    return _peak_memory() - before


def _peak_memory() -> float:
    """This process's peak resident memory in MB; NaN where the system does not tell (not Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    # getrusage's figure is no use here: a child inherits its parent's
    kibibytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    return int(kibibytes[1]) / 1024 if kibibytes else math.nan


def memory_in_fresh_process(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks", "train-step", "--memory-of", name]
    command += ["--model", options.model, "--batch-size", str(options.batch_size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
