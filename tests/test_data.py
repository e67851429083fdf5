"""Reading data sets: IDX, CSV and digits, where they are looked for, and one clear line for
everything that is wrong; splits.
"""

import gzip
import hashlib
import os
import sys

import numpy as np
import pytest
from data_files import HEADER, csv, idx, idx_files, remote, write_csv_set, write_set
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinygrad_nnfs import data
from tinygrad_nnfs.data import (
    DataError,
    Dataset,
    hold_out,
    load,
    read_csv,
    read_idx,
    resplit,
    sources,
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders of the system, of Kaggle and of the cache, all empty; nothing to download."""
    monkeypatch.delenv("NNFS_DATA", raising=False)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    for seed, name in enumerate(sources.REMOTES):
        monkeypatch.setitem(sources.REMOTES, name, remote((), seed))
    return tmp_path


def line(error):
    """The message of a DataError, which is one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


# --- formats


@given(arrays(np.uint8, st.tuples(*(st.integers(0, 5),) * 3)), st.booleans())
def test_read_idx_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if compressed else "a")
    path.write_bytes(gzip.compress(idx(array), mtime=0) if compressed else idx(array))
    np.testing.assert_array_equal(read_idx(path, 3), array)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(28), st.just(28))),
    st.randoms(use_true_random=False),
    st.sampled_from(["\n", "\r\n"]),
)
def test_read_csv_round_trip(tmp_path_factory, images, random, end):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    expected = [random.randrange(10) for _ in images]
    path.write_text(csv(images, expected), newline=end)
    found, labels = read_csv(path)
    assert found.flags.c_contiguous  # as the other formats' are: checksums are of memory
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, expected)
    assert (found.dtype, labels.dtype) == (np.uint8, np.int64)


@given(st.binary(max_size=200), st.sampled_from(["", "\0\0\x08\x03", HEADER + "\n", "label\n"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, start):
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes(start.encode() + content)
    for read in (lambda: read_idx(path, 3), lambda: read_csv(path)):
        try:
            read()
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)


GOOD = idx(np.zeros((3, 2, 2)))
ZIPPED = gzip.compress(GOOD, mtime=0)
MOST = 2**32 - 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "header is cut off after 0 bytes"),
        ("a", GOOD[:10], "header is cut off after 10 bytes"),
        ("a", GOOD[:16], r"\(3, 2, 2\) needs 12 bytes of content, found 0"),
        ("a", GOOD[:-1], r"\(3, 2, 2\) needs 12 bytes of content, found 11"),
        ("a", GOOD + b"x", r"needs 12 bytes of content, found more"),
        ("a", idx(np.zeros((3, 2, 2)), magic=0x803 + 1), "magic number is 0x804, expected 0x803"),
        ("a", idx(np.zeros((3, 2, 2)), magic=0x801), "magic number is 0x801, expected 0x803"),
        ("a", idx(np.zeros((3, 2, 2)), magic=0xD03), "magic number is 0xd03, expected 0x803"),
        ("a", b"<!DOCTYPE html> not found", "magic number is 0x3c21444f, expected 0x803"),
        ("a", ZIPPED, "magic number is 0x1f8b0800, expected 0x803"),
        ("a", idx(np.zeros(1), shape=(MOST, MOST, MOST)), "1073741824 bytes at most"),
        ("a", idx(np.zeros(1), shape=(2**16, 2**16, 2**32 - 1)), "1073741824 bytes at most"),
        ("a", idx(np.zeros(0), shape=(0, MOST, MOST)), r"declares \(0, 4294967295, 4294967295\)"),
        ("a", idx(np.zeros(1), shape=(2**10, 2**10, 2**10)), "needs 1073741824 bytes of content"),
        ("a.gz", b"", "header is cut off after 0 bytes"),
        ("a.gz", GOOD, "cannot be read: Not a gzipped file"),
        ("a.gz", b"no gzip at all", "cannot be read: Not a gzipped file"),
        ("a.gz", ZIPPED[:-4], "cannot be read: Compressed file ended before"),
        ("a.gz", ZIPPED[:-8] + bytes(8), "cannot be read: CRC check failed"),
        ("a.gz", ZIPPED[:10] + b"\xff" * 20, "cannot be read: Error -3"),
        ("a.gz", gzip.compress(GOOD + bytes(10**7), mtime=0), "content, found more"),
        (
            "a.gz",
            gzip.compress(idx(np.zeros(1), shape=(MOST,) * 3), mtime=0),
            "1073741824 bytes at most",
        ),
    ],
)
def test_bad_idx_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, 3)
    assert line(error).startswith(f"{path}: ")


def test_no_more_is_unzipped_than_the_header_declares(tmp_path):
    import tracemalloc

    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(10**8), mtime=0))
    tracemalloc.start()
    with pytest.raises(DataError, match="found more"):
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


ROW = ",".join(["3", *["0"] * 784])
NOT_A_PIXEL = "is not a pixel, an integer in 0..255"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 begins with '', expected a header 'label,...'"),
        ("\n", "line 1 begins with '', expected a header 'label,...'"),
        (ROW, "line 1 begins with '3', expected a header 'label,...'"),
        ("<!DOCTYPE html>", "line 1 begins with '<!DOCTYPE html>', expected a header"),
        (HEADER, "the file has a header, but no rows"),
        (HEADER + "\n", "the file has a header, but no rows"),
        (HEADER + "\n\n\n", "the file has a header, but no rows"),
        (f"{HEADER}\n{ROW},0\n", "line 2 has 786 columns, expected 785"),
        (f"{HEADER}\n{ROW[:-2]}\n", "line 2 has 784 columns, expected 785"),
        (f"{HEADER}\n{ROW}\n{ROW[:-2]}\n", "line 3 has 784 columns, expected 785"),
        (f"{HEADER}\n{ROW}\n{ROW[:-1]}", "line 3, column 785: '' is not a pixel"),
        (f"{HEADER}\n{ROW}\n3\n", "line 3 has 1 columns, expected 785"),
        (f"{HEADER}\n{ROW.replace(',', ';')}\n", "line 2 has 1 columns, expected 785"),
        (f"{HEADER}\n{ROW.replace(',', ' ')}\n", "line 2 has 1 columns, expected 785"),
        (f"{HEADER}\n{ROW}\n{ROW[:-1]}256\n", f"line 3, column 785: '256' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW}\n{ROW[:-1]}-1\n", f"line 3, column 785: '-1' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW[:-1]}99999999999999999999\n", "'99999999999999999999' is not a pixel"),
        (f"{HEADER}\n{ROW[:-1]}0.5\n", f"line 2, column 785: '0.5' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW[:-1]}1e2\n", f"line 2, column 785: '1e2' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW[:-1]}nan\n", f"line 2, column 785: 'nan' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW[:-1]}#\n", f"line 2, column 785: '#' {NOT_A_PIXEL}"),
        (f"{HEADER}\n{ROW}# a shoe\n", "line 2, column 785: '0# a shoe' is not a pixel"),
        (f"{HEADER}\n10{ROW[1:]}\n", "line 2, column 1: '10' is not a label, an integer in 0..9"),
        (f"{HEADER}\n{ROW}\nT-shirt{ROW[1:]}\n", "line 3, column 1: 'T-shirt' is not a label"),
        (f"{HEADER}\n{HEADER}\n{ROW}\n", "line 2, column 1: 'label' is not a label"),
        (f"{HEADER}\n{ROW[:-1]}\0\n", r"line 2, column 785: '\\x00' is not a pixel"),
        (f"{HEADER}\n{ROW[:-1]}²\n", "line 2, column 785: '²' is not a pixel"),
    ],
)
def test_bad_csv_files(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_csv(path)
    assert line(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(range(256)) * 10, "line 1 begins with .*, expected a header"),
        (f"{HEADER}\n".encode() + bytes(range(256)) * 10, "line 2 has . columns, expected 785"),
        (f"{HEADER}\n{ROW}".encode("utf-16"), "line 1 begins with .*, expected a header"),
        (
            gzip.compress(f"{HEADER}\n{ROW}".encode(), mtime=0),
            "line 1 begins with .*, expected a header",
        ),
    ],
)
def test_csv_files_that_are_no_text(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_csv(tmp_path / "a.csv")
    line(error)


@pytest.mark.parametrize("read", [lambda path: read_idx(path, 3), read_csv])
def test_files_that_cannot_be_read(tmp_path, read):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, message in [
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "circle", "Too many levels of symbolic links"),
        (tmp_path / "n\0ne", "null byte"),
        (tmp_path / ("long" * 100), "name too long"),
        (tmp_path / "two\nlines", "No such file"),
    ]:
        with pytest.raises(DataError, match=f"cannot be read: .*{message}") as error:
            read(path)
        line(error)


def test_a_csv_file_that_is_too_large(tmp_path):
    path = tmp_path / "a.csv"
    path.touch()
    os.truncate(path, 2**30 + 1)
    with pytest.raises(DataError, match="the file has 1073741825 bytes, 1073741824 at most"):
        read_csv(path)


# --- where sets are looked for


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
    monkeypatch.chdir(tmp_path / "mnist")
    assert load("mnist", ".").name == "mnist"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("mnist", "~").name == "mnist"


def test_load_reads_csv_files(tmp_path):
    write_csv_set(tmp_path / "fashion-mnist", "fashion-mnist")
    write_csv_set(tmp_path, "mnist", seed=1)
    fashion, mnist = load("fashion-mnist", tmp_path), load("mnist", tmp_path)
    for found in (fashion, mnist):
        assert found.train_images.shape == found.test_images.shape == (20, 28, 28)
        assert (found.train_images.dtype, found.test_labels.dtype) == (np.uint8, np.int64)
    assert (fashion.train_images != mnist.train_images).any()
    write_set(tmp_path / "mnist")  # IDX files, which are faster, come first
    assert (load("mnist", tmp_path).train_images != mnist.train_images).any()


def test_a_given_folder_without_the_set_is_an_error(places, monkeypatch):
    """It must neither be taken from elsewhere nor downloaded."""
    write_set(places / "system" / "fashion-mnist")
    write_set(places / "given" / "mnist")  # a set of another name must not be taken for it
    for directory in (places / "given", places / "given" / "mnist", places / "none", "", "~x/\0"):
        for offline in (False, True):
            with pytest.raises(DataError) as error:
                load("fashion-mnist", directory, offline=offline)
            text = line(error)
            for part in (
                "'fashion-mnist' was not found: no train-images-idx3-ubyte[.gz] in /",
                " and no fashion-mnist_train.csv in /",
                "NNFS_DATA=DIR",
                "--data-dir",
                "Debian",
            ):
                assert part in text
            assert ("is no folder" in text) == (str(directory)[-4:] not in ("iven", "nist", ""))
    monkeypatch.setenv("NNFS_DATA", str(places / "given"))
    with pytest.raises(DataError, match="'fashion-mnist' was not found"):
        load("fashion-mnist")
    monkeypatch.setenv("NNFS_DATA", "")  # as if it were not set
    assert load("fashion-mnist").name == "fashion-mnist"


@pytest.mark.parametrize("missing", data.FILES.values())
def test_an_incomplete_set_says_what_is_missing(tmp_path, missing):
    (write_set(tmp_path / "mnist") / missing).unlink()
    with pytest.raises(DataError, match=rf"not found: no {missing}\[.gz\] in .* mnist_train"):
        load("mnist", tmp_path)
    write_csv_set(tmp_path, "fashion-mnist")
    (tmp_path / "fashion-mnist_test.csv").unlink()
    with pytest.raises(DataError, match=r"ubyte\[.gz\] .* no fashion-mnist_test.csv in "):
        load("fashion-mnist", tmp_path / "fashion-mnist" / "..")


def test_order_of_places(places, monkeypatch):
    """A place is used only if those before it do not have the set."""
    labels = {}
    for place in ("given", "environment", "system", "kaggle", "cache"):
        files = idx_files(seed=0)
        files["train-labels-idx1-ubyte"] = idx(np.full(20, len(labels)))
        write_set(places / place / "mnist", changes=files)
        labels[place] = len(labels)
    monkeypatch.setenv("NNFS_DATA", str(places / "environment"))
    assert set(load("mnist", places / "given").train_labels) == {labels["given"]}
    assert set(load("mnist").train_labels) == {labels["environment"]}
    monkeypatch.delenv("NNFS_DATA")
    for place in ("system", "kaggle", "cache"):
        assert set(load("mnist", offline=True).train_labels) == {labels[place]}
        (places / place).rename(places / f"no {place}")
    with pytest.raises(DataError, match=r"'mnist' was not found: .* offline it is not downloaded"):
        load("mnist", offline=True)


def test_kaggle_folders_may_have_any_name(places):
    kaggle = places / "kaggle"
    write_set(kaggle / "a" / "deep" / "folder" / "there", seed=1)
    for file in write_set(kaggle / "b", seed=0).iterdir():  # as Windows programs unpack it
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    same = {name: load(name, offline=True).test_labels for name in ("mnist", "fashion-mnist")}
    for seed, found in enumerate(same.values()):  # told apart by checksum
        expected = idx_files(seed=seed)["t10k-labels-idx1-ubyte"][8:]
        assert found.astype(np.uint8).tobytes() == expected
    (kaggle / "a").rename(places / "elsewhere")
    with pytest.raises(DataError, match="'fashion-mnist' was not found"):
        load("fashion-mnist", offline=True)
    write_csv_set(kaggle / "b", "fashion-mnist")  # beside another set's IDX files
    assert (load("fashion-mnist", offline=True).train_images > 9).any()


def test_kaggle_is_searched_to_a_depth(places):
    write_set(places / "kaggle" / "1" / "2" / "3" / "4" / "5")
    with pytest.raises(DataError, match="'mnist' was not found"):
        load("mnist", offline=True)


def test_a_file_of_the_cache_that_is_cut_off_is_missing(places):
    folder = write_set(places / "cache" / "mnist")
    load("mnist", offline=True)
    os.truncate(folder / "train-images-idx3-ubyte", 100)
    with pytest.raises(DataError, match="'mnist' was not found"):
        load("mnist", offline=True)


def test_unknown_set():
    with pytest.raises(DataError, match="'cifar' is not known: use one of digits, mnist, fashion"):
        load("cifar")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_labels", idx(np.zeros(19)), "20 images for 19 labels"),
        ("train_images", idx(np.zeros((0, 28, 28))), "0 images for 20 labels"),
        ("test_labels", idx(np.zeros(21)), "20 images for 21 labels"),
        ("test_labels", idx(np.full(20, 10)), "there is the label 10, expected 0..9"),
        ("train_labels", idx(np.full(20, 255)), "there is the label 255, expected 0..9"),
        ("test_images", idx(np.zeros((20, 27, 28))), r"images have \(27, 28\) pixels, expected"),
        ("train_images", idx(np.zeros((20, 28 * 28))), "magic number is 0x802, expected 0x803"),
        ("train_labels", idx(np.zeros((20, 1))), "magic number is 0x802, expected 0x801"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, file, content, message):
    write_set(tmp_path / "mnist", changes={data.FILES[file]: content})
    with pytest.raises(DataError, match=message) as error:
        load("mnist", tmp_path)
    assert line(error).startswith(str(tmp_path / "mnist" / data.FILES[file].partition("-")[0]))


def test_a_set_without_images(tmp_path):
    empty = {"t10k-images-idx3-ubyte": (0, 28, 28), "t10k-labels-idx1-ubyte": (0,)}
    write_set(
        tmp_path / "mnist", changes={file: idx(np.zeros(shape)) for file, shape in empty.items()}
    )
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: there are 0 images for 0 labels"):
        load("mnist", tmp_path)


# --- digits and splits


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


@pytest.mark.parametrize("module", ["sklearn.datasets", "sklearn.model_selection"])
def test_digits_and_splits_without_scikit_learn_say_what_to_install(monkeypatch, module):
    digits = load("digits")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'tinygrad_nnfs\[models\]'"):
        load("digits")
    if module == "sklearn.model_selection":
        with pytest.raises(DataError, match=r"pip install 'tinygrad_nnfs\[models\]'"):
            resplit(digits, 0)


@st.composite
def datasets(draw):
    """Images that are all different, with labels of a few classes."""
    shares = draw(st.lists(st.integers(10, 30), min_size=2, max_size=5))
    labels = np.repeat(np.arange(len(shares)), shares)
    np.random.default_rng(draw(st.integers(0, 100))).shuffle(labels)
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(len(labels))
    train = draw(st.integers(len(shares), len(labels) - len(shares)))
    return Dataset("mnist", images[:train], labels[:train], images[train:], labels[train:])


def pairs(images, labels):
    return list(zip(images[:, 0, 0].tolist(), labels.tolist()))


def is_share(part, whole):
    """Whether labels have each class by its share in other labels, within 1."""
    part, whole = np.bincount(part, minlength=10), np.bincount(whole, minlength=10)
    return (abs(part - whole * (part.sum() / whole.sum())) < 1.001).all()


@given(datasets(), st.integers(0, 2**32 - 1))
def test_resplit(dataset, seed):
    new = resplit(dataset, seed)
    assert new.name == dataset.name
    assert new.train_images.shape == dataset.train_images.shape
    assert new.test_images.shape == dataset.test_images.shape
    before = pairs(dataset.train_images, dataset.train_labels)
    before += pairs(dataset.test_images, dataset.test_labels)
    after = pairs(new.train_images, new.train_labels) + pairs(new.test_images, new.test_labels)
    assert sorted(after) == sorted(before)
    labels = np.concatenate([new.train_labels, new.test_labels])
    assert is_share(new.train_labels, labels)
    assert is_share(new.test_labels, labels)
    np.testing.assert_array_equal(resplit(dataset, seed).test_images, new.test_images)


@given(datasets(), st.integers(0, 2**32 - 1), st.data())
def test_hold_out(dataset, seed, choice):
    classes = np.unique(dataset.train_labels)
    shares = np.bincount(dataset.train_labels)
    if min(shares[classes]) < 2 or len(dataset.train_labels) < 2 * len(classes):
        with pytest.raises(DataError, match="cannot be split off"):
            hold_out(dataset, len(classes), seed)
        return
    count = choice.draw(st.integers(len(classes), len(dataset.train_labels) - len(classes)))
    smaller, images, labels = hold_out(dataset, count, seed)
    assert images.shape == (count, 28, 28)
    assert smaller.test_images is dataset.test_images
    after = pairs(smaller.train_images, smaller.train_labels) + pairs(images, labels)
    assert sorted(after) == sorted(pairs(dataset.train_images, dataset.train_labels))
    assert is_share(labels, dataset.train_labels)
    assert is_share(smaller.train_labels, dataset.train_labels)


def test_splits_of_digits():
    digits = load("digits")
    smaller, images, labels = hold_out(digits, 100, seed=0)
    assert repr(smaller) == "Dataset('digits', 1,337 training and 360 test images)"
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert set(np.bincount(labels)) <= {9, 10, 11}
    assert (resplit(digits, 1).test_images != resplit(digits, 2).test_images).any()


@pytest.mark.parametrize("count", [-5, 0, 9, 1428, 1437, 10**9, 0.5, 100.5])
def test_counts_that_cannot_be_held_out(count):
    with pytest.raises(DataError, match="images cannot be split off") as error:
        hold_out(load("digits"), count, seed=0)
    line(error)


@pytest.mark.parametrize("seed", [-1, 2**32, "one"])
def test_seeds_that_are_none(seed):
    with pytest.raises(DataError, match=f"cannot be split off with seed {seed}: ") as error:
        resplit(load("digits"), seed)
    line(error)


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
    for part, content in sources.REMOTES[name].contents.items():
        array = getattr(real, part)
        written = idx(array)
        assert sources.Content(len(written), hashlib.sha256(written).hexdigest()) == content
