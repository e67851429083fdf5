"""The training loop: epochs of shuffled mini-batches."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tinygrad_nnfs import Tensor, nn
from tinygrad_nnfs.data import Dataset, scale
from tinygrad_nnfs.ops import softmax_cross_entropy
from tinygrad_nnfs.optim import Optimizer


class TrainingError(Exception):
    """Training cannot go on; the message says where it stopped and what to try."""


@dataclass(frozen=True)
class Progress:
    """Where training is after a step.

    `loss` and `accuracy` are means over the epoch so far, of a network that was learning and, with
    dropout, handicapped: evaluation afterwards finds better ones.
    """

    epoch: int  # from 1
    samples: int  # of this epoch
    loss: float
    accuracy: float
    end_of_epoch: bool


def train(
    network: nn.Module,
    optimizer: Optimizer,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    schedule: Callable[[int], float],
    seed: int,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train `network` on the training images; yields after every step.

    Each epoch sees every image once, in an order that follows from `seed`; the last batch is
    smaller where `batch_size` does not divide. `schedule` gives the learning rate of an epoch,
    from 0. Raises TrainingError when the loss is no longer finite.
    """
    random = np.random.default_rng(seed)
    count = len(data.train_images)
    for epoch in range(epochs):
        network.train()
        optimizer.lr = schedule(epoch)
        order = random.permutation(count)
        loss_sum = correct = samples = 0.0
        for start in range(0, count, batch_size):
            chosen = order[start : start + batch_size]
            labels = data.train_labels[chosen]

            logits = network(Tensor(scale(data.train_images[chosen])).to(device))
            loss = softmax_cross_entropy(logits, Tensor(labels).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            samples += len(chosen)
            loss_sum += loss.item() * len(chosen)
            correct += int((logits.numpy().argmax(axis=1) == labels).sum())
            if not math.isfinite(loss_sum):
                raise TrainingError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}, step "
                    f"{start // batch_size + 1}: try a smaller learning rate than {optimizer.lr:g}"
                )
            yield Progress(
                epoch + 1, int(samples), loss_sum / samples, correct / samples, samples == count
            )
