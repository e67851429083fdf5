"""Small data sets for the tests of data."""

import gzip
import hashlib
import struct

import numpy as np

from tinygrad_nnfs import data
from tinygrad_nnfs.data import sources

HEADER = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])


def idx(array, magic=None, shape=None):
    """The bytes of an IDX file."""
    shape = array.shape if shape is None else shape
    magic = 0x800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + array.astype(np.uint8).tobytes()


def idx_files(count=20, seed=0):
    """The bytes of the four files of a set, by name."""
    random = np.random.default_rng(seed)
    return {
        name: idx(random.integers(0, 10, (count, 28, 28) if "images" in name else count))
        for name in data.FILES.values()
    }


def write_set(folder, changes=None, suffix="", seed=0):
    """A set of 20 and 20 images in `folder`; `changes` replaces the bytes of some of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**idx_files(seed=seed), **(changes or {})}.items():
        (folder / (name + suffix)).write_bytes(
            gzip.compress(content, mtime=0) if suffix else content
        )
    return folder


def csv(images, labels, header=HEADER):
    """The text of a CSV file."""
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    return "\n".join([header, *(",".join(map(str, row)) for row in rows.tolist())]) + "\n"


def write_csv_set(folder, name, seed=0):
    """A set of 20 and 20 images in `folder`, as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for part in ("train", "test"):
        text = csv(random.integers(0, 256, (20, 784)), random.integers(0, 10, 20))
        (folder / f"{name}_{part}.csv").write_text(text)
    return folder


def remote(addresses, seed=0):
    """Where the set of `idx_files` can be downloaded."""
    contents = {
        part: sources.Content(len(content), hashlib.sha256(content).hexdigest())
        for part, content in zip(data.FILES, idx_files(seed=seed).values())
    }
    return sources.Remote(addresses, contents)
