"""The multi-layer perceptron."""

from tinygrad_nnfs import nn


class MLP(nn.Sequential):
    """784-128-64-10: images (n, 1, 28, 28) in [0, 1] -> logits (n, 10).

    `dropout` is the probability to drop after each hidden layer; 0 switches it off.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__(
            nn.Flatten(),                                                       # (n, 784)
            nn.Linear(784, 128), nn.LeakyReLU(0.01), nn.Dropout(dropout),       # (n, 128)
            nn.Linear(128, 64), nn.LeakyReLU(0.01), nn.Dropout(dropout),        # (n, 64)
            nn.Linear(64, 10),                                                  # (n, 10)
        )  # fmt: skip
