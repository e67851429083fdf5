"""Winograd convolution F(m x m, 3x3) of a few images, compiled by numba.

A tile of m x m outputs is computed from a x a inputs, a = m + 2, and tiles stand m pixels apart;
beyond the image are zeros. Images are (n, h, w, c), tiles (a a, n th tw c + LANES), and kernels in
the same way: the last LANES of a row are unused, without them the elements of a tile would all fall
into the same few lines of a cache. A transform (see compiled_transforms) is done along the columns
of a tile and then along its rows, for LANES channels at a time. m is 4 or 5.
"""

import numpy as np

from tinygrad_nnfs.kernels.compiled_lanes import fill, load, load_row, store, store_row
from tinygrad_nnfs.kernels.compiled_parallel import parallel_for, piece_size
from tinygrad_nnfs.kernels.compiled_products import add_rows, multiply
from tinygrad_nnfs.kernels.compiled_transforms import transform, transform_transposed
from tinygrad_nnfs.kernels.compiler import inline, kernel
from tinygrad_nnfs.kernels.loops import LANES

PANELS = 32  # of LANES kernels that are transformed at a time


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
    """T x T^T of the windows x of size x size pixels, m apart: images, as a flat array -> tiles.

    `name` says which matrix T is, `grid` how many tiles an image has, down and across.
    """
    n, _, width, channels = shape
    (ph, pw), (th, tw) = padding, grid
    plane = tiles.shape[1]  # from one of the a a to the next
    tiles = tiles.reshape(-1)
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
    plane = tiles.shape[1]
    tiles = tiles.reshape(-1)
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
def _kernels_to_tiles(g, u, first, last, m, a):
    """U = G g G^T, for some columns of (9, size) -> (a a, size + LANES)."""
    size, plane = g.shape[1], u.shape[1]
    g, u = g.reshape(-1), u.reshape(-1)
    half = np.empty(3 * a * LANES, np.float32)  # G g: a rows of 3
    for at in range(first, last, LANES):
        for k in range(3):
            values = transform("G", m, load_row(g, k * size + at, 3 * size, 3))
            store_row(values, half, k * LANES, 3 * LANES)
        for k in range(a):
            values = transform("G", m, load_row(half, 3 * k * LANES, LANES, 3))
            store_row(values, u, a * k * plane + at, plane)


@inline
def _tiles_to_kernels(u, g, m, a):
    """The transpose of _kernels_to_tiles: (a a, size + LANES) -> (9, size)."""
    size, plane = g.shape[1], u.shape[1]
    g, u = g.reshape(-1), u.reshape(-1)
    half = np.empty(3 * a * LANES, np.float32)  # G^T u: 3 rows of a
    for at in range(0, size, LANES):
        for k in range(a):
            values = transform_transposed("G", m, load_row(u, k * plane + at, a * plane, a))
            store_row(values, half, k * LANES, a * LANES)
        for k in range(3):
            values = transform_transposed("G", m, load_row(half, a * k * LANES, LANES, a))
            store_row(values, g, 3 * k * size + at, size)


@inline
def _forward_by_tiles(x, padding, u, bias, v, products, y, m, a):
    (n, oh, ow, o), c = y.shape, x.shape[3]
    grid = (oh + m - 1) // m, (ow + m - 1) // m
    tiles = n * grid[0] * grid[1]
    _to_tiles("B^T", x.reshape(-1), x.shape, padding, v, grid, a, m, a)
    shape, panels, nothing = (tiles, c, o), (c * LANES, LANES), np.zeros(o, np.float32)
    for p in range(a * a):
        start = bias if p == a + 1 else nothing  # of these, the one that goes to all of a tile
        multiply(shape, v[p], (c, 1), u[p], panels, start, 0, products[p], o)
    _to_images("A", y.reshape(-1), y.shape, (0, 0), products, grid, m, m, a)


@inline
def _backward_by_tiles(x, padding, u, dy, v, products, du, dx, dweight, dbias, m, a):
    (n, oh, ow, o), c = dy.shape, x.shape[3]
    grid = (oh + m - 1) // m, (ow + m - 1) // m
    tiles = n * grid[0] * grid[1]
    _to_tiles("A", dy.reshape(-1), dy.shape, (0, 0), products, grid, m, m, a)
    dbias[:] = 0
    add_rows(products[a + 1][: tiles * o], dbias)
    _to_tiles("B^T", x.reshape(-1), x.shape, padding, v, grid, a, m, a)
    nothing = np.zeros(c, np.float32)
    for p in range(a * a):
        dm, panels = products[p], (o * LANES, LANES)
        multiply((o, tiles, c), dm, (1, o), v[p], (LANES, c), nothing, 0, du[p], c)
        multiply((tiles, o, c), dm, (o, 1), u[p], panels, nothing, 0, v[p], c)
    _tiles_to_kernels(du, dweight, m, a)
    _to_images("B^T", dx.reshape(-1), dx.shape, padding, v, grid, a, m, a)


# For the compiler m and a are numbers, with which it leaves no loop over the elements of a tile.


@kernel
def _transform_kernels(m, g, u, worker, first, last):
    if m == 4:
        _kernels_to_tiles(g, u, first, last, 4, 6)
    else:
        _kernels_to_tiles(g, u, first, last, 5, 7)


@kernel
def _forward(m, x, padding, u, bias, v, products, y, worker, first, last):
    x, v, products, y = x[first:last], v[worker], products[worker], y[first:last]
    if m == 4:
        _forward_by_tiles(x, padding, u, bias, v, products, y, 4, 6)
    else:
        _forward_by_tiles(x, padding, u, bias, v, products, y, 5, 7)


@kernel
def _backward(arrays, scratch, gradients, m, padding, step, worker, first, last):
    x, u, dy = arrays
    v, products, du = scratch
    dx, dweights, dbiases = gradients
    x, dy, dx = x[first:last], dy[first:last], dx[first:last]
    v, products, du = v[worker], products[worker], du[worker]
    dweight, dbias = dweights[first // step], dbiases[first // step]
    if m == 4:
        _backward_by_tiles(x, padding, u, dy, v, products, du, dx, dweight, dbias, 4, 6)
    else:
        _backward_by_tiles(x, padding, u, dy, v, products, du, dx, dweight, dbias, 5, 7)


@kernel
def transform_kernels(team, m, g, u):
    """U = G g G^T: (9, size) -> (a a, size + LANES), size a multiple of LANES."""
    step = LANES * piece_size(team, PANELS)
    parallel_for(team, _transform_kernels, (m, g, u), g.shape[1], step)


@kernel
def forward(team, step, m, x, padding, u, bias, v, products, y):
    """y of images, `step` at a time, by way of a worker's tiles v and products."""
    parallel_for(team, _forward, (m, x, padding, u, bias, v, products, y), len(x), step)


@kernel
def backward(team, step, m, x, padding, u, dy, v, products, du, dx, dweights, dbiases):
    """The gradient by the images, and what each piece gives to those by weight and bias."""
    arrays, scratch, gradients = (x, u, dy), (v, products, du), (dx, dweights, dbiases)
    arguments = arrays, scratch, gradients, m, padding, step
    parallel_for(team, _backward, arguments, len(x), step)
