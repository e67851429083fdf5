"""Convolution of a few images by its definition, compiled by numba.

Padded images are (n, h, w, c), `taps` the places of a window's elements behind its first in such an
image, the weight (taps, o), outputs (n, oh, ow, o). LANES outputs are computed at a time; gradients
are products with the columns, (outputs, taps), of some rows of outputs.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_lanes import load, load_one, store
from tinygrad_nnfs.kernels.compiled_parallel import parallel_for
from tinygrad_nnfs.kernels.compiled_products import add_rows, multiply
from tinygrad_nnfs.kernels.compiler import kernel
from tinygrad_nnfs.kernels.loops import LANES

SIZE = 2**13  # numbers of columns that are in a cache at a time


@kernel
def forward(team, step, x, taps, stride, weight, bias, y):
    parallel_for(team, _forward, (x, taps, stride, weight, bias, y), len(x), step)


@kernel
def _forward(x, taps, stride, weight, bias, y, worker, first, last):
    _, oh, ow, o = y.shape
    weight = weight.reshape(-1)
    down, right = stride[0], stride[1] * x.shape[3]
    for image in range(first, last):
        for i in range(oh):
            pixels, outputs = x[image, down * i :].reshape(-1), y[image, i].reshape(-1)
            # four outputs at a time share what is loaded; the last stands in for missing ones
            for j in range(0, ow, 4):
                a, b, c, d = j, min(j + 1, ow - 1), min(j + 2, ow - 1), min(j + 3, ow - 1)
                for lane in range(0, o, LANES):
                    ya = yb = yc = yd = load(bias, lane)
                    for t in range(taps.size):
                        w = load(weight, t * o + lane)
                        ya = ya + load_one(pixels, a * right + taps[t]) * w
                        yb = yb + load_one(pixels, b * right + taps[t]) * w
                        yc = yc + load_one(pixels, c * right + taps[t]) * w
                        yd = yd + load_one(pixels, d * right + taps[t]) * w
                    store(ya, outputs, a * o + lane)
                    store(yb, outputs, b * o + lane)
                    store(yc, outputs, c * o + lane)
                    store(yd, outputs, d * o + lane)


@kernel
def gradients_of_weight_and_bias(team, step, x, taps, stride, dy, dweights, dbiases):
    """What `step` images each give to both."""
    arguments = x, taps, stride, dy, dweights, dbiases, step
    parallel_for(team, _gradients_of_weight_and_bias, arguments, len(x), step)


@kernel
def _gradients_of_weight_and_bias(
    x, taps, stride, dy, dweights, dbiases, step, worker, first, last
):
    _, oh, ow, o = dy.shape
    down, right = stride[0], stride[1] * x.shape[3]
    rows = max(1, SIZE // (ow * taps.size))
    columns = np.empty(min(rows, oh) * ow * taps.size, np.float32)
    dweight, dbias = dweights[first // step].reshape(-1), dbiases[first // step]
    dweight[:] = 0
    dbias[:] = 0
    for image in range(first, last):
        for begin in range(0, oh, rows):
            end = min(begin + rows, oh)
            at = 0
            for i in range(begin, end):
                pixels = x[image, down * i :].reshape(-1)
                for j in range(ow):
                    for t in range(taps.size):
                        columns[at + t] = pixels[j * right + taps[t]]
                    at += taps.size
            outputs = dy[image, begin:end].reshape(-1)
            add_rows(outputs, dbias)
            shape, steps = (taps.size, (end - begin) * ow, o), (1, taps.size)
            multiply(shape, columns, steps, outputs, (LANES, o), dweight, o, dweight, o)


@kernel
def gradient_of_images(team, step, dy, taps, stride, weight, dx):
    """By the transposed weight (o, taps), filled up with zeros to a multiple of LANES taps."""
    parallel_for(team, _gradient_of_images, (dy, taps, stride, weight, dx), len(dy), step)


@kernel
def _gradient_of_images(dy, taps, stride, weight, dx, worker, first, last):
    _, oh, ow, o = dy.shape
    filled = weight.shape[1]
    down, right = stride[0], stride[1] * dx.shape[3]
    rows = max(1, SIZE // (ow * filled))
    columns = np.empty(min(rows, oh) * ow * filled, np.float32)
    weight, nothing = weight.reshape(-1), np.zeros(filled, np.float32)
    dx[first:last] = 0
    for image in range(first, last):
        for begin in range(0, oh, rows):
            end = min(begin + rows, oh)
            shape, outputs = ((end - begin) * ow, o, filled), dy[image, begin:end].reshape(-1)
            multiply(shape, outputs, (o, 1), weight, (LANES, filled), nothing, 0, columns, filled)
            at = 0
            for i in range(begin, end):
                pixels = dx[image, down * i :].reshape(-1)
                for j in range(ow):
                    for t in range(taps.size):
                        pixels[j * right + taps[t]] += columns[at + t]
                    at += filled
