"""Reading data sets: IDX files, digits, and one clear line for everything that is wrong."""

import gzip
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinygrad_nnfs import data
from tinygrad_nnfs.data import DataError, load, read_idx


def idx(array, magic=None, shape=None):
    """The bytes of an IDX file."""
    shape = array.shape if shape is None else shape
    magic = 0x800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + array.astype(np.uint8).tobytes()


def write_set(folder, count=20, changes=None, suffix=""):
    """A small data set in `folder`; `changes` replaces the bytes of some of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in data.FILES.values():
        shape = (count, 28, 28) if "images" in name else (count,)
        content = idx(random.integers(0, 10, shape))
        content = (changes or {}).get(name, content)
        path = folder / (name + suffix)
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


@given(arrays(np.uint8, st.tuples(*(st.integers(0, 5),) * 3)), st.booleans())
def test_read_idx_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if compressed else "a")
    path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    np.testing.assert_array_equal(read_idx(path, 3), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_load_finds_a_set_by_directory_and_environment(tmp_path, monkeypatch, suffix):
    write_set(tmp_path / "mnist", suffix=suffix)
    found = load("mnist", tmp_path)
    assert found.train_images.shape == (20, 28, 28)
    assert found.train_images.dtype == np.uint8
    assert found.test_labels.dtype == np.int64
    monkeypatch.setenv("NNFS_DATA", str(tmp_path))
    np.testing.assert_array_equal(load("mnist").train_images, found.train_images)
    np.testing.assert_array_equal(load("mnist", tmp_path / "mnist").test_images, found.test_images)


def test_missing_set_says_the_ways_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("NNFS_DATA", raising=False)
    write_set(tmp_path / "mnist")  # a set of another name must not be taken for it
    for directory in (tmp_path, tmp_path / "mnist", None):
        if directory is None and os.path.exists("/usr/share/datasets/fashion-mnist"):
            continue
        with pytest.raises(DataError) as error:
            load("fashion-mnist", directory)
        text = str(error.value)
        assert "\n" not in text
        for part in ("'fashion-mnist' was not found", "NNFS_DATA=DIR", "--data-dir", "Debian"):
            assert part in text


def test_unknown_set():
    with pytest.raises(DataError, match="'cifar' is not known: use one of digits, mnist, fashion"):
        load("cifar")


GOOD = idx(np.zeros((3, 2, 2)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "header is cut off after 0 bytes"),
        ("a", GOOD[:10], "header is cut off after 10 bytes"),
        ("a", GOOD[:-1], r"\(3, 2, 2\) needs 12 bytes of content, found 11"),
        ("a", GOOD + b"x", r"needs 12 bytes of content, found more"),
        ("a", idx(np.zeros((3, 2, 2)), magic=0x803 + 1), "magic number is 0x804, expected 0x803"),
        ("a", idx(np.zeros((3, 2, 2)), magic=0xD03), "magic number is 0xd03, expected 0x803"),
        ("a", b"<!DOCTYPE html> not found", "magic number is 0x3c21444f, expected 0x803"),
        ("a", idx(np.zeros(1), magic=0x803, shape=(2**32 - 1,) * 3), "1073741824 at most"),
        ("a.gz", b"", "header is cut off after 0 bytes"),
        ("a.gz", b"no gzip at all", "cannot be read: Not a gzipped file"),
        ("a.gz", gzip.compress(GOOD, mtime=0)[:-4], "cannot be read: Compressed file ended before"),
        ("a.gz", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "cannot be read: CRC check failed"),
        ("a.gz", gzip.compress(GOOD + bytes(10**7), mtime=0), "content, found more"),
    ],
)
def test_bad_files_are_one_line_with_their_path(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, 3)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_directory_and_missing_file_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        read_idx(tmp_path, 3)
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "none", 3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_labels", idx(np.zeros(19)), "20 images for 19 labels"),
        ("test_labels", idx(np.full(20, 10)), "has the label 10, expected 0..9"),
        ("test_images", idx(np.zeros((20, 27, 28))), r"images of \(27, 28\) pixels"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, file, content, message):
    write_set(tmp_path / "mnist", changes={data.FILES[file]: content})
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_digits():
    digits = load("digits")
    assert digits.train_images.shape == (1437, 28, 28)
    assert digits.test_images.shape == (360, 28, 28)
    everything = np.concatenate([digits.train_images, digits.test_images])
    assert (everything.min(), everything.max()) == (0, 255)
    assert (everything[:, :2] == 0).all()
    assert (everything[:, :, -2:] == 0).all()
    inner = everything[:, 2:-2, 2:-2].reshape(-1, 8, 3, 8, 3)
    assert (inner == inner[:, :, :1, :, :1]).all()  # each pixel 3x3
    assert set(digits.test_labels) == set(range(10))
    np.testing.assert_array_equal(load("digits").test_labels, digits.test_labels)
    assert digits.class_names == tuple("0123456789")
    assert repr(digits) == "Dataset('digits', 1,437 training and 360 test images)"


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tinygrad_nnfs\[models\]'"):
        load("digits")


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_sets(name):
    if "NNFS_DATA" not in os.environ:
        pytest.skip("NNFS_DATA is not set")
    real = load(name)
    assert real.train_images.shape == (60_000, 28, 28)
    assert real.test_images.shape == (10_000, 28, 28)
    assert set(real.train_labels) == set(real.test_labels) == set(range(10))
    assert len(real.class_names) == 10
