"""Augmentation: images uint8 (n, 28, 28) -> random variations of them, the same shape and dtype.

Labels stay true, but for `mix`: a shifted, mirrored or partly covered shirt is a shirt (but a
mirrored 3 is no 3).
"""

import numpy as np


def draw_shift(n: int, pixels: int, random: np.random.Generator) -> np.ndarray:
    """How far down and to the right each of n images looks: -pixels..pixels, int64 (2, n)."""
    return random.integers(0, 2 * pixels + 1, (2, n)) - pixels


def shift(images: np.ndarray, pixels: int, random: np.random.Generator) -> np.ndarray:
    """Each image moved by -pixels..pixels in each direction; background comes in."""
    n, h, w = images.shape
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(1, 2))
    rows, columns = draw_shift(n, pixels, random) + pixels
    return windows[np.arange(n), rows, columns]


def draw_mirror(n: int, random: np.random.Generator) -> np.ndarray:
    """Which of n images are mirrored: bool (n)."""
    return random.random(n) < 0.5


def mirror(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image with its left and right exchanged, or not."""
    mirrored = draw_mirror(len(images), random)
    return np.where(mirrored[:, None, None], images[:, :, ::-1], images)


def mix(images: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Half of the images with up to `share` of another one in them, the other half as they are.

    As in mixup (Zhang et al., 2018), but what a mixture is must be judged by itself.
    """
    n = len(images)
    shares = random.uniform(0, share, n) * (random.random(n) < 0.5)
    other = images[random.permutation(n)]
    mixed = images + shares[:, None, None] * (other.astype(np.float32) - images)
    return np.round(mixed).astype(np.uint8)


def erase(images: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """A rectangle of `share` of the images, of 3 to 12 pixels a side, covered with noise.

    Random erasing (Zhong et al., 2017), its sizes drawn uniformly.
    """
    n, h, w = images.shape
    heights, widths = random.integers(3, 13, (2, n, 1))
    tops = np.floor(random.random((n, 1)) * (h + 1 - heights))
    lefts = np.floor(random.random((n, 1)) * (w + 1 - widths))
    rows = (tops <= np.arange(h)) & (np.arange(h) < tops + heights)
    columns = (lefts <= np.arange(w)) & (np.arange(w) < lefts + widths)
    covered = rows[:, :, None] & columns[:, None, :]
    covered &= (random.random(n) < share)[:, None, None]
    return np.where(covered, random.integers(0, 256, images.shape, np.uint8), images)
