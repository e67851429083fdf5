"""The loops of `compiled_loops` on several threads; of all arrays a piece has the same elements."""

import numpy as np

from tinygrad_nnfs.kernels import compiled_loops as loops
from tinygrad_nnfs.kernels.compiled_parallel import equal_pieces, parallel_for
from tinygrad_nnfs.kernels.compiler import kernel

SIZE = 2**15  # elements of a piece


@kernel
def leaky_relu(team, x, y, positive, slope):
    x, y, positive = x.ravel(), y.ravel(), positive.ravel()
    parallel_for(
        team, _leaky_relu, (x, y, positive, slope), x.size, equal_pieces(team, x.size, SIZE)
    )


@kernel
def _leaky_relu(x, y, positive, slope, worker, first, last):
    loops.leaky_relu(x[first:last], y[first:last], positive[first:last], slope)


@kernel
def leaky_relu_gradient(team, positive, dy, dx, slope):
    positive, dy, dx = positive.ravel(), dy.ravel(), dx.ravel()
    arguments = positive, dy, dx, slope
    parallel_for(team, _leaky_relu_gradient, arguments, dx.size, equal_pieces(team, dx.size, SIZE))


@kernel
def _leaky_relu_gradient(positive, dy, dx, slope, worker, first, last):
    loops.leaky_relu_gradient(positive[first:last], dy[first:last], dx[first:last], slope)


@kernel
def keep_scaled(team, x, keep, y, scale):
    x, keep, y = x.ravel(), keep.ravel(), y.ravel()
    parallel_for(team, _keep_scaled, (x, keep, y, scale), x.size, equal_pieces(team, x.size, SIZE))


@kernel
def _keep_scaled(x, keep, y, scale, worker, first, last):
    loops.keep_scaled(x[first:last], keep[first:last], y[first:last], scale)


@kernel
def dropout(team, x, keep, y, key0, key1, least, scale, first, last):
    x, keep, y = x.ravel(), keep.ravel(), y.ravel()
    blocks = (last - first) // 16  # of elements, for which random bits are drawn together
    step = 16 * equal_pieces(team, blocks, SIZE // 16)
    arguments = x, keep, y, key0, key1, least, scale, first
    parallel_for(team, _dropout, arguments, last - first, step)


@kernel
def _dropout(x, keep, y, key0, key1, least, scale, begin, worker, first, last):
    loops.dropout(x, keep, y, key0, key1, least, scale, begin + first, begin + last)


@kernel
def add_row_product(team, row, matrix, total):
    step = equal_pieces(team, row.size, max(1, SIZE // total.size))
    parts = np.zeros(((row.size + step - 1) // step, total.size), total.dtype)
    parallel_for(team, _add_row_product, (row, matrix, parts, step), row.size, step)
    for part in parts:
        total += part


@kernel
def _add_row_product(row, matrix, parts, step, worker, first, last):
    loops.add_row_product(row[first:last], matrix[first:last], parts[first // step])


@kernel
def add_column_product(team, column, matrix, total):
    step = equal_pieces(team, total.size, max(1, SIZE // column.size))
    parallel_for(team, _add_column_product, (column, matrix, total), total.size, step)


@kernel
def _add_column_product(column, matrix, total, worker, first, last):
    loops.add_column_product(column, matrix[first:last], total[first:last])


@kernel
def outer(team, column, product, row):
    step = equal_pieces(team, column.size, max(1, SIZE // row.size))
    parallel_for(team, _outer, (column, product, row), column.size, step)


@kernel
def _outer(column, product, row, worker, first, last):
    loops.outer(column[first:last], product[first:last], row)


@kernel
def gradient_step(team, theta, gradient, lr, weight_decay):
    theta, gradient = theta.ravel(), gradient.ravel()
    arguments = theta, gradient, lr, weight_decay
    parallel_for(team, _gradient_step, arguments, theta.size, equal_pieces(team, theta.size, SIZE))


@kernel
def _gradient_step(theta, gradient, lr, weight_decay, worker, first, last):
    loops.gradient_step(theta[first:last], gradient[first:last], lr, weight_decay)


@kernel
def momentum_step(team, theta, gradient, velocity, lr, weight_decay, momentum):
    theta, gradient, velocity = theta.ravel(), gradient.ravel(), velocity.ravel()
    arguments = theta, gradient, velocity, lr, weight_decay, momentum
    parallel_for(team, _momentum_step, arguments, theta.size, equal_pieces(team, theta.size, SIZE))


@kernel
def _momentum_step(theta, gradient, velocity, lr, weight_decay, momentum, worker, first, last):
    theta, gradient, velocity = theta[first:last], gradient[first:last], velocity[first:last]
    loops.momentum_step(theta, gradient, velocity, lr, weight_decay, momentum)


@kernel
def max_pool(team, x, y, winner):
    step = equal_pieces(team, len(x), len(x) * SIZE // x.size)
    parallel_for(team, _max_pool, (x, y, winner), len(x), step)


@kernel
def _max_pool(x, y, winner, worker, first, last):
    loops.max_pool(x[first:last], y[first:last], winner[first:last])


@kernel
def max_pool_gradient(team, dy, winner, dx):
    step = equal_pieces(team, len(dx), len(dx) * SIZE // dx.size)
    parallel_for(team, _max_pool_gradient, (dy, winner, dx), len(dx), step)


@kernel
def _max_pool_gradient(dy, winner, dx, worker, first, last):
    loops.max_pool_gradient(dy[first:last], winner[first:last], dx[first:last])
