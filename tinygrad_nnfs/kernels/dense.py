"""linear of large matrices on numpy: its three products in pieces, for several threads."""

import math

import numpy as np

from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.ops.linear import check_linear, linear

SIZE = 128  # rows or columns of a product that a piece computes


def _is_large(x, weight, bias=None):
    # the products of a smaller one are quickly done, and BLAS's own threads start sooner
    return (
        x.ndim
        and weight.ndim == 2
        and threads.is_large(math.prod(x.shape[:-1]) * weight.size // 64)
    )


@linear.on(np, when=_is_large)
def linear_in_pieces(xp, x, weight, bias=None):
    check_linear(x, weight, bias)
    out, into = weight.shape
    shape = x.shape
    x = x.reshape(-1, into)
    y = memory.empty((len(x), out), x.dtype)

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
        gradient = memory.empty((out, into), dy.dtype)

        def backward(piece):
            np.matmul(dy[:, piece].T, x, out=gradient[piece])

        threads.run(backward, threads.pieces(out, SIZE))
        return gradient

    def dbias(dy):
        return dy.reshape(-1, out).sum(axis=0)

    return y.reshape(*shape[:-1], out), dx, dweight, None if bias is None else dbias
