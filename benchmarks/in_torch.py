"""The two networks in PyTorch: see contenders.py."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.contenders import Step
from benchmarks.random_data import LR, batches, images, labels

NETWORKS = {
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


def _network(model: str, channels_last: bool, compiled: bool) -> tuple[nn.Module, nn.Module]:
    """The network, and what to call: the compiled one may be another."""
    network = NETWORKS[model]().to(memory_format=_layout(channels_last))
    return network, torch.compile(network, dynamic=False) if compiled else network


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def trainer(
    model: str, momentum: float, channels_last: bool = False, compiled: bool = False
) -> Callable[[int], Step]:
    network, call = _network(model, channels_last, compiled)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=momentum)
    loss_of = nn.CrossEntropyLoss()

    def on_batches_of(size: int) -> Step:
        x = torch.from_numpy(images(size)).to(memory_format=_layout(channels_last))
        y = torch.from_numpy(labels(size))

        def step() -> Tensor:
            loss = loss_of(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return step

    return on_batches_of


def predictor(
    model: str, channels_last: bool = False, compiled: bool = False
) -> Callable[[int, int], Step]:
    network, call = _network(model, channels_last, compiled)
    network.eval()

    def on_images(n: int, batch_size: int) -> Step:
        x = torch.from_numpy(images(n)).to(memory_format=_layout(channels_last))
        parts = batches(n, batch_size)

        def predict() -> list[Tensor]:
            with torch.inference_mode():
                return [call(x[part]) for part in parts]

        return predict

    return on_images
