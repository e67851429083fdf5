"""The convolutional network."""

from tinygrad_nnfs import nn


class CNN(nn.Sequential):
    """Three convolutions, two dense layers: images (n, 1, 28, 28) in [0, 1] -> logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, kernel_size=3), nn.LeakyReLU(0.01),    # (n, 32, 26, 26)
            nn.Conv2d(32, 64, kernel_size=3), nn.LeakyReLU(0.01),   # (n, 64, 24, 24)
            nn.MaxPool2d(2), nn.Dropout(0.25),                      # (n, 64, 12, 12)
            nn.Conv2d(64, 128, kernel_size=3), nn.LeakyReLU(0.01),  # (n, 128, 10, 10)
            nn.MaxPool2d(2), nn.Dropout(0.25),                      # (n, 128, 5, 5)
            nn.Flatten(),                                           # (n, 3200)
            nn.Linear(3200, 512), nn.LeakyReLU(0.01),               # (n, 512)
            nn.Dropout(0.5),
            nn.Linear(512, 10),                                     # (n, 10)
        )  # fmt: skip
