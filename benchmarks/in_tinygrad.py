"""The two networks in tinygrad (0.14 or newer): see contenders.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, TinyJit, nn
from tinygrad.helpers import Context

from benchmarks.contenders import Step
from benchmarks.random_data import LR, batches, images, labels


def _leaky_relu(x: Tensor) -> Tensor:
    return x.leaky_relu(0.01)


def _dropout(p: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.dropout(p)


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


NETWORKS: dict[str, Callable[[], list[Any]]] = {
    "mlp": lambda: [
        _flatten,
        *(nn.Linear(784, 128), _leaky_relu, _dropout(0.2)),
        *(nn.Linear(128, 64), _leaky_relu, _dropout(0.2)),
        nn.Linear(64, 10),
    ],
    "cnn": lambda: [
        *(nn.Conv2d(1, 32, 3), _leaky_relu),
        *(nn.Conv2d(32, 64, 3), _leaky_relu, Tensor.max_pool2d, _dropout(0.25)),
        *(nn.Conv2d(64, 128, 3), _leaky_relu, Tensor.max_pool2d, _dropout(0.25)),
        *(_flatten, nn.Linear(3200, 512), _leaky_relu, _dropout(0.5)),
        nn.Linear(512, 10),
    ],
}


def trainer(model: str, momentum: float) -> Callable[[int], Step]:
    network = NETWORKS[model]()
    optimizer = nn.optim.SGD(nn.state.get_parameters(network), lr=LR, momentum=momentum)

    def on_batches_of(size: int) -> Step:
        x, y = Tensor(images(size)).realize(), Tensor(labels(size).astype(np.int32)).realize()

        @TinyJit
        def update() -> Tensor:
            optimizer.zero_grad()
            loss = x.sequential(network).sparse_categorical_crossentropy(y).backward()
            return loss.realize(*optimizer.schedule_step())

        def step() -> Tensor:
            with Context(TRAINING=1):
                loss = update()
            Device[Device.DEFAULT].synchronize()
            return loss

        return step

    return on_batches_of


def predictor(model: str) -> Callable[[int, int], Step]:
    network = NETWORKS[model]()

    def on_images(n: int, batch_size: int) -> Step:
        x = Tensor(images(n)).realize()
        parts = [x[part].contiguous().realize() for part in batches(n, batch_size)]
        jits = {len(part): TinyJit(lambda x: x.sequential(network).realize()) for part in parts}

        def predict() -> None:
            for part in parts:
                jits[len(part)](part)
            Device[Device.DEFAULT].synchronize()

        return predict

    return on_images
