"""Products of a few rows with the weight of a dense layer, compiled by numba.

x (n, i), dy (n, o) and the transposed weight (i, o) are flat arrays, row by row; o is a multiple of
LANES. Each function is for the inputs from `first` to `last`.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_products import multiply
from tinygrad_nnfs.kernels.compiler import kernel
from tinygrad_nnfs.kernels.loops import LANES

SIZE = 2**14  # elements of the weight that are multiplied with all of x while they are in a cache
INPUTS = 32  # whose gradients, by n rows, are there at a time


@kernel
def forward(shape, x, weight, bias, y, first, last):
    """y = bias + x weight, by these inputs alone."""
    n, into, out = shape
    depth = max(1, SIZE // out)
    start, step = bias, 0
    for begin in range(first, last, depth):
        part = n, min(depth, last - begin), out
        rows = weight[begin * out :]
        multiply(part, x[begin:], (into, 1), rows, (LANES, out), start, step, y, out)
        start, step = y, out


@kernel
def gradient_of_x(weight, dy, dx, first, last):
    """dx (n, i) = (weight dy)^T, of dy (o, n), n filled up to a multiple of LANES there."""
    (out, n), dy = dy.shape, dy.reshape(-1)
    block, nothing = np.empty((INPUTS, n), np.float32), np.zeros(n, np.float32)
    for i in range(first, last, INPUTS):
        size = min(INPUTS, last - i)
        rows, sums = weight[i * out :], block.reshape(-1)
        multiply((size, out, n), rows, (out, 1), dy, (LANES, n), nothing, 0, sums, n)
        for row in range(len(dx)):
            for k in range(size):
                dx[row, i + k] = block[k, row]


@kernel
def gradient_of_weight(shape, x, dy, dweight, first, last):
    """dweight = x^T dy."""
    n, into, out = shape
    part, nothing = (last - first, n, out), np.zeros(out, np.float32)
    rows = dweight[first * out :]
    multiply(part, x[first:], (1, into), dy, (LANES, out), nothing, 0, rows, out)
