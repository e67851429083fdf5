"""The transforms of Winograd's convolution (see transforms) as instructions on lanes."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiled_lanes import VECTOR, lanes
from tinygrad_nnfs.kernels.transforms import POINTS, matrices


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
