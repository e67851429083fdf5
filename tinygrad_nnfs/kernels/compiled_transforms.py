"""The transforms of Winograd's convolution F(m, 3) of rows, m outputs at a time, as instructions.

A convolution of m + 2 inputs d and 3 weights g is a product of polynomials, turned around, and
polynomials are multiplied by their values at enough points (Toom and Cook; Lavin and Gray, 2016):
values of the inputs times values of the weights, point by point, give the m outputs

    y = A^T ((B^T d) * (G g))

B^T, G and A have a row for each of the m + 1 points and one for infinity. Small numbers and their
inverses as points keep the rounding errors small.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiled_lanes import VECTOR, lanes

POINTS = np.array([0, 1, -1, 2, -2, -1 / 2])  # enough for m = 5


@functools.cache
def matrices(m):
    """B^T, G and A of F(m, 3), by name."""
    points = POINTS[: m + 1]
    inputs, weights, outputs = np.zeros((m + 2, m + 2)), np.zeros((m + 2, 3)), np.zeros((m + 2, m))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        inputs[i, :-1] = np.poly(others)[::-1]  # the polynomial that is 0 at all other points
        weights[i] = point ** np.arange(3) / np.prod(point - others)
        outputs[i] = point ** np.arange(m)
    inputs[-1] = np.poly(points)[::-1]
    weights[-1, -1] = outputs[-1, -1] = 1
    return {"B^T": inputs, "G": weights, "A": outputs}


def _opposite(m):
    """Where there is a point and next the same with the other sign: 1 and -1, 2 and -2, ..."""
    return [i for i in range(m) if POINTS[i] == -POINTS[i + 1] != 0]


def _halves(name, m):
    """The matrix, with the even powers of two opposite points in one row, the odd in the next."""
    matrix = matrices(m)[name].copy()
    for i in _opposite(m):
        a, b = matrix[i].copy(), matrix[i + 1].copy()
        matrix[i], matrix[i + 1] = (a + b) / 2, (a - b) / 2
    return matrix


def _multiply(builder, matrix, values):
    """matrix @ values, without products by 0 or 1."""
    result = []
    for row in matrix:
        total = None
        for factor, value in zip(row, values, strict=True):
            if factor == 0:
                continue
            if factor != 1:
                spread = ir.Constant(VECTOR, [float(np.float32(factor))] * VECTOR.count)
                value = builder.fmul(spread, value, flags=("contract",))
            total = value if total is None else builder.fadd(total, value, flags=("contract",))
        result.append(total)
    return result


def _sums_and_differences(builder, m, values):
    for i in _opposite(m):
        a, b = values[i], values[i + 1]
        values[i], values[i + 1] = builder.fadd(a, b), builder.fsub(a, b)
    return values


@intrinsic(prefer_literal=True)
def transform(typingctx, name, m, values):
    """One of the matrices times a tuple of lanes."""
    name, outputs = name.literal_value, m.literal_value
    halves = _halves(name, outputs)

    def build(context, builder, signature, args):
        result = _multiply(builder, halves, cgutils.unpack_tuple(builder, args[2]))
        result = _sums_and_differences(builder, outputs, result)
        return context.make_tuple(builder, signature.return_type, result)

    row = types.UniTuple(lanes, len(halves))
    return row(types.literal(name), m, values), build


@intrinsic(prefer_literal=True)
def transform_transposed(typingctx, name, m, values):
    """The transpose of one of the matrices times a tuple of lanes."""
    name, outputs = name.literal_value, m.literal_value
    halves = _halves(name, outputs)

    def build(context, builder, signature, args):
        result = cgutils.unpack_tuple(builder, args[2])
        result = _sums_and_differences(builder, outputs, list(result))
        result = _multiply(builder, halves.T, result)
        return context.make_tuple(builder, signature.return_type, result)

    row = types.UniTuple(lanes, halves.shape[1])
    return row(types.literal(name), m, values), build
