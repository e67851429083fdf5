"""The data sets: scikit-learn's digits, MNIST and Fashion-MNIST: 28x28 grey images, 10 classes.

`load("digits")` needs no download; docs/data.md says where the files of the others may be.
"""

import os
from dataclasses import dataclass, replace

import numpy as np

from tinygrad_nnfs.data.formats import FILES, DataError, read_csv, read_idx
from tinygrad_nnfs.data.sources import find

__all__ = [
    "CLASS_NAMES",
    "DIGITS",
    "FILES",
    "DataError",
    "Dataset",
    "hold_out",
    "load",
    "read_csv",
    "read_idx",
    "resplit",
    "scale",
]

DIGITS = tuple("0123456789")
CLASS_NAMES = {
    "digits": DIGITS,
    "mnist": DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


@dataclass(frozen=True, repr=False)
class Dataset:
    """Images uint8 (n, 28, 28), 0 is background; labels int64 (n) in 0..9.

    `scale` makes of images what networks take.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES[self.name]

    def __repr__(self) -> str:
        train, test = len(self.train_images), len(self.test_images)
        return f"Dataset({self.name!r}, {train:,} training and {test:,} test images)"


def scale(images: np.ndarray) -> np.ndarray:
    """Images uint8 (n, 28, 28) -> what the networks take: float32 (n, 1, 28, 28) in [0, 1].

    Raises ValueError for anything else.
    """
    shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", None)
    if len(shape) != 3 or dtype != np.uint8:
        found = f"{dtype} {shape}" if dtype else f"a {type(images).__name__}"
        raise ValueError(f"scale: expected images uint8 (n, height, width), found {found}")
    return images[:, None].astype(np.float32) / 255


def load(
    name: str, directory: str | os.PathLike[str] | None = None, *, offline: bool = False
) -> Dataset:
    """The data set `name`: "digits", "mnist" or "fashion-mnist".

    Files are looked for in `directory`, or else in the environment variable NNFS_DATA: in a folder
    `name` of it. If neither is given: where Debian's packages and Kaggle put them, in the user's
    cache, and at last, unless `offline`, they are downloaded. Raises DataError with what was
    looked for, or with the file and what is wrong with it.
    """
    if name not in CLASS_NAMES:
        raise DataError(f"data set {name!r} is not known: use one of {', '.join(CLASS_NAMES)}")
    if name == "digits":
        return _load_digits()
    files = find(name, directory, offline=offline)
    arrays = {}
    for part in ("train", "test"):
        if part in files:
            images, labels = read_csv(files[part])
        else:
            images = read_idx(files[f"{part}_images"], 3)
            labels = read_idx(files[f"{part}_labels"], 1).astype(np.int64)
            where = files[f"{part}_images"]
            if images.shape[1:] != (28, 28):
                raise DataError(
                    f"{where}: the images have {images.shape[1:]} pixels, expected (28, 28)"
                )
            if len(images) != len(labels) or not len(images):
                raise DataError(f"{where}: there are {len(images)} images for {len(labels)} labels")
            if labels.max() > 9:
                raise DataError(
                    f"{files[f'{part}_labels']}: there is the label {labels.max()}, expected 0..9"
                )
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels
    return Dataset(name, **arrays)


def _load_digits() -> Dataset:
    """1,797 digits of 8x8 pixels, enlarged to 28x28; a stratified split into 1,437 and 360."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError(
            "data set 'digits' comes with scikit-learn: pip install 'tinygrad_nnfs[models]'"
        ) from None
    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = np.kron(small, np.ones((1, 3, 3), np.uint8))  # each pixel 3x3, then a margin of 2
    images = np.pad(large, ((0, 0), (2, 2), (2, 2)))
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=360, random_state=0, stratify=digits.target
    )
    return Dataset("digits", train_images, train_labels, test_images, test_labels)


def resplit(dataset: Dataset, seed: int) -> Dataset:
    """All images of `dataset`, divided anew into as many training and test images.

    A stratified random split: each class keeps its share in both parts. Raises DataError if a
    class has too few images for that.
    """
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    train, test = _split(labels, len(dataset.test_labels), seed)
    return Dataset(dataset.name, images[train], labels[train], images[test], labels[test])


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Take `count` images out of the training part, to validate with.

    Returns `dataset` without them, their images uint8 (count, 28, 28) and their labels (count).
    A stratified random choice: each class keeps its share. Raises DataError if either part would
    have fewer images than there are classes, or if a class has too few images.
    """
    rest, held = _split(dataset.train_labels, count, seed)
    images, labels = dataset.train_images, dataset.train_labels
    smaller = replace(dataset, train_images=images[rest], train_labels=labels[rest])
    return smaller, images[held], labels[held]


def _split(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of `labels` in two stratified parts, each ascending; the second has `count`."""
    try:
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError(
            "a stratified split needs scikit-learn: pip install 'tinygrad_nnfs[models]'"
        ) from None
    classes = len(np.unique(labels))
    if not classes <= count <= len(labels) - classes:
        raise DataError(
            f"{count:,} of {len(labels):,} images cannot be split off: with {classes} classes, "
            f"use {classes:,} to {len(labels) - classes:,}"
        )
    try:
        first, second = train_test_split(
            np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise DataError(f"{count:,} images cannot be split off with seed {seed}: {error}") from None
    return np.sort(first), np.sort(second)
