"""Matrix products and table look-up.

In the formulas `.mT` is a matrix, or each of a stack of matrices, transposed, and leading axes that
only one factor has are summed over.
"""

import math

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.registry import Float, Index, Number, op, unbroadcast


@op(method="__matmul__", flops=lambda y, a, b: 2 * y.size * a.shape[-1])
def matmul(xp, a: Number, b: Number):
    """The matrix product: (..., n, i) @ (..., i, o) -> (..., n, o); vectors as in numpy.

    da = dy @ b.mT
    db = a.mT @ dy
    """
    if not (a.ndim and b.ndim) or a.shape[-1] != b.shape[-2 if b.ndim > 1 else -1]:
        raise ValueError(
            "the last size of a must be the second-to-last of b (of a vector b, its only one)"
        )
    row = a if a.ndim > 1 else a[None, :]
    column = b if b.ndim > 1 else b[:, None]
    y = xp.matmul(row, column)
    full, row_shape, column_shape, a_shape, b_shape = (z.shape for z in (y, row, column, a, b))

    def da(dy):
        product = xp.matmul(dy.reshape(full), column.swapaxes(-1, -2))
        return unbroadcast(product, row_shape).reshape(a_shape)

    def db(dy):
        product = xp.matmul(row.swapaxes(-1, -2), dy.reshape(full))
        return unbroadcast(product, column_shape).reshape(b_shape)

    if b.ndim == 1:
        y = y[..., 0]
    if a.ndim == 1:
        y = y[..., 0] if b.ndim == 1 else y[..., 0, :]
    return y, da, db


@matmul.samples
def _(draw):
    n, i, o, b = draw.sizes(4, smallest=0)
    yield draw.case(draw.normal(n, i), draw.normal(i, o))
    yield draw.case(draw.normal(b, n, i), draw.normal(i, o))
    yield draw.case(draw.normal(b, 1, n, i), draw.normal(1, 2, i, o))
    yield draw.case(draw.normal(b, 2, n, i), draw.normal(1, i, o))
    yield draw.case(draw.normal(i), draw.normal(b, i, o))
    yield draw.case(draw.normal(b, n, i), draw.normal(i))
    yield draw.case(draw.normal(i), draw.normal(i))


def memory_order(weight):
    """ "F" where it lies input by input, else "C"; a rule that needs no more saves no weight."""
    return "F" if weight.flags.f_contiguous and not weight.flags.c_contiguous else "C"


def check_linear(x, weight, bias):
    if weight.ndim != 2:
        raise ValueError("weight must be (outputs, inputs)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must be (..., {weight.shape[1]}), as many as weight has inputs"
            + (" (is nn.Flatten missing?)" if x.ndim > 2 else "")
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), one number for each output")


@op(flops=lambda y, x, weight, *_: 2 * y.size * x.shape[-1])
def linear(xp, x: Float, weight: Float, bias: Float = None):
    """x weight^T + bias: (..., i), (o, i), (o) -> (..., o).

    dx = dy @ weight
    dweight = dy.mT @ x
    dbias = sum(dy, 0)
    """
    check_linear(x, weight, bias)
    y = xp.matmul(x, weight.T)
    if bias is not None:
        y += bias
    (out, into), rows = weight.shape, math.prod(x.shape[:-1])
    order, dtype = memory_order(weight), weight.dtype

    def dx(dy):
        return xp.matmul(dy, weight)

    def dweight(dy):
        dy, inputs = dy.reshape(rows, out), x.reshape(rows, into)
        gradient = xp.empty((out, into), dtype, order)  # in the weight's own memory order
        return xp.matmul(dy.T, inputs, out=gradient)

    def dbias(dy):
        return dy.reshape(rows, out).sum(axis=0)

    return y, dx, dweight, None if bias is None else dbias


@linear.samples
def _(draw):
    n, i, o = draw.sizes(3, smallest=0)
    weight = draw.normal(o, i)
    yield draw.case(draw.normal(n, i), weight, draw.normal(o))
    yield draw.case(draw.normal(draw.integer(0, 2), n, i), weight)
    yield draw.case(draw.normal(i), weight, draw.normal(o))
    large = draw.normal(draw.integer(9, 12), 16)  # such as kernels cut into pieces
    yield draw.case(draw.normal(8, 16), large, draw.normal(len(large)))
    by_input = np.asfortranarray(draw.normal(16 * draw.integer(1, 3), draw.integer(1, 20)))
    x = draw.normal(draw.integer(1, 20), by_input.shape[1])
    yield draw.case(x, by_input, draw.normal(len(by_input)))


@op
def embedding(xp, indices: Index, weight: Float):
    """Rows of a table: integers (...) in 0..k-1, weight (k, d) -> (..., d).

    dweight[k] = sum(dy[indices == k], 0)
    """
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, found {indices.dtype}")
    if weight.ndim != 2:
        raise ValueError("weight must be (k, d), a row for each index")
    expected = f"indices must be in 0..{len(weight) - 1}"
    if backend.device_of(indices) == "cuda":
        wrong = (indices < 0) | (indices >= len(weight))
        backend.report_later(f"embedding: {expected}", wrong.any())
    elif indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(weight):
        raise IndexError(f"{expected}, found {int(indices.min())}..{int(indices.max())}")
    shape, dtype = weight.shape, weight.dtype

    def dweight(dy):
        table = xp.zeros(shape, dtype)
        xp.add.at(table, indices, dy)  # a row that was looked up twice gets both gradients
        return table

    return weight[indices], None, dweight


@embedding.samples
def _(draw):
    k, d, n = draw.sizes(3)
    yield draw.case(draw.labels(n, k), draw.normal(k, d))
    yield draw.case(draw.labels(n, k).reshape(n, 1), draw.normal(k, d))
