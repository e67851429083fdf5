"""linear and matmul on numpy: BLAS at one thread, and large products of linear in pieces."""

import math
from types import SimpleNamespace

import numpy as np
from numpy import ndarray

from tinygrad_nnfs.kernels import blas, loops, memory, threads
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
    y = blas.row_product(x, weight.T)
    if bias is not None:
        y += bias
    order, dtype, shape = memory_order(weight), weight.dtype, weight.shape

    def dx(dy):
        return blas.row_product(dy, weight)

    def dweight(dy):  # BLAS takes ten times as long for the product of a column and a row
        gradient = memory.empty(shape, dtype, order)
        row, column = x.ravel(), dy.ravel()
        if order == "F":
            loops.best().outer(row, column, gradient.T)
        else:
            loops.best().outer(column, row, gradient)
        return gradient

    def dbias(dy):
        return dy.ravel()

    return y, dx, dweight, None if bias is None else dbias
