"""The two networks in this library: see contenders.py."""

import contextlib
from collections.abc import Callable, Iterator

from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.mlp import MLP

from benchmarks.contenders import Step
from benchmarks.random_data import LR, batches, images, labels
from tinygrad_nnfs import (
    Tensor,
    capture,
    no_grad,
    optim,
    reference_kernels,
)
from tinygrad_nnfs.kernels import loops
from tinygrad_nnfs.ops import softmax_cross_entropy

NETWORKS = {"mlp": MLP, "cnn": CNN}


@contextlib.contextmanager
def without_numba() -> Iterator[None]:
    """The library as it is where numba is not installed."""
    before = loops.numba_is_installed, loops.best
    loops.numba_is_installed, loops.best = lambda: False, lambda: loops
    try:
        yield
    finally:
        loops.numba_is_installed, loops.best = before


KERNELS = {
    "fast": contextlib.nullcontext,
    "numpy": without_numba,
    "reference": reference_kernels,
}


def trainer(model: str, momentum: float, kernels: str = "fast") -> Callable[[int], Step]:
    network = NETWORKS[model]()
    optimizer = optim.SGD(network.parameters(), lr=LR, momentum=momentum)
    chosen_kernels = KERNELS[kernels]

    def on_batches_of(size: int) -> Step:
        x, y = images(size), labels(size)

        def step() -> Tensor:
            with chosen_kernels():
                loss = softmax_cross_entropy(network(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return loss

        return step

    return on_batches_of


def gpu_trainer(model: str, momentum: float, captured: bool = False) -> Callable[[int], Step]:
    network = NETWORKS[model]().to("cuda")
    optimizer = optim.SGD(network.parameters(), lr=LR, momentum=momentum)

    def on_batches_of(size: int) -> Step:
        x, y = Tensor(images(size)).to("cuda"), Tensor(labels(size)).to("cuda")

        def step() -> Tensor:
            loss = softmax_cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return capture(step) if captured else step

    return on_batches_of


def predictor(model: str, kernels: str = "fast") -> Callable[[int, int], Step]:
    network = NETWORKS[model]().eval()
    chosen_kernels = KERNELS[kernels]

    def on_images(n: int, batch_size: int) -> Step:
        x, parts = images(n), batches(n, batch_size)

        def predict() -> list[Tensor]:
            with chosen_kernels(), no_grad():
                return [network(x[part]) for part in parts]

        return predict

    return on_images
