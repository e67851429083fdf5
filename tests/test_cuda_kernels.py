"""The CUDA kernels against numpy and the ops themselves: on the CPU, and what NVRTC makes of them.

No test here needs a GPU.
"""

import functools
import math
import re

import cuda_on_cpu
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tinygrad_nnfs.models import augmentation

from tinygrad_nnfs import Parameter, Tensor, backend, ops, optim, reference_kernels
from tinygrad_nnfs.ops import convolution

needs_compiler = pytest.mark.skipif(
    not cuda_on_cpu.compiler_is_installed(), reason=f"{cuda_on_cpu.COMPILER} is not installed"
)
for_both = pytest.mark.parametrize("real", ["float", "double"])
# one channel, part of a pack (of four, or of two in double), and packs
for_channels = pytest.mark.parametrize("channels", [1, 2, 3, 8])
often = settings(max_examples=4 * settings().max_examples)  # where many things vary at a time
DTYPES = {"float": np.dtype(np.float32), "double": np.dtype(np.float64)}
NAN, INF = np.nan, np.inf


@pytest.fixture(scope="session")
def kernels():
    """The compiled kernels by dtype; those of double with the indices that large arrays need."""
    index = {"float": "unsigned", "double": "size_t"}
    return functools.cache(lambda real: cuda_on_cpu.load(real, index[real]))


# -- structures, as the kernels declare them -------------------------------------------------------

TENSORS = 32


def structure(*fields):
    return np.dtype(list(fields), align=True)


def columns(names, dtype):
    return [(name, dtype, TENSORS) for name in names.split()]


WINDOW = structure(
    *[(name, np.int32) for name in ("channels", "height", "width", "out_height", "out_width")],
    *[(name, np.int32, 2) for name in ("kernel", "stride", "padding", "dilation")],
)
SGD_TENSORS = structure(
    *columns("theta gradient velocity", np.uint64),
    *columns("size", np.int64),
    *columns("lr weight_decay momentum", np.float64),
    *columns("nesterov", np.int32),
    ("count", np.int32),
)
ADAM_TENSORS = structure(
    *columns("theta gradient mean square", np.uint64),
    *columns("size", np.int64),
    *columns("lr beta1 beta2 eps weight_decay correction1 correction2", np.float64),
    *columns("decoupled", np.int32),
    ("count", np.int32),
)
VALUES = structure(("word", np.uint64, 64))


def window(shape, out, kernel, stride, padding, dilation=(1, 1)):
    """A Window over images of `shape`, channels last."""
    _, h, w, c = shape
    return np.array([(c, h, w, *out, kernel, stride, padding, dilation)], WINDOW)


# -- memory and launches ---------------------------------------------------------------------------

ZONE = 64  # bytes before and after each array, and a multiple of every alignment
NANS, WRITTEN = 0xFF, 0xA5  # what zones are full of


class Memory:
    """Arrays between zones of bytes, where `check` finds what a kernel has written outside of them.

    The i-th array lies an element off alignment if bit i of `shifts` is 1. What is to be written is
    full of NaNs at first, and so are the zones around what is only read, so that a kernel that
    reads them computes a NaN.
    """

    def __init__(self, shifts=0):
        self.shifts, self.zones = shifts, []

    def _array(self, shape, dtype, zone):
        dtype = np.dtype(dtype)
        size = math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize
        shift = dtype.itemsize * (self.shifts & 1)
        self.shifts >>= 1
        memory = np.full(size + 3 * ZONE + shift, zone, np.uint8)
        start = ZONE + -memory.ctypes.data % ZONE + shift
        self.zones += [(memory[:start], zone), (memory[start + size :], zone)]
        return memory[start : start + size].view(dtype).reshape(shape)

    def empty(self, shape, dtype):
        """An array to be written."""
        array = self._array(shape, dtype, WRITTEN)  # no NaN: one that is copied would not show
        array.view(np.uint8)[...] = NANS
        return array

    def copy(self, array):
        """A copy of the array, to be changed in place."""
        copy = self._array(array.shape, array.dtype, WRITTEN)
        copy[...] = array
        return copy

    def constant(self, array):
        """A copy of the array, to be read."""
        copy = self._array(array.shape, array.dtype, NANS)
        copy[...] = array
        copy.flags.writeable = False
        return copy

    def check(self):
        for memory, zone in self.zones:
            assert (memory == zone).all(), "the kernel has written outside of its arrays"


memories = st.integers(0, 7).map(Memory)
# far fewer threads than elements, and far more
launches = st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 32, 96]), st.integers(0, 2**16))


def run(kernels, name, launch, *args):
    grid, block, seed = launch
    kernels.launch(name, grid, block, list(args), seed)


def values(random, shape, dtype):
    """Integers, so that sums are exact in every order and there are ties."""
    return random.integers(-4, 5, shape).astype(dtype)


def with_extremes(random, shape, dtype, share=0.1):
    x = random.normal(size=shape).astype(dtype)
    places = random.random(shape) < share
    x[places] = random.choice(np.array([NAN, INF, -INF, 0.0, -0.0], dtype), places.sum())
    return x


def first(x):
    """Channels first, for the ops."""
    return x.transpose(0, 3, 1, 2)


def last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def by_reference(function, x, dy=None):
    """function(x) and, for a dy, the gradient, by the ops themselves."""
    leaf = Tensor(x, requires_grad=dy is not None)
    with reference_kernels(), np.errstate(all="ignore"):
        y = function(leaf)
        if dy is None:
            return y.numpy()
        y.backward(dy)
    return y.numpy(), leaf.grad.numpy()


# -- images and windows ----------------------------------------------------------------------------


@needs_compiler
@for_both
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@given(st.integers(0, 2**16), launches, st.integers(0, 5))
def test_gather_batch(kernels, real, shifted, mirrored, seed, launch, n):
    random, memory = np.random.default_rng(seed), Memory()
    h, w = (int(size) for size in random.integers(1, 9, 2))
    images = random.integers(0, 256, (7, h, w), np.uint8)
    labels, order, first = random.integers(0, 10, 7), random.permutation(7), 7 - n
    batch = order[first:]
    expected, places, flags = images[batch], (None, None), None
    if shifted:
        pixels = int(random.integers(0, 12))  # further than the images are large, too
        expected = augmentation.shift(expected, pixels, np.random.default_rng(seed))
        drawn = augmentation.draw_shift(n, pixels, np.random.default_rng(seed))
        places = [memory.constant(np.r_[np.full(first, 99), place]) for place in drawn]
    if mirrored:
        expected = augmentation.mirror(expected, np.random.default_rng(seed))
        drawn = augmentation.draw_mirror(n, np.random.default_rng(seed))
        flags = memory.constant(np.r_[np.zeros(first, bool), drawn])
    x, taken, chosen = (
        memory.empty((n, h, w), np.float32),
        memory.empty(n, np.int64),
        memory.empty(n, np.int64),
    )
    live = memory.constant(np.array([first], np.uint64)) if seed % 2 else None
    arrays = [memory.constant(array) for array in (images, labels, order)]
    begin = [99 if live is not None else first, live]
    sizes = n, np.int32(h), np.int32(w)
    settings = *arrays, *places, flags, *begin, x, taken, chosen, *sizes
    run(kernels(real), "gather_batch", launch, *settings)
    np.testing.assert_array_equal(x, expected.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(taken, labels[batch])
    np.testing.assert_array_equal(chosen, batch)
    memory.check()


@needs_compiler
@for_both
def test_every_pixel_is_divided_as_numpy_divides(kernels, real):
    images, zero = np.arange(256, dtype=np.uint8).reshape(1, 16, 16), np.zeros(1, np.int64)
    x, taken, chosen = np.empty((1, 16, 16), np.float32), zero.copy(), zero.copy()
    arrays = [images, zero, zero, None, None, None, 0, None, x, taken, chosen]
    kernels(real).launch("gather_batch", 1, 256, [*arrays, 1, np.int32(16), np.int32(16)])
    np.testing.assert_array_equal(x, images.astype(np.float32) / np.float32(255))


@st.composite
def convolutions(draw):
    """A shape (n, h, w) and conv2d's kernel, stride, padding and dilation."""
    pairs = {
        name: (draw(st.integers(smallest, largest)), draw(st.integers(smallest, largest)))
        for name, smallest, largest in
        (("kernel", 1, 3), ("stride", 1, 3), ("padding", 0, 3), ("dilation", 1, 2))
    }  # fmt: skip
    reach = [d * (k - 1) + 1 for d, k in zip(pairs["dilation"], pairs["kernel"], strict=True)]
    smallest = [max(1, r - 2 * p) for r, p in zip(reach, pairs["padding"], strict=True)]
    h, w = (draw(st.integers(size, size + 4)) for size in smallest)
    return (draw(st.integers(0, 3)), h, w), pairs


def geometry_of(shape, pairs):
    n, h, w, c = shape
    images, weight = np.empty((n, c, h, w)), np.empty((1, c, *pairs["kernel"]))
    settings = pairs["stride"], pairs["padding"], pairs["dilation"]
    return convolution.Geometry(images, weight, None, *settings, 1)


def columns_shape(shape, geometry):
    n, *_, c = shape
    return n, *geometry.output_size, *geometry.kernel, c


@needs_compiler
@for_both
@for_channels
@often
@given(convolutions(), st.integers(0, 2**16), launches, memories)
def test_im2col(kernels, real, channels, case, seed, launch, memory):
    shape, pairs = (*case[0], channels), case[1]
    geometry = geometry_of(shape, pairs)
    x = np.random.default_rng(seed).normal(size=shape).astype(DTYPES[real])
    n, oh, ow, kh, kw, c = columns_shape(shape, geometry)
    expected = convolution.im2col(np, first(x), geometry).reshape(c, kh, kw, n, oh, ow)
    found = memory.empty((n, oh, ow, kh, kw, c), x.dtype)
    over = window(shape, geometry.output_size, **pairs)
    run(kernels(real), "im2col", launch, memory.constant(x), found, over, n)
    np.testing.assert_array_equal(found, expected.transpose(3, 4, 5, 1, 2, 0))
    memory.check()


@needs_compiler
@for_both
@for_channels
@often
@given(convolutions(), st.integers(0, 2**16), launches, memories)
def test_col2im(kernels, real, channels, case, seed, launch, memory):
    shape, pairs = (*case[0], channels), case[1]
    geometry = geometry_of(shape, pairs)
    random = np.random.default_rng(seed)
    given_ = random.normal(size=columns_shape(shape, geometry)).astype(DTYPES[real])
    ordered = given_.transpose(5, 3, 4, 0, 1, 2)
    expected = convolution.col2im(np, ordered, first(np.empty(shape)).shape, geometry)
    x = memory.empty(shape, given_.dtype)
    over = window(shape, geometry.output_size, **pairs)
    run(kernels(real), "col2im", launch, memory.constant(given_), x, over, shape[0])
    np.testing.assert_array_equal(x, last(expected))
    memory.check()


@st.composite
def poolings(draw):
    """A shape (n, h, w) and max_pool2d's kernel, stride and padding."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    h, w = (draw(st.integers(k, k + 5)) for k in kernel)
    return (draw(st.integers(0, 3)), h, w), kernel, stride, padding


def winners(x, kernel, stride, padding):
    """The place in its window that the op's rule gives each window's gradient to."""
    padded = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)), constant_values=-INF)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))
    windows = windows[:, :: stride[0], :: stride[1]]
    windows = windows.reshape(*windows.shape[:4], math.prod(kernel))
    return windows.argmax(axis=-1)  # numpy, too, takes the first NaN for the largest


@needs_compiler
@for_both
@for_channels
@pytest.mark.parametrize("kind", ["ties", "extremes"])
@given(poolings(), st.integers(0, 2**16), launches, memories)
def test_max_pool_and_its_gradient(kernels, real, channels, kind, case, seed, launch, memory):
    (images, kernel, stride, padding), dtype = case, DTYPES[real]
    shape = (*images, channels)
    random = np.random.default_rng(seed)
    x = values(random, shape, dtype) if kind == "ties" else with_extremes(random, shape, dtype, 0.3)
    function = functools.partial(ops.max_pool2d, kernel_size=kernel, stride=stride, padding=padding)
    out = convolution.output_size(first(x).shape, kernel, stride, padding, (1, 1))
    dy = random.normal(size=(shape[0], *out, shape[3])).astype(dtype)
    expected_y, expected_dx = by_reference(function, first(x), first(dy))

    over = window(shape, out, kernel, stride, padding)
    y, winner = memory.empty(dy.shape, dtype), memory.empty(dy.shape, np.uint8)
    run(kernels(real), "max_pool", launch, memory.constant(x), y, winner, over, shape[0])
    np.testing.assert_array_equal(first(y), expected_y)
    np.testing.assert_array_equal(winner, winners(x, kernel, stride, padding))

    dx = memory.empty(shape, dtype)
    arrays = memory.constant(dy), memory.constant(winner), dx
    run(kernels(real), "max_pool_gradient", launch, *arrays, over, shape[0])
    np.testing.assert_array_equal(first(dx), expected_dx)
    memory.check()


# -- dense layers ----------------------------------------------------------------------------------


@needs_compiler
@for_both
@given(st.integers(0, 9), st.integers(1, 9), launches, memories)
def test_add_bias(kernels, real, rows, outputs, launch, memory):
    random = np.random.default_rng(rows)
    y = memory.copy(random.normal(size=(rows, outputs)).astype(DTYPES[real]))
    bias = memory.constant(random.normal(size=outputs).astype(DTYPES[real]))
    expected = y + bias
    run(kernels(real), "add_bias", launch, y, bias, rows, np.int32(outputs))
    np.testing.assert_array_equal(y, expected)
    memory.check()


@needs_compiler
@for_both
@given(
    st.integers(0, 70), st.integers(1, 70), st.integers(1, 40),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 2**16), memories,
)  # fmt: skip
def test_sum_rows(kernels, real, rows, outputs, chunk, grid, seed, memory):
    random, dtype = np.random.default_rng(seed), DTYPES[real]
    launch = grid, (32, 8), seed
    x = memory.constant(values(random, (rows, outputs), dtype))
    chunks = max(1, -(-rows // chunk))
    partial, total = memory.empty((chunks, outputs), dtype), memory.empty(outputs, dtype)
    run(kernels(real), "sum_rows", launch, x, partial, rows, np.int32(outputs), chunk)
    for b in range(chunks):
        np.testing.assert_array_equal(partial[b], x[b * chunk : (b + 1) * chunk].sum(axis=0))
    run(kernels(real), "sum_rows", launch, partial, total, chunks, np.int32(outputs), chunks)
    np.testing.assert_array_equal(total, x.sum(axis=0))
    memory.check()


@needs_compiler
@for_both
def test_sums_are_the_same_for_every_grid(kernels, real):
    x = np.random.default_rng(0).normal(size=(100, 40)).astype(DTYPES[real])
    sums = np.empty((5, 3, 40), x.dtype)
    for seed, grid in enumerate([(1, 1), (2, 3), (1, 2), (5, 1), (3, 4)]):
        kernels(real).launch(
            "sum_rows", grid, (32, 8), [x, sums[seed], 100, np.int32(40), 40], seed
        )
    assert (sums == sums[0]).all()
    np.testing.assert_allclose(sums[0, 0], x[:40].sum(axis=0), rtol=1e-4)


# -- activation and dropout ------------------------------------------------------------------------

slopes = st.sampled_from([0.01, 0.0, 0.5, 1.0, 2.0, 1e20, -0.5, -3.0])


@needs_compiler
@for_both
@given(slopes, st.integers(0, 50), st.integers(0, 2**16), launches, memories)
def test_leaky_relu_and_its_gradient(kernels, real, slope, size, seed, launch, memory):
    random, dtype = np.random.default_rng(seed), DTYPES[real]
    x = with_extremes(random, size, dtype)
    if slope == 0:
        x[x == INF] = 7  # the op's 0 * inf is NaN there, by the way it finds the larger
    dy = with_extremes(random, size, dtype)
    y, dx = memory.empty(size, dtype), memory.empty(size, dtype)
    signed = memory.constant(x)
    run(kernels(real), "leaky_relu", launch, signed, y, size, slope)
    expected_y = by_reference(functools.partial(ops.leaky_relu, slope=slope), x)
    np.testing.assert_array_equal(y, expected_y)
    run(kernels(real), "leaky_relu_gradient", launch, signed, memory.constant(dy), dx, size, slope)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(dx, dy * np.where(x > 0, 1, dtype.type(slope)))
    if slope != 1e20:  # for which the op's (1 - slope) + slope is 0
        _, expected = by_reference(functools.partial(ops.leaky_relu, slope=slope), x, dy)
        np.testing.assert_allclose(dx, expected, rtol=4 * np.finfo(dtype).eps, atol=1e-30)
    memory.check()


@needs_compiler
@for_both
def test_leaky_relu_of_infinity(kernels, real):
    """The definition's, also for slope 0, where 0 * inf must not be computed for x > 0."""
    x = np.array([INF, -INF, NAN], DTYPES[real])
    for slope, expected in (
        (0.0, [INF, NAN, NAN]),
        (0.5, [INF, -INF, NAN]),
        (-2.0, [INF, INF, NAN]),
    ):
        y = np.empty_like(x)
        kernels(real).launch("leaky_relu", 1, 32, [x, y, 3, slope])
        np.testing.assert_array_equal(y, expected)


keys = st.tuples(*[st.one_of(st.integers(0, 3), st.integers(2**63, 2**64 - 1))] * 2)


@needs_compiler
@for_both
@often
@given(
    st.sampled_from([0.0, 1e-6, 0.25, 0.5, 0.9, 1 - 1e-6, 1.0]), keys, st.integers(0, 200),
    launches, memories, st.booleans(), st.booleans(),
)  # fmt: skip
def test_dropout(kernels, real, p, key, size, launch, memory, in_place, live):
    x = with_extremes(np.random.default_rng(size), size, DTYPES[real])
    expected = by_reference(functools.partial(ops.dropout, p=p, key=key), x)
    y = memory.copy(x) if in_place else memory.empty(size, x.dtype)
    words = [np.uint64(word) for word in ((1, 2) if live else key)]
    live_key = memory.constant(np.array(key, np.uint64)) if live else None
    least, scale = np.uint32(round(p * 2**16)), 1 / (1 - p) if p < 1 else 0.0
    source = y if in_place else memory.constant(x)
    run(kernels(real), "dropout", launch, source, y, size, least, scale, *words, live_key)
    np.testing.assert_array_equal(y, expected)
    memory.check()


@needs_compiler
@for_both
@given(keys)
def test_dropout_draws_the_bits_of_the_stream(kernels, real, key):
    """Each bit of the 16: an element's integer is the number of thresholds that it reaches."""
    memory = Memory()
    ones, y = memory.constant(np.ones(37, DTYPES[real])), memory.empty(37, DTYPES[real])
    bits = backend.random_bits(np, key, ones.shape)
    for least in {int(bit) + more for bit in bits[[0, 1, 2, 3, 4, 15, 16, 36]] for more in (0, 1)}:
        words = [np.uint64(word) for word in key]
        arguments = [ones, y, 37, np.uint32(least), 1.0, *words, None]
        kernels(real).launch("dropout", 2, 2, arguments)
        np.testing.assert_array_equal(y, bits >= least)
    memory.check()


# -- loss and metrics ------------------------------------------------------------------------------

batches = st.tuples(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**16))
smoothings = st.sampled_from([0.0, 0.1, 0.5])


@needs_compiler
@for_both
@given(batches, smoothings, st.booleans(), st.sampled_from([1, 30, 1e4]), memories)
def test_softmax_cross_entropy(kernels, real, batch, smoothing, mean, scale, memory):
    (n, k, seed), dtype = batch, DTYPES[real]
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(n, k))).astype(dtype)
    labels = random.integers(0, k, n)
    dy = np.array(random.normal(), dtype)
    expected_loss, expected = by_reference(
        lambda x: ops.softmax_cross_entropy(
            x, labels, label_smoothing=smoothing, reduction="mean" if mean else "sum"
        ),
        logits,
        dy,
    )
    softmax, loss = memory.empty((n, k), dtype), memory.empty(1, dtype)
    dlogits, fault = memory.empty((n, k), dtype), memory.copy(np.zeros(1, np.int32))
    classes = memory.constant(labels)
    shape = n, np.int32(k), smoothing
    arrays = memory.constant(logits), classes, softmax, loss
    launch = 1 + seed % 2, 256, seed
    run(kernels(real), "softmax_cross_entropy", launch, *arrays, *shape, np.int32(mean), fault)
    # exp and log may differ from numpy's by a few units in the last place
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(loss[0], expected_loss, rtol=50 * eps, atol=50 * eps * n)
    np.testing.assert_allclose(softmax, ops.softmax(logits).numpy(), rtol=50 * eps, atol=eps)
    assert fault[0] == 0

    launch, divisor = (1 + seed % 3, 64, seed), float(n) if mean else 1.0
    arrays = memory.constant(softmax), classes, memory.constant(dy.reshape(1)), dlogits
    run(kernels(real), "softmax_cross_entropy_gradient", launch, *arrays, *shape, divisor)
    np.testing.assert_allclose(dlogits, expected, rtol=50 * eps, atol=50 * eps * abs(dy))
    memory.check()


@needs_compiler
@for_both
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_softmax_cross_entropy_of_extremes(kernels, real, smoothing, bad):
    dtype = DTYPES[real]
    for row in ([bad, 1, 2], [1, bad, 2], [bad, bad, bad]):
        logits, labels = np.array([row], dtype), np.zeros(1, np.int64)
        softmax, loss, fault = np.empty_like(logits), np.empty(1, dtype), np.zeros(1, np.int32)
        arguments = [logits, labels, softmax, loss, 1, np.int32(3), smoothing, np.int32(1), fault]
        kernels(real).launch("softmax_cross_entropy", 1, 256, arguments)
        expected = by_reference(
            lambda x, labels=labels: ops.softmax_cross_entropy(
                x, labels, label_smoothing=smoothing
            ),
            logits,
        )
        np.testing.assert_allclose(loss[0], expected, rtol=1e-6)
        np.testing.assert_allclose(softmax, by_reference(ops.softmax, logits), rtol=1e-6)


@needs_compiler
@for_both
@given(batches)
def test_labels_out_of_range_are_reported_and_never_read(kernels, real, batch):
    (n, k, seed), dtype = batch, DTYPES[real]
    random, memory = np.random.default_rng(seed), Memory()
    logits = memory.constant(values(random, (n, k), dtype))
    labels = random.integers(0, k, n)
    labels[random.integers(n)] = random.choice([-1, k, -(2**40), 2**40, 2**32])
    inside = np.where((labels >= 0) & (labels < k), labels, 0)
    losses, gradients = [], []
    for given_, fault in ((labels, 1), (inside, 0)):
        softmax, loss = memory.empty((n, k), dtype), memory.empty(1, dtype)
        flag, classes = memory.copy(np.zeros(1, np.int32)), memory.constant(given_)
        shape, one = (n, np.int32(k), 0.1), memory.constant(np.ones(1, dtype))
        arguments = [logits, classes, softmax, loss, *shape, np.int32(1), flag]
        kernels(real).launch("softmax_cross_entropy", 1, 256, arguments, seed)
        assert flag[0] == fault
        dlogits = memory.empty((n, k), dtype)
        arguments = [softmax, classes, one, dlogits, *shape, 1.0]
        kernels(real).launch("softmax_cross_entropy_gradient", 1, 32, arguments)
        losses.append(loss[0])
        gradients.append(dlogits)
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(*gradients)
    memory.check()


@needs_compiler
@for_both
@given(batches, st.lists(st.sampled_from([0.5, 2.0, 1e30, NAN, INF, -INF]), max_size=5), memories)
def test_metrics(kernels, real, batch, losses, memory):
    (n, k, seed), dtype = batch, DTYPES[real]
    random = np.random.default_rng(seed)
    totals = memory.copy(np.zeros(4))
    right = 0
    for i, loss in enumerate(losses):
        logits = values(random, (n, k), dtype)
        logits[random.random((n, k)) < 0.1] = random.choice([NAN, INF, -INF])
        labels = random.integers(-1, k + 1, n)
        right += (logits.argmax(axis=1) == labels).sum()
        arrays = memory.constant(logits), memory.constant(labels)
        value = memory.constant(np.array([loss], dtype))
        launch = 1 + i % 2, 256, seed
        run(kernels(real), "metrics", launch, *arrays, value, totals, n, np.int32(k))
    finite = np.isfinite(losses)
    steps = len(losses) if finite.all() else finite.argmin()
    with np.errstate(invalid="ignore"):
        total = sum((float(dtype.type(loss)) * n for loss in losses), 0.0)
    np.testing.assert_array_equal(totals, [total, right, steps, not finite.all()])
    memory.check()


# -- optimisers ------------------------------------------------------------------------------------


def addresses(struct, name, arrays):
    struct[name][0, : len(arrays)] = [0 if a is None else a.ctypes.data for a in arrays]


def column(struct, name, values):
    struct[name][0, : len(values)] = values


@st.composite
def optimisations(draw):
    """Sizes, a learning rate and weight decay for each tensor, a grid that fits them or does not"""
    count = draw(st.integers(0, 5) | st.just(TENSORS))
    sizes = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    decay = st.sampled_from([0.0, 0.01, 0.5])
    settings = [
        {"lr": draw(st.sampled_from([0.1, 1e-3])), "weight_decay": draw(decay)} for _ in sizes
    ]
    grid = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    return sizes, settings, (grid, draw(st.sampled_from([1, 32])), draw(st.integers(0, 2**16)))


STEPS = 3


def start_of_training(kind, sizes, settings, random, dtype):
    """The parameters' values, the optimizer's own copies of them, and gradients of each step."""
    thetas = [random.normal(size=size).astype(dtype) for size in sizes]
    parameters = [Parameter(theta.copy()) for theta in thetas]
    groups = [
        {"params": [parameter], **group}
        for parameter, group in zip(parameters, settings, strict=True)
    ]
    gradients = [[random.normal(size=size).astype(dtype) for size in sizes] for _ in range(STEPS)]
    return thetas, parameters, kind(groups, lr=0.1) if groups else None, gradients


def reference_step(optimizer, parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = Tensor(gradient)
    if optimizer is not None:
        with reference_kernels():
            optimizer.step()


@needs_compiler
@for_both
@given(optimisations(), st.sampled_from([0.0, 0.9]), st.booleans(), st.booleans())
def test_momentum_step(kernels, real, case, momentum, nesterov, live):
    (sizes, settings, launch), dtype = case, DTYPES[real]
    random, memory = np.random.default_rng(launch[-1]), Memory()
    for i, group in enumerate(settings):  # some tensors with momentum, some without
        group["momentum"] = momentum if i % 2 == 0 else 0.0
        group["nesterov"] = bool(nesterov and group["momentum"])
    thetas, parameters, optimizer, gradients = start_of_training(
        optim.SGD, sizes, settings, random, dtype
    )
    found = [memory.copy(theta) for theta in thetas]
    velocities = [
        memory.copy(np.zeros(size, dtype)) if group["momentum"] else None
        for size, group in zip(sizes, settings, strict=True)
    ]
    for gradient in gradients:
        reference_step(optimizer, parameters, gradient)
        tensors = np.zeros(1, SGD_TENSORS)
        given_ = [memory.constant(g) for g in gradient]
        addresses(tensors, "theta", found)
        addresses(tensors, "gradient", given_)
        addresses(tensors, "velocity", velocities)
        column(tensors, "size", sizes)
        for name in ("lr", "weight_decay", "momentum", "nesterov"):
            column(tensors, name, [group[name] for group in settings])
        tensors["count"] = len(sizes)
        live_lr = None
        if live:
            live_lr = memory.constant(tensors["lr"][0])
            tensors["lr"] = NAN
        run(kernels(real), "momentum_step", launch, tensors, live_lr)
    for theta, parameter in zip(found, parameters, strict=True):
        np.testing.assert_array_equal(theta, parameter.numpy())
    for velocity, parameter in zip(velocities, parameters, strict=True):
        if velocity is not None:
            np.testing.assert_array_equal(velocity, optimizer.state[parameter]["velocity"])
    memory.check()


@needs_compiler
@for_both
@given(optimisations(), st.sampled_from([optim.Adam, optim.AdamW]), st.booleans())
def test_adam_step(kernels, real, case, kind, live):
    (sizes, settings, launch), dtype = case, DTYPES[real]
    random, memory = np.random.default_rng(launch[-1]), Memory()
    for i, group in enumerate(settings):
        group["betas"], group["eps"] = ((0.9, 0.999), 1e-8) if i % 2 else ((0.5, 0.0), 1e-3)
    thetas, parameters, optimizer, gradients = start_of_training(
        kind, sizes, settings, random, dtype
    )
    found = [memory.copy(theta) for theta in thetas]
    means, squares = ([memory.copy(np.zeros_like(t)) for t in thetas] for _ in range(2))
    for t, gradient in enumerate(gradients, start=1):
        reference_step(optimizer, parameters, gradient)
        moments = np.zeros(1, ADAM_TENSORS)
        given_ = [memory.constant(g) for g in gradient]
        for name, arrays in (
            ("theta", found), ("gradient", given_), ("mean", means), ("square", squares)
        ):  # fmt: skip
            addresses(moments, name, arrays)
        column(moments, "size", sizes)
        for name in ("lr", "eps", "weight_decay"):
            column(moments, name, [group[name] for group in settings])
        for i in (0, 1):
            betas = np.array([group["betas"][i] for group in settings])
            column(moments, f"beta{i + 1}", betas)
            column(moments, f"correction{i + 1}", [1 - beta**t for beta in betas.tolist()])
        moments["decoupled"], moments["count"] = kind is optim.AdamW, len(sizes)
        values_ = None
        if live:
            names = "lr", "correction1", "correction2"
            values_ = memory.constant(np.stack([moments[name][0] for name in names], axis=1))
            for name in names:
                moments[name] = NAN
        run(kernels(real), "adam_step", launch, moments, values_)
    for i, parameter in enumerate(parameters):
        np.testing.assert_array_equal(found[i], parameter.numpy())
        np.testing.assert_array_equal(means[i], optimizer.state[parameter]["mean"])
        np.testing.assert_array_equal(squares[i], optimizer.state[parameter]["square"])
    memory.check()


@needs_compiler
@for_both
@given(st.integers(0, 64), launches)
@example(64, (1, 32, 0))
def test_write_live(kernels, real, count, launch):
    memory = Memory()
    words = np.random.default_rng(count).integers(0, 2**64, 64, np.uint64)
    slots = memory.empty(count, np.uint64)
    passed = np.zeros(1, VALUES)
    passed["word"] = words
    run(kernels(real), "write_live", launch, slots, passed, np.int32(count))
    np.testing.assert_array_equal(slots, words[:count])
    memory.check()


@needs_compiler
@for_both
def test_parameters_fit(kernels, real):
    """A launch takes 4 KB of them on every GPU and with every version of CUDA."""
    for name, parameters in kernels(real).parameters.items():
        end = 0
        for parameter in parameters:
            end += -end % parameter.alignment + parameter.size
        assert end <= 4096, name


# -- the shim --------------------------------------------------------------------------------------

REVERSE = """
extern "C" __global__ void reverse(const int* x, int* y) {
    __shared__ int shared[64];
    const int i = threadIdx.x;
    shared[i] = x[i];
    BARRIER
    y[i] = shared[63 - i];
}
"""


@needs_compiler
@pytest.mark.parametrize(
    ("barrier", "outcome"),
    [("__syncthreads();", "right"), ("", "wrong"), ("if (i < 32) __syncthreads();", "refused")],
)
def test_the_shim_shows_barriers_that_are_missing(tmp_path, barrier, outcome):
    source = tmp_path / "reverse.cu"
    source.write_text(REVERSE.replace("BARRIER", barrier))
    kernels = cuda_on_cpu.load("float", folder=tmp_path, source=source)
    x, y = np.arange(64, dtype=np.int32), np.empty(64, np.int32)
    if outcome == "refused":
        with pytest.raises(RuntimeError, match="reverse: a barrier was not reached by all threads"):
            kernels.launch("reverse", 1, 64, [x, y])
    else:
        kernels.launch("reverse", 1, 64, [x, y])
        assert (y == x[::-1]).all() == (outcome == "right")


@needs_compiler
@pytest.mark.parametrize(
    ("place", "argument", "message"),
    [
        (3, 2, "argument 3: found 8 bytes of kind i, expected 4 of i"),
        (2, np.int32(3), "argument 2: found 4 bytes of kind i, expected 8 of i"),
        (2, 3.0, "argument 2: found 8 bytes of kind f, expected 8 of i"),
        (0, np.float32(1), "argument 0: found 4 bytes of kind f, expected 8 of p"),
        (0, np.ones((3, 2)), "argument 0: the array is float64"),
        (0, np.ones((3, 2), np.int32), "argument 0: the array is int32"),
        (0, np.zeros(1, WINDOW), "argument 0: found 52 bytes of kind s, expected 8 of p"),
        (2, True, "argument 2: a bool cannot be passed"),
    ],
)
def test_the_shim_refuses_arguments_that_do_not_fit(kernels, place, argument, message):
    arguments = [np.ones((3, 2), np.float32), np.ones(2, np.float32), 3, np.int32(2)]
    arguments[place] = argument
    with pytest.raises(TypeError, match=f"add_bias, {message}"):
        kernels("float").launch("add_bias", 1, 32, arguments)


@needs_compiler
def test_the_shim_refuses_what_cannot_be_launched(kernels):
    y, bias = np.ones((3, 2), np.float32), np.ones(2, np.float32)
    add_bias = functools.partial(kernels("float").launch, "add_bias")
    with pytest.raises(TypeError, match="add_bias takes 4 arguments, found 2"):
        add_bias(1, 32, [y, bias])
    with pytest.raises(ValueError, match="no launch"):
        add_bias(0, 32, [y, bias, 3, np.int32(2)])
    with pytest.raises(ValueError, match="no launch"):
        add_bias(1, (64, 32), [y, bias, 3, np.int32(2)])
    y.flags.writeable = False
    with pytest.raises(TypeError, match="add_bias, argument 0: the array is read-only"):
        add_bias(1, 32, [y, bias, 3, np.int32(2)])


# -- NVRTC -----------------------------------------------------------------------------------------


def nvrtc():
    """cupy's NVRTC, which compiles without a GPU."""
    module = pytest.importorskip("cupy", reason="cupy is not installed").cuda.nvrtc
    try:
        module.getVersion()
    except Exception as error:  # cupy's own, where it finds no library of NVRTC
        pytest.skip(f"NVRTC cannot be used: {error}")
    return module


def resources(compiler, real, index, architecture):
    """What the assembler says of each kernel: its stack, its spills and its registers."""
    program = compiler.createProgram(cuda_on_cpu.SOURCE.read_text(), "cuda.cu", (), ())
    options = (
        f"-arch={architecture}",
        f"-DREAL={real}",
        f"-DINDEX={index}",
        "--ptxas-options=-v",
        "-Werror=all-warnings",
    )
    try:
        compiler.compileProgram(program, options)
        log = compiler.getProgramLog(program)
    finally:
        compiler.destroyProgram(program)
    pattern = (
        r"Function properties for (\w+)\n"
        r"\D+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r"\D+Used (\d+) registers"
    )
    return {name: [int(number) for number in found] for name, *found in re.findall(pattern, log)}


@pytest.mark.parametrize(
    ("real", "index"), [("float", "unsigned"), ("double", "unsigned"), ("double", "size_t")]
)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_keeps_everything_in_registers(real, index, architecture, record_property):
    found = resources(nvrtc(), real, index, architecture)
    names = cuda_on_cpu.kernel_names(cuda_on_cpu.SOURCE.read_text())
    assert sorted(found) == sorted(names)
    for name, (*memory, registers) in found.items():
        record_property(name, registers)
        assert memory == [0, 0, 0], name
        assert registers <= 64, name  # 1,024 threads of a multiprocessor at a time
