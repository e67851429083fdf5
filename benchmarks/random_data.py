"""What all networks are trained on here: random images and labels in the shape of MNIST's."""

import numpy as np

LR = 0.01


def images(n: int) -> np.ndarray:
    """(n, 1, 28, 28), float32 in [0, 1)."""
    return np.random.default_rng(0).random((n, 1, 28, 28), dtype=np.float32)


def labels(n: int) -> np.ndarray:
    """(n,), int64 from 0 to 9."""
    return np.random.default_rng(1).integers(0, 10, n)


def batches(n: int, batch_size: int) -> list[slice]:
    """0..n in slices of `batch_size`, the last one perhaps shorter."""
    return [slice(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
