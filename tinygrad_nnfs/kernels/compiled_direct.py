"""Convolution of a few images by its definition, compiled by numba.

Padded images are (n, h, w, c), `taps` the places of a window's elements behind its first in such an
image, the weight (taps, o), outputs (n, oh, ow, o). LANES outputs are computed at a time.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_lanes import fill, load, load_one, store, total
from tinygrad_nnfs.kernels.compiler import kernel
from tinygrad_nnfs.kernels.loops import LANES


@kernel
def forward(x, taps, stride, weight, bias, y):
    n, oh, ow, o = y.shape
    weight = weight.reshape(-1)
    down, right = stride[0], stride[1] * x.shape[3]
    for image in range(n):
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
def gradients_of_weight_and_bias(x, taps, stride, dy, dweight, dbias):
    n, oh, ow, o = dy.shape
    dweight = dweight.reshape(-1)
    down, right = stride[0], stride[1] * x.shape[3]
    dweight[:] = 0
    dbias[:] = 0
    zero = fill(np.float32(0))
    for image in range(n):
        for i in range(oh):
            pixels, outputs = x[image, down * i :].reshape(-1), dy[image, i].reshape(-1)
            for j in range(0, ow, 4):
                a, b, c, d = j, min(j + 1, ow - 1), min(j + 2, ow - 1), min(j + 3, ow - 1)
                for lane in range(0, o, LANES):
                    ya = load(outputs, a * o + lane)
                    yb = load(outputs, b * o + lane) if b > a else zero
                    yc = load(outputs, c * o + lane) if c > b else zero
                    yd = load(outputs, d * o + lane) if d > c else zero
                    store(load(dbias, lane) + ((ya + yb) + (yc + yd)), dbias, lane)
                    for t in range(taps.size):
                        xa, xb = a * right + taps[t], b * right + taps[t]
                        xc, xd = c * right + taps[t], d * right + taps[t]
                        left = load_one(pixels, xa) * ya + load_one(pixels, xb) * yb
                        others = load_one(pixels, xc) * yc + load_one(pixels, xd) * yd
                        to = t * o + lane
                        store(load(dweight, to) + (left + others), dweight, to)


@kernel
def gradient_of_images(dy, taps, stride, weight, dx):
    n, oh, ow, o = dy.shape
    weight = weight.reshape(-1)
    down, right = stride[0], stride[1] * dx.shape[3]
    dx[:] = 0
    for image in range(n):
        for i in range(oh):
            pixels, outputs = dx[image, down * i :].reshape(-1), dy[image, i].reshape(-1)
            for j in range(ow):
                for t in range(taps.size):
                    value = fill(np.float32(0))
                    for lane in range(0, o, LANES):
                        value = value + load(outputs, j * o + lane) * load(weight, t * o + lane)
                    pixels[j * right + taps[t]] += total(value)
