"""The formats of the data sets: IDX (LeCun's, plain or gzip) and the CSV files of Kaggle.

IDX is described at http://yann.lecun.com/exdb/mnist, "file formats".
"""

import gzip
import math
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
LARGEST = 2**30  # bytes of content that an IDX file may declare, or a CSV file have
COLUMNS = 1 + 28 * 28  # of a CSV file: the label, then the pixels row by row


class DataError(Exception):
    """A data set is missing or a file of it is not what it should be; one line says which."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a path may have line breaks


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
            # numpy refuses 0 x 2**32 x 2**32, too
            if math.prod(max(1, length) for length in shape) > LARGEST:
                raise DataError(
                    f"{path}: the header declares {tuple(shape)}, {LARGEST} bytes at most"
                )
            size = math.prod(shape)
            content = file.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise DataError(f"{path}: {tuple(shape)} needs {size} bytes of content, found {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_csv(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """A CSV file of Kaggle: images uint8 (n, 28, 28) and labels int64 (n) in 0..9.

    A header line "label,...", then lines of a label and 784 pixels 0..255. Raises DataError with
    the first line that is anything else.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path}: the file has {size} bytes, {LARGEST} at most")
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(2**16).strip().split(",")
        if header[0].strip("\"'").lower() != "label":
            raise DataError(
                f"{path}: line 1 begins with {header[0][:20]!r}, expected a header 'label,...'"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # no rows; older numpy warns when it takes 1.5 for 1
                table = np.loadtxt(
                    path,
                    np.uint8,
                    comments=None,
                    delimiter=",",
                    skiprows=1,
                    ndmin=2,
                    encoding="utf-8",
                )
        except (ValueError, Warning) as error:
            raise DataError(f"{path}: {_fault(path) or error}") from None
        if table.shape[1] != COLUMNS or table[:, 0].max() > 9:
            raise DataError(f"{path}: {_fault(path)}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    images = np.ascontiguousarray(table[:, 1:]).reshape(-1, 28, 28)
    return images, table[:, 0].astype(np.int64)


def _fault(path: Path) -> str:
    """What is wrong with a CSV file: its first bad line (numpy counts lines without the header)."""
    rows = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file)
        for number, line in enumerate(file, 2):
            cells = line.rstrip("\n").split(",")
            if cells == [""]:
                continue
            rows += 1
            if len(cells) != COLUMNS:
                return f"line {number} has {len(cells)} columns, expected {COLUMNS}"
            for column, cell in enumerate(cells, 1):
                what, largest = ("label", 9) if column == 1 else ("pixel", 255)
                text = cell.strip()
                if not (text.isascii() and text.isdecimal() and int(text[:9]) <= largest):
                    return (
                        f"line {number}, column {column}: {text[:20]!r} is not a {what}, "
                        f"an integer in 0..{largest}"
                    )
    return "the file has a header, but no rows" if not rows else ""


def reason(error: Exception) -> str:
    """The words of `error`, without its number and path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
