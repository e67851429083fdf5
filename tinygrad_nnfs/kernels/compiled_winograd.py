"""Winograd convolution F(4x4, 3x3) of a few images, compiled by numba.

Lavin and Gray, 2016, with the interpolation points 0, 1, -1, 2, -2 and infinity. A tile of 4x4
outputs is computed from 6x6 inputs, and tiles stand 4 pixels apart; beyond the image are zeros.
Images are (n, h, w, c), tiles (36, n th tw, c). A transform is one of 6 (or 4) numbers, done along
the columns of a tile and then along its rows, for LANES channels at a time.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_blas import matmul, matmul_transposed
from tinygrad_nnfs.kernels.compiled_lanes import fill, load, store
from tinygrad_nnfs.kernels.compiler import inline, kernel
from tinygrad_nnfs.kernels.loops import LANES

f32 = np.float32


@inline
def _bt(d):
    """B^T d: what a row (or column) of 6 inputs is evaluated at."""
    d0, d1, d2, d3, d4, d5 = d
    e, o = d4 - f32(4) * d2, d3 - f32(4) * d1
    e2, o2 = d4 - d2, f32(2) * (d3 - d1)
    first, last = f32(4) * d0 - f32(5) * d2 + d4, f32(4) * d1 - f32(5) * d3 + d5
    return first, e + o, e - o, e2 + o2, e2 - o2, last


@inline
def _b(v):
    """B v, the transpose of _bt."""
    v0, v1, v2, v3, v4, v5 = v
    s, d, s2, d2 = v1 + v2, v1 - v2, v3 + v4, f32(2) * (v3 - v4)
    return (
        f32(4) * v0,
        f32(4) * (v5 - d) - d2,
        -f32(5) * v0 - f32(4) * s - s2,
        d + d2 - f32(5) * v5,
        v0 + s + s2,
        v5,
    )


@inline
def _at(m):
    """A^T m: 4 outputs from 6 products."""
    m0, m1, m2, m3, m4, m5 = m
    s, d, s2, d2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s + s2, d + f32(2) * d2, s + f32(4) * s2, d + f32(8) * d2 + m5


@inline
def _a(y):
    """A y, the transpose of _at."""
    y0, y1, y2, y3 = y
    e, o = y0 + y2, y1 + y3
    e2, o2 = y0 + f32(4) * y2, f32(2) * y1 + f32(8) * y3
    return y0, e + o, e - o, e2 + o2, e2 - o2, y3


@inline
def _g(g):
    """G g: 6 numbers from a row (or column) of 3 of the kernel."""
    g0, g1, g2 = g
    even, wide = f32(-1 / 6) * (g0 + g2), f32(1 / 24) * g0 + f32(1 / 6) * g2
    odd, half = f32(1 / 6) * g1, f32(1 / 12) * g1
    return f32(1 / 4) * g0, even - odd, even + odd, wide + half, wide - half, g2


@inline
def _gt(u):
    """G^T u, the transpose of _g."""
    u0, u1, u2, u3, u4, u5 = u
    even, wide = f32(1 / 6) * (u1 + u2), u3 + u4
    first = f32(1 / 4) * u0 - even + f32(1 / 24) * wide
    return first, f32(1 / 6) * (u2 - u1) + f32(1 / 12) * (u3 - u4), f32(1 / 6) * wide - even + u5


@inline
def _window(shape, image, i, j, size):
    """Is the window of size x size pixels whole, and where do the channels of its first begin?"""
    _, height, width, channels = shape
    whole = i >= 0 and j >= 0 and i + size <= height and j + size <= width
    return whole, ((image * height + i) * width + j) * channels


@inline
def _read_edge(x, shape, image, i, j, size, b, patch):
    """LANES channels of a window that reaches beyond the image, with zeros there."""
    _, height, width, channels = shape
    zero = fill(f32(0))
    for p in range(size * size):
        row, column = i + p // size, j + p % size
        if 0 <= row < height and 0 <= column < width:
            at = ((image * height + row) * width + column) * channels + b
            store(load(x, at), patch, p * LANES)
        else:
            store(zero, patch, p * LANES)


@inline
def _six(x, at, step):
    return (
        load(x, at),
        load(x, at + step),
        load(x, at + 2 * step),
        load(x, at + 3 * step),
        load(x, at + 4 * step),
        load(x, at + 5 * step),
    )


@inline
def _three(x, at, step):
    return load(x, at), load(x, at + step), load(x, at + 2 * step)


@inline
def _four(x, at, step):
    return load(x, at), load(x, at + step), load(x, at + 2 * step), load(x, at + 3 * step)


@inline
def _store_six(values, x, at, step):
    store(values[0], x, at)
    store(values[1], x, at + step)
    store(values[2], x, at + 2 * step)
    store(values[3], x, at + 3 * step)
    store(values[4], x, at + 4 * step)
    store(values[5], x, at + 5 * step)


@inline
def _store_three(values, x, at, step):
    store(values[0], x, at)
    store(values[1], x, at + step)
    store(values[2], x, at + 2 * step)


@inline
def _store_four(values, x, at, step):
    store(values[0], x, at)
    store(values[1], x, at + step)
    store(values[2], x, at + 2 * step)
    store(values[3], x, at + 3 * step)


@kernel
def transform_input(x, shape, padding, v):
    """V = B^T d B: images -> tiles, both as flat arrays."""
    n, height, width, channels = shape
    ph, pw = padding
    th, tw = (height + 2 * ph + 1) // 4, (width + 2 * pw + 1) // 4
    plane = n * th * tw * channels  # from one of the 36 to the next
    half = np.empty(36 * LANES, np.float32)  # B^T d
    patch = np.empty(36 * LANES, np.float32)
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * 4 - ph, tile % tw * 4 - pw
        whole, first = _window(shape, image, i, j, 6)
        for b in range(0, channels, LANES):
            if whole:
                d, at, row, step = x, first + b, width * channels, channels
            else:
                _read_edge(x, shape, image, i, j, 6, b, patch)
                d, at, row, step = patch, 0, 6 * LANES, LANES
            for k in range(6):
                _store_six(_bt(_six(d, at + k * step, row)), half, k * LANES, 6 * LANES)
            for k in range(6):
                to = 6 * k * plane + tile * channels + b
                _store_six(_bt(_six(half, 6 * k * LANES, LANES)), v, to, plane)


@kernel
def transform_input_adjoint(v, shape, padding, dx):
    """The transpose of transform_input: tiles -> images."""
    n, height, width, channels = shape
    ph, pw = padding
    th, tw = (height + 2 * ph + 1) // 4, (width + 2 * pw + 1) // 4
    plane = n * th * tw * channels
    half = np.empty(36 * LANES, np.float32)
    patch = np.empty(36 * LANES, np.float32)
    dx[:] = 0  # tiles overlap: their shares of a pixel are added up
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * 4 - ph, tile % tw * 4 - pw
        for b in range(0, channels, LANES):
            for k in range(6):
                at = k * plane + tile * channels + b
                _store_six(_b(_six(v, at, 6 * plane)), half, k * LANES, 6 * LANES)
            for k in range(6):
                _store_six(_b(_six(half, 6 * k * LANES, LANES)), patch, 6 * k * LANES, LANES)
            for p in range(36):
                row, column = i + p // 6, j + p % 6
                if 0 <= row < height and 0 <= column < width:
                    at = ((image * height + row) * width + column) * channels + b
                    store(load(dx, at) + load(patch, p * LANES), dx, at)


@kernel
def transform_output(m, bias, y, shape):
    """y = A^T m A + bias: tiles -> images."""
    n, height, width, channels = shape
    th, tw = (height + 3) // 4, (width + 3) // 4
    plane = n * th * tw * channels
    half = np.empty(24 * LANES, np.float32)  # A^T m: 4 rows of 6
    patch = np.empty(16 * LANES, np.float32)
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * 4, tile % tw * 4
        whole, first = _window(shape, image, i, j, 4)
        for b in range(0, channels, LANES):
            for k in range(6):
                at = k * plane + tile * channels + b
                _store_four(_at(_six(m, at, 6 * plane)), half, k * LANES, 6 * LANES)
            shift = load(bias, b)
            for k in range(4):
                y0, y1, y2, y3 = _at(_six(half, 6 * k * LANES, LANES))
                outputs = y0 + shift, y1 + shift, y2 + shift, y3 + shift
                if whole:
                    _store_four(outputs, y, first + k * width * channels + b, channels)
                else:
                    _store_four(outputs, patch, 4 * k * LANES, LANES)
            if not whole:
                for p in range(16):
                    row, column = i + p // 4, j + p % 4
                    if row < height and column < width:
                        at = ((image * height + row) * width + column) * channels + b
                        store(load(patch, p * LANES), y, at)


@kernel
def transform_output_adjoint(dy, shape, m):
    """The transpose of transform_output: images -> tiles."""
    n, height, width, channels = shape
    th, tw = (height + 3) // 4, (width + 3) // 4
    plane = n * th * tw * channels
    half = np.empty(24 * LANES, np.float32)  # A dy: 6 rows of 4
    patch = np.empty(16 * LANES, np.float32)
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * 4, tile % tw * 4
        whole, first = _window(shape, image, i, j, 4)
        for b in range(0, channels, LANES):
            if whole:
                d, at, row, step = dy, first + b, width * channels, channels
            else:
                _read_edge(dy, shape, image, i, j, 4, b, patch)
                d, at, row, step = patch, 0, 4 * LANES, LANES
            for k in range(4):
                _store_six(_a(_four(d, at + k * step, row)), half, k * LANES, 4 * LANES)
            for k in range(6):
                to = 6 * k * plane + tile * channels + b
                _store_six(_a(_four(half, 4 * k * LANES, LANES)), m, to, plane)


@kernel
def transform_kernels(g, u):
    """U = G g G^T: (9, a b) -> (36, a, b), a b a multiple of LANES."""
    g, u = g.reshape(-1), u.reshape(-1)
    plane = g.size // 9
    half = np.empty(18 * LANES, np.float32)  # G g: 6 rows of 3
    for at in range(0, plane, LANES):
        for k in range(3):
            _store_six(_g(_three(g, k * plane + at, 3 * plane)), half, k * LANES, 3 * LANES)
        for k in range(6):
            _store_six(_g(_three(half, 3 * k * LANES, LANES)), u, 6 * k * plane + at, plane)


@kernel
def transform_kernels_adjoint(u, g):
    """The transpose of transform_kernels: (36, a, b) -> (9, a b)."""
    g, u = g.reshape(-1), u.reshape(-1)
    plane = g.size // 9
    half = np.empty(18 * LANES, np.float32)  # G^T u: 3 rows of 6
    for at in range(0, plane, LANES):
        for k in range(6):
            _store_three(_gt(_six(u, k * plane + at, 6 * plane)), half, k * LANES, 6 * LANES)
        for k in range(3):
            _store_three(_gt(_six(half, 6 * k * LANES, LANES)), g, 3 * k * plane + at, plane)


@kernel
def forward(x, padding, u, bias, v, m, y):
    """y of a few images, by way of their tiles v (36, n th tw, c) and products m."""
    transform_input(x.reshape(-1), x.shape, padding, v.reshape(-1))
    for p in range(36):
        matmul(v[p], u[p], m[p])
    transform_output(m.reshape(-1), bias, y.reshape(-1), y.shape)


@kernel
def backward(x, padding, u, dy, v, m, du, dx, dweight, dbias):
    """The gradient by a few images, and what these give to those by weight and bias."""
    transform_output_adjoint(dy.reshape(-1), dy.shape, m.reshape(-1))
    dbias[:] = 0
    for row in m[7]:  # of the 36, the one that is the sum of a tile
        dbias += row
    transform_input(x.reshape(-1), x.shape, padding, v.reshape(-1))
    for p in range(36):
        matmul_transposed(m[p], v[p], du[p])
        matmul(m[p], u[p], v[p])
    transform_kernels_adjoint(du, dweight)
    transform_input_adjoint(v.reshape(-1), dx.shape, padding, dx.reshape(-1))
