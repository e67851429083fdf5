"""Files of arrays: the round trip, everything that can be wrong with a file, and crashes."""

import errno
import json
import os
import pickle
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, from_dtype
from tinygrad_nnfs.models.mlp import MLP
from tinygrad_nnfs.models.networks import NETWORKS, load_model

from tinygrad_nnfs import Tensor, checkpoint, nn
from tinygrad_nnfs.checkpoint import CheckpointError, load, load_weights, save, write_file

# -- what is saved is what is loaded ---------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # no half characters


@st.composite
def any_arrays(draw):
    """Of every dtype, byte order and size, also empty and of no axes, in every memory order."""
    dtype = np.dtype(draw(st.sampled_from(checkpoint.DTYPES)))
    shape = draw(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(arrays(dtype, shape, elements=from_dtype(dtype), fill=st.nothing()))
    array = array.astype(array.dtype.newbyteorder(draw(st.sampled_from("<>"))))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = st.sampled_from([1, 1, 2, -1, -2])
    return array[(..., *(slice(None, None, draw(steps)) for _ in range(array.ndim)))]


@given(
    st.dictionaries(names.filter(lambda name: name != "__metadata__"), any_arrays(), max_size=4),
    st.dictionaries(names, names, max_size=4),
)
def test_round_trip(tmp_path_factory, content, metadata):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save(path, content, metadata)
    found, found_metadata = load(path)
    assert found_metadata == metadata
    assert found.keys() == content.keys()
    for name, array in content.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array, strict=False)
        assert found[name].shape == array.shape
    assert os.listdir(path.parent) == [path.name]

    shuffled = dict(reversed(content.items())), dict(reversed(metadata.items()))
    first = path.read_bytes()
    assert int.from_bytes(first[:8], "little") % 8 == 0  # so that the numbers are aligned
    save(path, *shuffled)
    assert path.read_bytes() == first


def test_same_bytes_in_every_process(tmp_path):
    """Hashes of strings differ between processes, and the order of sets with them."""
    code = f"""
import numpy as np
from tinygrad_nnfs.checkpoint import save
save({str(tmp_path / "b")!r}, dict.fromkeys("abc", np.ones(2)), {{k: k for k in "qwertyuiop"}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    save(tmp_path / "a", dict.fromkeys("cba", np.ones(2)), {k: k for k in "poiuytrewq"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("content", "metadata", "message"),
    [
        ({"a": np.zeros(1, complex)}, {}, "'a' is complex128, expected a numpy array of one of"),
        ({"a": np.zeros(1, object)}, {}, "'a' is object, expected"),
        ({"a": np.zeros(1, np.longdouble)}, {}, "'a' is .*, expected"),
        ({"a": np.zeros(1, "f4,f4")}, {}, "'a' is .*, expected"),
        ({"a": np.array(["text"])}, {}, "'a' is <U4, expected"),
        ({"a": np.zeros(1, "M8[s]")}, {}, r"'a' is datetime64\[s\], expected"),
        ({"a": [1.0]}, {}, "'a' is a list, expected a numpy array"),
        ({"a": Tensor([1.0])}, {}, "'a' is .*, expected a numpy array"),
        ({"__metadata__": np.zeros(1)}, {}, "'__metadata__' is the format's own"),
        ({1: np.zeros(1)}, {}, "names and metadata are strings, found 1"),
        ({"\ud800": np.zeros(1)}, {}, "can't encode character"),
        ({}, {"epoch": 3}, "names and metadata are strings, found 3"),
        ({}, {"a": "\ud800"}, "can't encode character"),
        ({}, {"a": "x" * checkpoint.LARGEST_HEADER}, "16777216 and 4294967296 at most"),
    ],
)
def test_what_cannot_be_saved(tmp_path, content, metadata, message):
    path = tmp_path / "model.safetensors"
    save(path, {"old": np.ones(3)})
    with pytest.raises(CheckpointError, match=message) as error:
        save(path, content, metadata)
    assert str(error.value).startswith(f"{path}: cannot be written: ")
    assert "\n" not in str(error.value)
    assert load(path)[0]["old"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == [path.name]


# -- bad files -------------------------------------------------------------------------------------


def file(header, numbers=b"", size=None):
    """The bytes of a file with any header: bytes as they are, else as JSON."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + numbers


def entry(begin=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def twice(one, other):
    """A JSON object that has the name "a" twice."""
    return f'{{"a":{json.dumps(one)},"a":{json.dumps(other)}}}'.encode()


def with_field(value):
    """A header with a field that the format does not know, which is allowed, of this value."""
    return b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + value + b"}}"


GOOD = file({"a": entry(), "b": entry(4, 12, (2, 1)), "__metadata__": {"k": "v"}}, bytes(12))
DAMAGED = "is cut off, damaged or not a safetensors file: "  # then, the library's own reason
BAD = {
    "empty": (b"", "has 0 bytes: it is empty or cut off"),
    "seven bytes": (bytes(7), "has 7 bytes: it is empty or cut off"),
    "zeros": (bytes(100), DAMAGED),
    "cut off in the header": (GOOD[:40], "is cut off or not a safetensors file"),
    "cut off in the numbers": (GOOD[:-1], DAMAGED),
    "numbers missing": (GOOD[:-12], DAMAGED),
    "one byte more": (GOOD + b"x", DAMAGED),
    "two files": (GOOD + GOOD, DAMAGED),
    "no header": (file(b""), DAMAGED),
    "header larger than the file": (file({}, size=3), "is cut off or not"),
    "header of 2^63 bytes": (file({}, size=2**63), "is cut off or not"),
    "header over the bound": (file({}, bytes(2**24), 2**24 + 1), "is cut off or not"),
    "header ends within a word": (file({"a": entry()}, bytes(4), 10), DAMAGED),
    "header is not JSON": (file(b"{a: 1}"), DAMAGED),
    "header is not UTF-8": (file(b'{"\xff": 1}'), DAMAGED),
    "header is UTF-16": (file("{}".encode("utf-16")), DAMAGED),
    "header is a list": (file([]), DAMAGED),
    "header is a number": (file(3), DAMAGED),
    "header is null": (file(b"null"), DAMAGED),
    "header is deep": (file(b"[" * 100_000), DAMAGED),
    "deep unknown field": (file(with_field(b"[" * 9999 + b"]" * 9999), bytes(4)), DAMAGED),
    "long unknown number": (file(with_field(b"9" * 5000), bytes(4)), DAMAGED),
    "NaN in the header": (file(b'{"a": NaN}'), DAMAGED),
    "words after the header": (file(b"{} x"), DAMAGED),
    "same name, same place": (file(twice(entry(), entry()), bytes(4)), "has 'a' more than once"),
    "same name, two places": (file(twice(entry(), entry(4, 8)), bytes(8)), DAMAGED),
    "same name in metadata": (file(b'{"__metadata__":' + twice("1", "2") + b"}"), "'a' more than"),
    "metadata twice": (file(b'{"__metadata__":{},"__metadata__":{}}'), DAMAGED),
    "metadata number": (file({"__metadata__": {"epoch": 1}}), DAMAGED),
    "metadata list": (file({"__metadata__": []}), DAMAGED),
    "metadata in metadata": (file({"__metadata__": {"a": {}}}), DAMAGED),
    "entry is a number": (file({"a": 4}, bytes(4)), DAMAGED),
    "entry without dtype": (file({"a": {"shape": [1], "data_offsets": [0, 4]}}), DAMAGED),
    "entry without shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), DAMAGED),
    "entry without offsets": (file({"a": {"dtype": "F32", "shape": [1]}}), DAMAGED),
    "overlap": (file({"a": entry(), "b": entry(2, 6)}, bytes(6)), DAMAGED),
    "same place": (file({"a": entry(), "b": entry()}, bytes(4)), DAMAGED),
    "hole": (file({"a": entry(), "b": entry(8, 12)}, bytes(12)), DAMAGED),
    "hole at the start": (file({"a": entry(4, 8)}, bytes(8)), DAMAGED),
    "end before begin": (file({"a": entry(4, 0)}, bytes(4)), DAMAGED),
    "beyond the end": (file({"a": entry(0, 8, (2,))}, bytes(4)), DAMAGED),
    "far beyond the end": (file({"a": entry(0, 2**50, (2**48,))}), DAMAGED),
    "negative offset": (file({"a": entry(-4, 0)}, bytes(4)), DAMAGED),
    "offset over 64 bits": (file({"a": entry(0, 2**64)}, bytes(4)), DAMAGED),
    "three offsets": (file({"a": {**entry(), "data_offsets": [0, 4, 8]}}, bytes(4)), DAMAGED),
    "shape too small": (file({"a": entry(0, 8)}, bytes(8)), DAMAGED),
    "shape too large": (file({"a": entry(shape=(2,))}, bytes(4)), DAMAGED),
    "negative shape": (file({"a": entry(shape=(-1,))}, bytes(4)), DAMAGED),
    "fraction in shape": (file({"a": entry(shape=(1.0,))}, bytes(4)), DAMAGED),
    "shape is a number": (file({"a": entry(shape=1)}, bytes(4)), DAMAGED),
    "giant shape": (file({"a": entry(shape=(2**62, 2**62))}, bytes(4)), DAMAGED),
    "giant and empty": (file({"a": entry(0, 0, (2**62, 2, 0))}), DAMAGED),
    "empty and giant": (file({"a": entry(0, 0, (0, 2**62, 2**62))}), DAMAGED),
    "a hundred axes": (file({"a": entry(shape=(1,) * 100)}, bytes(4)), DAMAGED),
    "no such dtype": (file({"a": entry(dtype="F33")}, bytes(4)), DAMAGED),
    "bfloat16": (file({"a": entry(0, 2, dtype="BF16")}, bytes(2)), "BF16, which numpy lacks"),
    "float8": (file({"a": entry(0, 1, dtype="F8_E4M3")}, bytes(1)), "F8_E4M3, which numpy"),
    "control characters": (file({"\n\x1b[31m": entry(4, 8)}, bytes(8)), DAMAGED),
    "a long name": (file({"x" * 10**5: entry(4, 8)}, bytes(8)), DAMAGED),
    "a pickle": (pickle.dumps({"a": np.zeros(3)}), "pickle and .pt files could run code"),
    "an old pickle": (pickle.dumps({"a": [0] * 9}, protocol=0), "not a safetensors file"),
    "HTML": (b"<!DOCTYPE html>\n<html>404", "it begins with b'<!DOCTYP'"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version '"),
    "ONNX": (b"\x08\x0a\x12\x0dtinygrad_nnfs:", "not a safetensors file"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "not a safetensors file"),
}


def refused(path, network=None):
    """The message of load; it is one readable line that begins with the path."""
    with pytest.raises(CheckpointError) as error:
        load(path) if network is None else load_weights(network, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_with_their_path(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert re.search(message, refused(path))


def test_the_good_file_is_good(tmp_path):
    """Or else BAD would show nothing."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    found, metadata = load(path)
    assert {name: array.shape for name, array in found.items()} == {"a": (1,), "b": (2, 1)}
    assert metadata == {"k": "v"}


def test_what_is_no_file(tmp_path):
    assert "is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none")
    assert "File name too long" in refused(tmp_path / ("x" * 300))
    assert "is a device or pipe" in refused(os.devnull)
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or pipe" in refused(tmp_path / "pipe")  # and does not wait for a writer
    with (tmp_path / "large").open("wb") as sparse:
        sparse.truncate(checkpoint.LARGEST + 1)
    assert "4294967296 at most" in refused(tmp_path / "large")
    with pytest.raises(CheckpointError, match="null"):
        load("a\0b")


def test_a_zip_archive(tmp_path):
    path = tmp_path / "model.pt"  # as torch.save writes them
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert r"begins with b'PK\x03\x04" in refused(path)


def test_cut_off_at_every_byte(tmp_path):
    path = tmp_path / "cut.safetensors"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        refused(path)


@given(st.data())
def test_flipped_bytes_are_refused_or_loaded_never_worse(tmp_path_factory, data):
    content = bytearray(GOOD)
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "f"
    path.write_bytes(content)
    try:
        found, metadata = load(path)
    except CheckpointError as error:
        assert str(error).isprintable()
    else:
        assert all(isinstance(array, np.ndarray) for array in found.values())
        assert all(isinstance(text, str) for item in metadata.items() for text in item)


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: load(tmp_path / "a"), lambda: save(tmp_path / "a", {})):
        with pytest.raises(CheckpointError, match=r"pip install 'tinygrad_nnfs\[models\]'"):
            call()


# -- writing is all or nothing ---------------------------------------------------------------------

OLD, NEW = {"a": np.zeros(9)}, {"a": np.ones(9)}


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_leaves_the_old_file_whole(tmp_path, monkeypatch, function, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "model.safetensors"
    save(path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(CheckpointError) as error:
            save(path, NEW)
    assert str(error.value) == f"{path}: cannot be written: {os.strerror(number)}"
    np.testing.assert_array_equal(load(path)[0]["a"], OLD["a"])
    assert os.listdir(tmp_path) == [path.name]


def test_an_interrupt_leaves_no_rubbish(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = tmp_path / "model.safetensors"
    save(path, OLD)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, NEW)
    assert os.listdir(tmp_path) == [path.name]


def test_the_order_of_steps_that_makes_it_safe(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(number):
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "numbers")
        fsync(number)

    def seen_replace(source, target):
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    save(tmp_path / "model", OLD)
    assert steps == ["numbers", "name", "folder"]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path, "Is a directory"),
        ("", "Is a directory"),
        (tmp_path / "none" / "a", "No such file"),
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path / ("x" * 250), "File name too long"),
    ):
        with pytest.raises(CheckpointError, match=f"cannot be written: {reason}"):
            save(path, {})
    assert os.listdir(tmp_path) == ["file"]


def test_a_later_save_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "model.safetensors"
    others = {".model.safetensors.partial", ".other.safetensors.01234567.partial", "x.partial"}
    for name in {*others, ".model.safetensors.01234567.partial"}:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    others.add(".model.safetensors.89abcdef.partial")  # of another process, at work
    (tmp_path / ".model.safetensors.89abcdef.partial").write_text("half")
    save(path, OLD)
    assert set(os.listdir(tmp_path)) == {path.name, *others}


def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a file system cannot be mounted here")
    try:
        path = small / "model.safetensors"
        save(path, OLD)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(path, {"a": np.ones(10**5)})
        np.testing.assert_array_equal(load(path)[0]["a"], OLD["a"])
        assert os.listdir(small) == [path.name]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_killed_at_any_moment_a_whole_file_stays(tmp_path):
    path = tmp_path / "model.safetensors"
    code = f"""
import numpy as np
from tinygrad_nnfs.checkpoint import save
for i in range(10**9):
    save({str(path)!r}, {{"a": np.full(200_000, i)}}, {{"i": str(i)}})
"""
    random = np.random.default_rng(0)
    for _ in range(4):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found, metadata = load(path)
        np.testing.assert_array_equal(found["a"], np.full(200_000, int(metadata["i"])))
    for leftover in tmp_path.glob(".*.partial"):
        os.utime(leftover, (0, 0))
    save(path, OLD)
    assert os.listdir(tmp_path) == [path.name]


def test_two_writers_never_mix(tmp_path, monkeypatch):
    """One finishes while the other is half way."""
    path = tmp_path / "model.safetensors"
    save(path, OLD)
    half_way, first_is_done = threading.Event(), threading.Event()

    def fail():
        with pytest.raises(CheckpointError, match="the second writer fails"):
            save(path, NEW)

    second = threading.Thread(target=fail)

    def fsync(number):
        if threading.current_thread() is second:
            os.truncate(number, 20)
            half_way.set()
            first_is_done.wait(10)
            raise OSError("the second writer fails")
        if not half_way.is_set():
            second.start()
            half_way.wait(10)

    monkeypatch.setattr(os, "fsync", fsync)
    save(path, NEW)
    np.testing.assert_array_equal(load(path)[0]["a"], NEW["a"])
    first_is_done.set()
    second.join()
    assert os.listdir(tmp_path) == [path.name]


def test_write_file_takes_any_bytes(tmp_path):
    write_file(tmp_path / "a", b"1")
    write_file(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b""


def test_a_path_with_a_null_character_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written: embedded null byte"):
        checkpoint.save(f"{tmp_path}/a\0.safetensors", {"a": np.zeros(1)})


def test_write_file_leaves_to_a_file_who_may_read_it(tmp_path):
    path = tmp_path / "a"
    write_file(path, b"1")
    path.chmod(0o600)
    write_file(path, b"2")
    assert path.stat().st_mode & 0o777 == 0o600


def test_write_file_follows_a_symbolic_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for content in (b"1", b"2"):
        write_file(tmp_path / "link", content)
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


# -- weights ---------------------------------------------------------------------------------------


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LeakyReLU()
    )


MODEL = {"format": checkpoint.MODEL_FORMAT}


@pytest.mark.parametrize("metadata", [{**MODEL, "data": "mnist"}, {}, {"format": "pt"}])
def test_load_weights(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    one, other = network(), network()
    one[1].running_mean.data[...] = 3
    save(path, one.state_dict(), metadata)
    assert load_weights(other, path) == metadata
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name])
    weight = other[3].weight.data
    assert weight.flags.f_contiguous  # BLAS needs it in that order
    assert not weight.flags.c_contiguous


def without(name):
    return lambda state: state.pop(name)


def with_changed(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("3.bias"), "does not fit this Sequential: missing: '3.bias'"),
        (lambda state: state.update(x=np.zeros(3)), "Sequential: unknown: 'x'"),
        (lambda state: state.update({"\n": np.zeros(3)}), r"unknown: '\\n'"),
        (lambda state: state.clear(), "missing: '0.weight', '0.bias', '1.weight' and 5 more"),
        (
            with_changed("3.weight", np.transpose),
            r"'3.weight' is float32 \(8, 3\), expected float32 \(3, 8\)",
        ),
        (with_changed("3.bias", np.float64), r"'3.bias' is float64 \(3,\), expected float32"),
        (with_changed("3.bias", lambda a: a[None]), r"'3.bias' is float32 \(1, 3\), expected"),
        (with_changed("3.weight", lambda a: a * np.nan), "NaN or infinite numbers in '3.weight'"),
        (with_changed("1.running_var", lambda a: a / 0), "infinite numbers in '1.running_var'"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    given, mine = network(), network()
    state, before = given.state_dict(), mine.state_dict()
    with np.errstate(all="ignore"):
        change(state)
    save(path, state, MODEL)
    with pytest.raises(CheckpointError, match=message):
        load_weights(mine, path)
    refused(path, mine)
    for name, array in mine.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_weights_of_nan_if_asked_for(tmp_path):
    path = tmp_path / "model.safetensors"
    one = network()
    one[3].bias.data[...] = [np.nan, np.inf, -np.inf]
    save(path, one.state_dict(), MODEL)
    other = network()
    load_weights(other, path, allow_nan=True)
    np.testing.assert_array_equal(other[3].bias.numpy(), one[3].bias.numpy())


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("tinygrad_nnfs checkpoint 1", "give the run's folder or its model.safetensors"),
        ("tinygrad_nnfs model 2", "is of format 'tinygrad_nnfs model 2', expected 'tinygrad_nnfs "),
        ("\x1b[31m" + "x" * 1000, "is of format '.x1b"),
    ],
)
@pytest.mark.parametrize("read", [lambda path: load_weights(MLP(), path), load_model])
def test_files_of_another_format(tmp_path, form, message, read):
    path = tmp_path / "latest.safetensors"
    save(path, {"network." + name: a for name, a in MLP().state_dict().items()}, {"format": form})
    with pytest.raises(CheckpointError, match=message) as error:
        read(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 200


# -- which network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_load_model_finds_the_network(tmp_path, name):
    saved = NETWORKS[name]()
    save(tmp_path / "model.safetensors", saved.state_dict(), {**MODEL, "data": "digits"})
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found, metadata = load_model(path)
        assert type(found) is NETWORKS[name]
        assert metadata["data"] == "digits"
        assert not any(module.training for module in found.modules())
        for key, array in saved.state_dict().items():
            np.testing.assert_array_equal(found.state_dict()[key], array)


def test_load_model_of_an_unknown_network(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, network().state_dict(), MODEL)
    with pytest.raises(CheckpointError, match=r"none of .* mlp and cnn: .*\(2, 1, 3, 3\).* 5 more"):
        load_model(path)
    save(path, {}, MODEL)
    with pytest.raises(CheckpointError, match="it holds nothing"):
        load_model(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(tmp_path / "none")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors: expected a run's folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match="has not ended: go on with nnfs train --resume"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"such as network.state_dict\(\), found Sequential"):
        save(path, network())
    with pytest.raises(CheckpointError, match="is a Parameter, expected a numpy array"):
        save(path, dict(network().named_parameters()))


def test_load_model_of_doubles_says_so(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, MLP().astype("float64").state_dict(), MODEL)
    with pytest.raises(CheckpointError, match=r"this MLP: '1.weight' is float64"):
        load_model(path)
