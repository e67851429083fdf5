"""linear and matmul on numpy: BLAS at one thread, and large products of linear in pieces."""

import math
from types import SimpleNamespace

import numpy as np
from numpy import ndarray

from tinygrad_nnfs.kernels import blas, helpers, loops, memory, threads
from tinygrad_nnfs.ops.linear import check_linear, linear, matmul, memory_order

SIZE = 128  # rows or columns of a product that a piece computes


# what the ops find as xp: all that these two need of it
_numpy = SimpleNamespace(matmul=blas.matmul, empty=memory.empty)


def _is_array(a, b, bias=None):
    return isinstance(a, ndarray) and isinstance(b, ndarray)


@matmul.on(np, when=_is_array)
def matmul_single_threaded(xp, a, b):
    return matmul.reference(_numpy, a, b)


@linear.on(np, when=_is_array)
def linear_single_threaded(xp, x, weight, bias=None):
    return linear.reference(_numpy, x, weight, bias)


def _is_large(x, weight, bias=None):
    rows = math.prod(x.shape[:-1])
    return x.ndim and weight.ndim == 2 and threads.is_large(rows * weight.size // 64)


@linear.on(np, when=_is_large)
def linear_in_pieces(xp, x, weight, bias=None):
    check_linear(x, weight, bias)
    out, into = weight.shape
    shape = x.shape
    x = x.reshape(-1, into)
    y = memory.empty((len(x), out), x.dtype)
    order, dtype = memory_order(weight), weight.dtype

    def forward(piece):
        np.matmul(x, weight[piece].T, out=y[:, piece])
        if bias is not None:
            y[:, piece] += bias[piece]

    threads.run(forward, threads.pieces(out, SIZE))

    def dx(dy):
        dy = dy.reshape(-1, out)
        gradient = memory.empty(x.shape, dy.dtype)

        def backward(piece):
            np.matmul(dy, weight[:, piece], out=gradient[:, piece])

        threads.run(backward, threads.pieces(into, 2 * SIZE))
        return gradient.reshape(shape)

    def dweight(dy):
        dy = dy.reshape(-1, out)
        gradient = memory.empty((out, into), dtype, order)

        def backward(piece):
            np.matmul(dy[:, piece].T, x, out=gradient[piece])

        threads.run(backward, threads.pieces(out, SIZE))
        return gradient

    def dbias(dy):
        return dy.reshape(-1, out).sum(axis=0)

    return y.reshape(*shape[:-1], out), dx, dweight, None if bias is None else dbias


ROWS = 128  # with more, the time in which BLAS rearranges the weight counts for less
CACHED = 2**18  # elements of a weight that two second-level caches can hold, with its gradient


def _has_few_rows(x, weight, bias=None):
    return (
        isinstance(x, ndarray)
        and isinstance(weight, ndarray)
        and x.dtype == weight.dtype == np.float32
        and x.ndim > 0
        and weight.ndim == 2
        and 0 < x.size <= ROWS * x.shape[-1]
        and len(weight) % loops.LANES == 0
        and weight.flags.f_contiguous
        and weight.size > 0
        and loops.numba_is_installed()
    )


@linear.on(np, when=_has_few_rows)
def linear_of_few_rows(xp, x, weight, bias=None):
    from tinygrad_nnfs.kernels import compiled_dense as compiled  # numba: only when used

    check_linear(x, weight, bias)
    out, into = weight.shape
    *leading, _ = shape = x.shape
    n = x.size // into
    x, rows = x.ravel(), weight.ravel("F")
    shift = np.zeros(out, np.float32) if bias is None else bias.ravel()
    size = n * weight.size // 64
    y = memory.empty((*leading, out), np.float32)
    # A cache gives away what another thread asks for ten times as slowly as to its own. So a thread
    # multiplies the half of a weight that it updates: the first inputs, or the last.
    team = helpers.team(size)
    parts = 2 if team is not helpers.ALONE and weight.size <= CACHED else 1
    compiled.forward(team, n, x, rows, shift, parts, y.ravel())

    def dx(dy):
        gradient = memory.empty(shape, np.float32)
        columns = loops.filled_up(dy.reshape(n, out).T)
        compiled.gradient_of_x(helpers.team(size), rows, columns, gradient.reshape(n, into))
        return gradient

    def dweight(dy):
        gradient = memory.empty((out, into), np.float32, "F")
        compiled.gradient_of_weight(helpers.team(size), n, x, dy.ravel(), gradient.ravel("F"))
        return gradient

    def dbias(dy):
        gradient = np.empty(out, np.float32)
        compiled.gradient_of_bias(dy.ravel(), gradient)
        return gradient

    return y, dx, dweight, None if bias is None else dbias


def _is_one_row(x, weight, bias=None):
    return (
        isinstance(x, ndarray)
        and isinstance(weight, ndarray)
        and weight.ndim == 2
        and weight.dtype in loops.COMPILED
        and x.ndim > 0
        and x.size == x.shape[-1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
    )


@linear.on(np, when=_is_one_row)
def linear_of_one_row(xp, x, weight, bias=None):
    order, dtype, size = memory_order(weight), weight.dtype, weight.size
    out, into = weight.shape
    by_inputs = order == "F"  # in memory
    row, matrix = x.ravel(), weight.T if by_inputs else weight
    y = np.zeros(out, dtype) if bias is None else bias.copy()
    loops.run("add_row_product" if by_inputs else "add_column_product", size, row, matrix, y)

    def dx(dy):
        gradient = np.zeros(into, dtype)
        product = "add_column_product" if by_inputs else "add_row_product"
        loops.run(product, size, dy.ravel(), matrix, gradient)
        return gradient.reshape(x.shape)

    def dweight(dy):  # BLAS takes ten times as long for the product of a column and a row
        gradient = memory.empty((out, into), dtype, order)
        if by_inputs:
            loops.run("outer", size, row, gradient.T, dy.ravel())
        else:
            loops.run("outer", size, dy.ravel(), gradient, row)
        return gradient

    def dbias(dy):
        return dy.ravel()

    y = y.reshape((*x.shape[:-1], out))  # one tuple: half the time of numbers one by one
    return y, dx, dweight, None if bias is None else dbias
