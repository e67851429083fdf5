"""How good a trained network is."""

import numpy as np

from tinygrad_nnfs import Tensor, nn, no_grad
from tinygrad_nnfs.data import scale
from tinygrad_nnfs.ops import softmax_cross_entropy


@no_grad()
def evaluate(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, device: str = "cpu"
) -> tuple[float, float]:
    """Mean loss and accuracy (0 to 1) of images uint8 (n, 28, 28). The network stays in eval()."""
    network.eval()
    batch_size = 256  # keeps the CNN's activations small
    loss_sum = correct = 0.0
    for start in range(0, len(images), batch_size):
        expected = labels[start : start + batch_size]
        batch = Tensor(scale(images[start : start + batch_size])).to(device)
        logits = network(batch)
        losses = softmax_cross_entropy(logits, Tensor(expected).to(device), reduction="sum")
        loss_sum += losses.item()
        correct += int((logits.numpy().argmax(axis=1) == expected).sum())
    return loss_sum / len(images), correct / len(images)
