"""The inner loops of elementwise kernels, over flat arrays that fit a cache, by numpy.

`compiled_loops` has the same functions for numba; `best()` is that module where numba is installed.
"""

import functools
import importlib
import importlib.util
import warnings

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import blas, helpers, threads

LANES = 16  # float32 numbers that compiled kernels take at a time: see compiled_lanes
SIZE = 2**18  # elements of a piece: 1 MiB in float32
BITS = 2**15  # random integers drawn at a time: memory that the allocator keeps


COMPILED = np.dtype(np.float32), np.dtype(np.float64)  # dtypes, of this machine's byte order


def filled_up(matrix):
    """A float32 copy of a matrix, with columns of zeros up to a multiple of LANES."""
    rows, columns = matrix.shape
    filled = np.zeros((rows, -(-columns // LANES) * LANES), np.float32)
    filled[:, :columns] = matrix
    return filled


@functools.cache
def numba_is_installed():
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError as error:  # it is too old or too new for this numpy, say
        reason = " ".join(str(error).split())
        warnings.warn(f"numba is installed but not used: {reason}", stacklevel=2)
        return False
    return True


@functools.cache
def best():
    name = "compiled_loops" if numba_is_installed() else "loops"
    return importlib.import_module(f"tinygrad_nnfs.kernels.{name}")


def run(name, size, *arguments):
    """Call a loop, on several threads if it goes over many elements and numba is installed."""
    if size < helpers.LARGE >> threads.shift or not numba_is_installed():
        getattr(best(), name)(*arguments)
    else:
        getattr(_parallel(), name)(helpers.team(size), *arguments)


@functools.cache
def _parallel():
    return importlib.import_module("tinygrad_nnfs.kernels.parallel_loops")


def run_in_pieces(name, size, arrays, *settings):
    """A loop along the first axis of arrays, the largest of `size` elements.

    On several threads if there are many, without numba too: for loops that take long enough.
    """
    if not numba_is_installed() and threads.is_large(size):
        loop, length = globals()[name], len(arrays[0])
        pieces = threads.pieces(length, max(1, length * SIZE // size))
        threads.run(lambda piece: loop(*[a[piece] for a in arrays], *settings), pieces)
    else:
        run(name, size, *arrays, *settings)


def leaky_relu(x, y, positive, slope):
    """y = x where x > 0, else slope x; positive says where."""
    np.greater(x, 0, out=positive)
    np.multiply(x, slope, out=y)
    if slope == 0:
        np.copyto(y, x, where=positive)  # 0 times infinity is no number to compare with
    else:
        (np.maximum if slope <= 1 else np.minimum)(x, y, out=y)


def leaky_relu_gradient(positive, dy, dx, slope):
    """dx = dy where positive, else slope dy."""
    np.multiply(positive, dy.dtype.type(1 - slope), out=dx)
    dx += dy.dtype.type(slope)
    dx *= dy


def keep_scaled(x, keep, y, scale):
    """y = scale x where keep is True, else 0."""
    np.multiply(x, keep, out=y)
    y *= scale


def dropout(x, keep, y, key0, key1, least, scale, first, last):
    """From `first` to `last`: keep where an element's random bits are at least `least`, and y.

    The two words of the key are signed.
    """
    key = key0 % 2**64, key1 % 2**64
    for i in range(first, last, BITS):
        part = keep[i : min(i + BITS, last)]
        np.greater_equal(backend.random_bits(np, key, part.shape, skip=i), least, out=part)
    keep_scaled(x[first:last], keep[first:last], y[first:last], scale)


def add_row_product(row, matrix, total):
    """total += row matrix: (i), (i, o), (o)."""
    total += blas.row_product(row, matrix)


def add_column_product(column, matrix, total):
    """total += matrix column: (o), (i, o), (i)."""
    total += blas.row_product(column, matrix.T)


def outer(column, product, row):
    """product[i, j] = column[i] row[j]."""
    np.einsum("i,j->ij", column, row, out=product)  # half the time of a broadcast product


def gradient_step(theta, gradient, lr, weight_decay):
    """theta = theta - lr (g + weight_decay theta), in place."""
    step = gradient * lr
    if weight_decay:
        step += theta * (lr * weight_decay)
    theta -= step


def momentum_step(theta, gradient, velocity, lr, weight_decay, momentum):
    """v = momentum v + lr (g + weight_decay theta), then theta = theta - v: both in place."""
    step = gradient * lr
    if weight_decay:
        step += theta * (lr * weight_decay)
    velocity *= momentum
    velocity += step
    theta -= velocity


def _quarters(x):
    """The four elements of all 2x2 windows of (n, h, w, c), in row order."""
    return x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]


def max_pool(x, y, winner):
    """The largest of each 2x2 window of (n, h, w, c), and which it is: 0 to 3, the first of equals.

    y and winner are (n, h/2, w/2, c), winner in int8.
    """
    a, b, c, d = _quarters(x)
    upper, lower = np.maximum(a, b), np.maximum(c, d)
    np.maximum(upper, lower, out=y)
    beats = _beats if np.isnan(y.max()) else np.greater  # max hands a NaN on
    # arithmetic, for a choice by a mask takes ten times as long
    right_above, right_below = beats(b, a).view(np.int8), beats(d, c).view(np.int8)
    np.subtract(right_below, right_above, out=winner)
    winner += 2
    winner *= beats(lower, upper)
    winner += right_above


def _beats(b, a):
    return (b > a) | (b != b)  # a NaN is the largest of all


def max_pool_gradient(dy, winner, dx):
    """dy goes to the winner of each window, 0 to the others."""
    for k, quarter in enumerate(_quarters(dx)):
        np.multiply(dy, winner == k, out=quarter)
