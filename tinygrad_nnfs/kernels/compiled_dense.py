"""Products of a few rows with the weight of a dense layer, compiled by numba.

x (n, i), dy (n, o) and the transposed weight (i, o) are flat arrays, row by row; o is a multiple of
LANES.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_parallel import parallel_for, piece_size
from tinygrad_nnfs.kernels.compiled_products import multiply
from tinygrad_nnfs.kernels.compiler import kernel
from tinygrad_nnfs.kernels.loops import LANES

SIZE = 2**14  # elements of the weight that are multiplied with all of x while they are in a cache
PANELS = 4  # of LANES outputs in a piece
INPUTS = 64  # in a piece of a gradient
BLOCK = 32  # inputs whose gradients, by n rows, are there at a time


@kernel
def forward(team, n, x, weight, bias, y):
    """y = bias + x weight."""
    step = LANES * piece_size(team, PANELS)
    parallel_for(team, _forward, (n, x, weight, bias, y), bias.size, step)


@kernel
def _forward(n, x, weight, bias, y, worker, first, last):
    into, out = x.size // n, bias.size
    depth = max(1, SIZE // (last - first))
    start, step = bias[first:], 0
    for begin in range(0, into, depth):
        shape = n, min(depth, into - begin), last - first
        rows, sums = weight[begin * out + first :], y[first:]
        multiply(shape, x[begin:], (into, 1), rows, (LANES, out), start, step, sums, out)
        start, step = sums, out


@kernel
def gradient_of_x(team, weight, dy, dx):
    """dx (n, i) = (weight dy)^T, of dy (o, n), n filled up to a multiple of LANES there."""
    step = piece_size(team, INPUTS)
    parallel_for(team, _gradient_of_x, (weight, dy, dx), dx.shape[1], step)


@kernel
def _gradient_of_x(weight, dy, dx, worker, first, last):
    (out, n), dy = dy.shape, dy.reshape(-1)
    block, nothing = np.empty((BLOCK, n), np.float32), np.zeros(n, np.float32)
    for i in range(first, last, BLOCK):
        size = min(BLOCK, last - i)
        rows, sums = weight[i * out :], block.reshape(-1)
        multiply((size, out, n), rows, (out, 1), dy, (LANES, n), nothing, 0, sums, n)
        for row in range(len(dx)):
            for k in range(size):
                dx[row, i + k] = block[k, row]


@kernel
def gradient_of_weight(team, n, x, dy, dweight):
    """dweight = x^T dy."""
    step = piece_size(team, INPUTS)
    parallel_for(team, _gradient_of_weight, (n, x, dy, dweight), x.size // n, step)


@kernel
def _gradient_of_weight(n, x, dy, dweight, worker, first, last):
    into, out = x.size // n, dy.size // n
    shape, rows, nothing = (last - first, n, out), dweight[first * out :], np.zeros(out, np.float32)
    multiply(shape, x[first:], (1, into), dy, (LANES, out), nothing, 0, rows, out)
