"""The data sets: scikit-learn's digits, MNIST and Fashion-MNIST: 28x28 grey images, 10 classes.

`load("digits")` needs no download. MNIST and Fashion-MNIST are read from their four IDX files,
plain or gzip-compressed (LeCun's format: http://yann.lecun.com/exdb/mnist, "file formats").
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIGITS = tuple("0123456789")
CLASS_NAMES = {
    "digits": DIGITS,
    "mnist": DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
LARGEST = 2**30  # bytes of content that an IDX file may declare


class DataError(Exception):
    """A data set is missing or a file of it is not what it should be; the message says which."""


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
    """Images uint8 (n, 28, 28) -> what the networks take: float32 (n, 1, 28, 28) in [0, 1]."""
    return images[:, None].astype(np.float32) / 255


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `name`: "digits", "mnist" or "fashion-mnist".

    IDX files are looked for in a folder `name` of `directory`, or else of the environment variable
    NNFS_DATA, or else where Debian's packages put them. Raises DataError with what was looked for,
    or with the file and what is wrong with it.
    """
    if name not in CLASS_NAMES:
        raise DataError(f"data set {name!r} is not known: use one of {', '.join(CLASS_NAMES)}")
    if name == "digits":
        return _load_digits()
    folder = _find(name, directory)
    arrays = {
        part: read_idx(_with_or_without_gz(folder / file), 3 if "images" in part else 1)
        for part, file in FILES.items()
    }
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        where = f"{folder}: {FILES[f'{part}_images']}"
        if images.shape[1:] != (28, 28):
            raise DataError(f"{where} has images of {images.shape[1:]} pixels, expected (28, 28)")
        if len(images) != len(labels) or not len(images):
            raise DataError(f"{where} has {len(images)} images for {len(labels)} labels")
        if labels.max() > 9:
            raise DataError(
                f"{folder}: {FILES[f'{part}_labels']} has the label {labels.max()}, expected 0..9"
            )
        arrays[f"{part}_labels"] = labels.astype(np.int64)
    return Dataset(name, **arrays)


def _find(name: str, directory: str | os.PathLike[str] | None) -> Path:
    given = directory if directory is not None else os.environ.get("NNFS_DATA")
    if given:
        folder = Path(given).expanduser()
        # never a folder of another name: the files of all sets are named alike
        places = [folder / name, *([folder] if folder.name == name else [])]
    else:
        places = [Path("/usr/share/datasets") / name]
    first = FILES["train_images"]
    for place in places:
        if _with_or_without_gz(place / first).exists():
            return place
    raise DataError(
        f"data set {name!r} was not found: no {first}[.gz] in {', '.join(map(str, places))}. "
        f"Put its four IDX files into a folder DIR/{name} and set NNFS_DATA=DIR or --data-dir DIR"
        + (", or install Debian's dataset-fashion-mnist" if name == "fashion-mnist" else "")
        + "; `--data digits` needs no files"
    )


def _with_or_without_gz(path: Path) -> Path:
    compressed = path.with_name(path.name + ".gz")
    return compressed if compressed.exists() and not path.exists() else path


def read_idx(path: str | os.PathLike[str], ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzip-compressed if its name ends in .gz: uint8 of `ndim` axes.

    Reads no more than the header declares. Raises DataError for anything that is not exactly that.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim:
                raise DataError(f"{path}: the header is cut off after {len(header)} bytes")
            magic, *shape = struct.unpack(f">{1 + ndim}I", header)
            expected = 0x800 + ndim  # 0x08: unsigned bytes
            if magic != expected:
                raise DataError(f"{path}: the magic number is {magic:#x}, expected {expected:#x}")
            size = math.prod(shape)
            if size > LARGEST:
                raise DataError(f"{path}: the header declares {size} bytes, {LARGEST} at most")
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read: {reason}") from None
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise DataError(f"{path}: {tuple(shape)} needs {size} bytes of content, found {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


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
