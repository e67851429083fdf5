"""Products of a few rows with the weight of a dense layer, compiled by numba.

x (n, i), dy (n, o) and the transposed weight (i, o) are flat arrays, row by row; o is a multiple of
LANES.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_parallel import equal_pieces, parallel_for, piece_size
from tinygrad_nnfs.kernels.compiled_products import add_rows, multiply
from tinygrad_nnfs.kernels.compiler import kernel
from tinygrad_nnfs.kernels.loops import LANES

SIZE = 2**14  # elements of the weight that are multiplied with all of x while they are in a cache
PANELS = 4  # of LANES outputs in a piece of y
INPUTS = 64  # in a piece of a gradient
BLOCK = 32  # inputs whose gradients, by n rows, are there at a time


@kernel
def forward(team, n, x, weight, bias, parts, y):
    """y = bias + x weight: the inputs in `parts`, one after the other or on several threads."""
    sums = y.reshape(1, y.size) if parts == 1 else np.empty((parts, y.size), np.float32)
    columns = LANES * piece_size(team, PANELS)
    pieces = parts * ((bias.size - 1) // columns + 1)
    parallel_for(team, _forward, (n, x, weight, bias, columns, sums), pieces, 1)
    if parts > 1:
        y[:] = sums[0]
        for part in sums[1:]:
            y += part


@kernel
def _forward(n, x, weight, bias, columns, sums, worker, begin, end):
    parts, into, out = len(sums), x.size // n, bias.size
    across, height = (out - 1) // columns + 1, (into - 1) // parts + 1
    zeros = np.zeros(out, np.float32)
    for piece in range(begin, end):
        part, column = divmod(piece, across)
        left, right = column * columns, min(out, (column + 1) * columns)
        top, bottom = min(into, part * height), min(into, (part + 1) * height)
        y = sums[part, left:]
        start, step = zeros[left:] if part else bias[left:], 0
        depth = max(1, SIZE // (right - left))
        for i in range(top, max(bottom, top + 1), depth):  # once, too, where no input is left
            shape, rows = (n, min(depth, bottom - i), right - left), weight[i * out + left :]
            multiply(shape, x[i:], (into, 1), rows, (LANES, out), start, step, y, out)
            start, step = y, out


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
    into = x.size // n
    step = equal_pieces(team, into, INPUTS)
    parallel_for(team, _gradient_of_weight, (n, x, dy, dweight), into, step)


@kernel
def _gradient_of_weight(n, x, dy, dweight, worker, first, last):
    into, out = x.size // n, dy.size // n
    shape, rows, nothing = (last - first, n, out), dweight[first * out :], np.zeros(out, np.float32)
    multiply(shape, x[first:], (1, into), dy, (LANES, out), nothing, 0, rows, out)


@kernel
def gradient_of_bias(dy, dbias):
    """dbias = the sum of dy's rows."""
    dbias[:] = 0
    add_rows(dy, dbias)
