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


DEVICE = "cuda"  # of gpu_trainer


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


def set_precision(name: str) -> None:
    """Products and convolutions in "tf32" or "float32", convolutions by the fastest algorithm."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cudnn.benchmark = True


def gpu_trainer(
    model: str,
    momentum: float,
    channels_last: bool = False,
    mode: str | None = None,
    graphed: bool = False,
) -> Callable[[int], Step]:
    """`mode`: of torch.compile, for network and loss, forward and backward; None: eager.

    `graphed`: the whole step, the optimiser's too, is recorded as one CUDA graph.
    """
    network = NETWORKS[model]().to(DEVICE, memory_format=_layout(channels_last))
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=momentum, fused=True)
    cross_entropy = nn.CrossEntropyLoss()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(network(x), y)

    call = torch.compile(loss_of, mode=mode, dynamic=False) if mode else loss_of

    def on_batches_of(size: int) -> Step:
        x = torch.from_numpy(images(size)).to(DEVICE, memory_format=_layout(channels_last))
        y = torch.from_numpy(labels(size)).to(DEVICE)

        def step() -> Tensor:
            optimizer.zero_grad()  # first: a compiled forward may write where gradients were
            loss = call(x, y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return _as_graph(step) if graphed else step

    return on_batches_of


def _as_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """As PyTorch's notes on CUDA graphs say: steps on another stream, then the recorded one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()  # its zero_grad lets the gradients be made anew, in the graph's memory

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def product_tflops(size: int, calls: int = 10) -> float:
    """The speed of a float32 matrix product on the GPU, at the precision that is set."""
    a, b = torch.rand(2, size, size, device=DEVICE) - 0.5
    y = a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        torch.matmul(a, b, out=y)
    end.record()
    end.synchronize()
    return 2 * size**3 * calls / start.elapsed_time(end) / 1e9


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
