"""Winograd convolution F(m x m, 3x3) of a few images, compiled by numba.

A tile of m x m outputs is computed from a x a inputs, a = m + 2, and tiles stand m pixels apart;
beyond the image are zeros. Images are (n, h, w, c), tiles (a a, n th tw, c). A transform (see
compiled_transforms) is done along the columns of a tile and then along its rows, for LANES channels
at a time. Every function is compiled for each m: `kernels` has it as a number known beforehand.
"""

import functools

import numpy as np

from tinygrad_nnfs.kernels.compiled_lanes import fill, load, load_one, load_row, store, store_row
from tinygrad_nnfs.kernels.compiled_transforms import transform, transform_transposed
from tinygrad_nnfs.kernels.compiler import inline, kernel
from tinygrad_nnfs.kernels.loops import LANES


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
    zero = fill(np.float32(0))
    for p in range(size * size):
        row, column = i + p // size, j + p % size
        if 0 <= row < height and 0 <= column < width:
            at = ((image * height + row) * width + column) * channels + b
            store(load(x, at), patch, p * LANES)
        else:
            store(zero, patch, p * LANES)


@inline
def _to_tiles(name, images, shape, padding, tiles, grid, size, m, a):
    """T x T^T of the windows x of size x size pixels, m apart: images -> tiles, as flat arrays.

    `name` says which matrix T is, `grid` how many tiles an image has, down and across.
    """
    n, _, width, channels = shape
    (ph, pw), (th, tw) = padding, grid
    plane = n * th * tw * channels  # from one of the a a to the next
    half = np.empty(a * size * LANES, np.float32)  # a rows of `size`
    patch = np.empty(size * size * LANES, np.float32)
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * m - ph, tile % tw * m - pw
        whole, first = _window(shape, image, i, j, size)
        for b in range(0, channels, LANES):
            if whole:
                x, at, row, step = images, first + b, width * channels, channels
            else:
                _read_edge(images, shape, image, i, j, size, b, patch)
                x, at, row, step = patch, 0, size * LANES, LANES
            for k in range(size):
                values = transform(name, m, load_row(x, at + k * step, row, size))
                store_row(values, half, k * LANES, size * LANES)
            for k in range(a):
                values = transform(name, m, load_row(half, size * k * LANES, LANES, size))
                store_row(values, tiles, a * k * plane + tile * channels + b, plane)


@inline
def _to_images(name, images, shape, padding, tiles, grid, size, m, a):
    """The transpose of _to_tiles. Where windows overlap, their shares of a pixel are added up."""
    n, height, width, channels = shape
    (ph, pw), (th, tw) = padding, grid
    plane = n * th * tw * channels
    half = np.empty(a * size * LANES, np.float32)  # `size` rows of a
    patch = np.empty(size * size * LANES, np.float32)
    overlap = size > m
    if overlap:
        images[:] = 0
    for tile in range(n * th * tw):
        image, i, j = tile // (th * tw), tile // tw % th * m - ph, tile % tw * m - pw
        whole, first = _window(shape, image, i, j, size)
        direct = whole and not overlap
        for b in range(0, channels, LANES):
            for k in range(a):
                values = load_row(tiles, k * plane + tile * channels + b, a * plane, a)
                store_row(transform_transposed(name, m, values), half, k * LANES, a * LANES)
            for k in range(size):
                values = load_row(half, a * k * LANES, LANES, a)
                values = transform_transposed(name, m, values)
                if direct:
                    store_row(values, images, first + k * width * channels + b, channels)
                else:
                    store_row(values, patch, size * k * LANES, LANES)
            if not direct:
                for p in range(size * size):
                    row, column = i + p // size, j + p % size
                    if 0 <= row < height and 0 <= column < width:
                        at = ((image * height + row) * width + column) * channels + b
                        value = load(patch, p * LANES)
                        store(load(images, at) + value if overlap else value, images, at)


@inline
def _transform_kernels(g, u, m, a):
    """U = G g G^T: (9, size) -> (a a, size), size a multiple of LANES."""
    plane = g.shape[1]
    g, u = g.reshape(-1), u.reshape(-1)
    half = np.empty(3 * a * LANES, np.float32)  # G g: a rows of 3
    for at in range(0, plane, LANES):
        for k in range(3):
            values = transform("G", m, load_row(g, k * plane + at, 3 * plane, 3))
            store_row(values, half, k * LANES, 3 * LANES)
        for k in range(a):
            values = transform("G", m, load_row(half, 3 * k * LANES, LANES, 3))
            store_row(values, u, a * k * plane + at, plane)


@inline
def _transform_kernels_adjoint(u, g, m, a):
    """The transpose of _transform_kernels: (a a, size) -> (9, size)."""
    g, u = g.reshape(-1), u.reshape(-1)
    plane = g.size // 9
    half = np.empty(3 * a * LANES, np.float32)  # G^T u: 3 rows of a
    for at in range(0, plane, LANES):
        for k in range(a):
            values = transform_transposed("G", m, load_row(u, k * plane + at, a * plane, a))
            store_row(values, half, k * LANES, a * LANES)
        for k in range(3):
            values = transform_transposed("G", m, load_row(half, a * k * LANES, LANES, a))
            store_row(values, g, 3 * k * plane + at, plane)


@kernel
def _multiply(a, a_steps, b, b_steps, out):
    """out = a b: (n, k) by (k, o), a and b as flat arrays with the steps between their elements.

    a_steps: from row to row, from column to column; b_steps: from a panel of LANES columns to the
    next, from row to row. BLAS rearranges both first, which takes long for matrices as small as
    these. Six rows of LANES sums are what the registers of a processor with AVX2 hold.
    """
    n, o = out.shape
    out = out.reshape(-1)
    row, column = a_steps
    panel, down = b_steps
    k = a.size // n
    for j in range(o // LANES):
        for i in range(0, n, 6):
            # the last row stands in for missing ones
            i1, i2, i3 = min(i + 1, n - 1), min(i + 2, n - 1), min(i + 3, n - 1)
            i4, i5 = min(i + 4, n - 1), min(i + 5, n - 1)
            a0, a1, a2, a3, a4, a5 = i * row, i1 * row, i2 * row, i3 * row, i4 * row, i5 * row
            y0 = y1 = y2 = y3 = y4 = y5 = fill(np.float32(0))
            at = j * panel
            for to in range(0, k * column, column):
                w = load(b, at)
                y0 = y0 + load_one(a, a0 + to) * w
                y1 = y1 + load_one(a, a1 + to) * w
                y2 = y2 + load_one(a, a2 + to) * w
                y3 = y3 + load_one(a, a3 + to) * w
                y4 = y4 + load_one(a, a4 + to) * w
                y5 = y5 + load_one(a, a5 + to) * w
                at += down
            store(y0, out, i * o + j * LANES)
            store(y1, out, i1 * o + j * LANES)
            store(y2, out, i2 * o + j * LANES)
            store(y3, out, i3 * o + j * LANES)
            store(y4, out, i4 * o + j * LANES)
            store(y5, out, i5 * o + j * LANES)


@functools.cache
def kernels(m):
    """The three for tiles of m x m outputs."""
    a = m + 2
    every = a + 1  # of the a a products, the one that goes to all of a tile: the point (1, 1)

    @kernel
    def transform_kernels(g, u):
        """U = G g G^T: (9, size) -> (a a, size)."""
        _transform_kernels(g, u, m, a)

    @kernel
    def forward(x, padding, u, bias, v, products, y):
        """y of a few images, by way of their tiles v (a a, n th tw, c) and the products."""
        grid = (y.shape[1] + m - 1) // m, (y.shape[2] + m - 1) // m
        _to_tiles("B^T", x.reshape(-1), x.shape, padding, v.reshape(-1), grid, a, m, a)
        c, panel = v.shape[2], v.shape[2] * LANES
        for p in range(a * a):
            _multiply(v[p].reshape(-1), (c, 1), u[p], (panel, LANES), products[p])
        for row in products[every]:
            row += bias
        _to_images("A", y.reshape(-1), y.shape, (0, 0), products.reshape(-1), grid, m, m, a)

    @kernel
    def backward(x, padding, u, dy, v, products, du, dx, dweight, dbias):
        """The gradient by a few images, and what these give to those by weight and bias."""
        grid = (dy.shape[1] + m - 1) // m, (dy.shape[2] + m - 1) // m
        _to_tiles("A", dy.reshape(-1), dy.shape, (0, 0), products.reshape(-1), grid, m, m, a)
        dbias[:] = 0
        for row in products[every]:
            dbias += row
        _to_tiles("B^T", x.reshape(-1), x.shape, padding, v.reshape(-1), grid, a, m, a)
        c, o = v.shape[2], products.shape[2]
        for p in range(a * a):
            dm = products[p].reshape(-1)
            _multiply(dm, (1, o), v[p].reshape(-1), (LANES, c), du[p])
            _multiply(dm, (o, 1), u[p], (o * LANES, LANES), v[p])
        _transform_kernels_adjoint(du, dweight, m, a)
        _to_images("B^T", dx.reshape(-1), dx.shape, padding, v.reshape(-1), grid, a, m, a)

    return transform_kernels, forward, backward
