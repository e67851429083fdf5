"""conv2d of 3x3 kernels and stride 1 in float32 by Winograd's minimal filtering, on BLAS alone.

As in `winograd`, with numpy's matrix products for the transforms too: T x T^T of a tile x, read row
by row, is the matrix kron(T, T) times the tile as a column. That takes more multiplications than
two transforms one after the other, but BLAS makes one product of all tiles and channels. This is
for where numba is not installed, and for channels that are no multiples of 16.
"""

import functools

import numpy as np

from tinygrad_nnfs.kernels import blas, memory, threads
from tinygrad_nnfs.kernels.shared_columns import channels_first, channels_last, is_plain
from tinygrad_nnfs.kernels.transforms import matrices, tile_size
from tinygrad_nnfs.ops.convolution import Geometry, conv2d
from tinygrad_nnfs.registry import once

TILES = 144  # that a piece of work holds, in whole images
# With fewer channels, or images for less than a piece, transforms take longer than they save.
CHANNELS = 32


def _applies(x, weight, bias=None, *, stride=1, dilation=1, groups=1, precision="fast", **_):
    return (
        precision == "fast"
        and x.dtype == np.float32
        and is_plain(x, weight, stride=stride, dilation=dilation, groups=groups)
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= threads.piece_size(CHANNELS)
        and x.size // x.shape[1] >= threads.piece_size(16 * TILES)
    )


@functools.cache
def _square(m, name):
    """kron(T, T) of B^T: (a a, a a), of G: (a a, 9), or of A: (a a, m m), a = m + 2."""
    matrix = matrices(m)[name]
    return np.kron(matrix, matrix).astype(np.float32)


def _framed(x, before, size, name):
    """(n, h, w, c) with zeros around it, `before` its first row and column, up to `size`."""
    n, h, w, c = x.shape
    if size == (h, w):
        return x
    top, left = before
    framed = threads.scratch(name, (n, *size, c), np.float32)
    framed[...] = 0
    framed[:, top : top + h, left : left + w] = x
    return framed


def _places(images, size, m, grid):
    """For each of the size x size elements of tiles, m apart, those of all tiles: views."""
    down, across = ((count - 1) * m + 1 for count in grid)
    for i in range(size):
        for j in range(size):
            yield images[:, i : i + down : m, j : j + across : m]


def _gathered(images, size, m, grid, name):
    """Tiles of size x size elements, (size size, n th tw c), in scratch memory."""
    n, _, _, c = images.shape
    tiles = threads.scratch(name, (size * size, n, *grid, c), np.float32)
    for tile, place in zip(tiles, _places(images, size, m, grid), strict=True):
        tile[...] = place
    return tiles.reshape(size * size, -1)


def _product(matrix, columns, name):
    """matrix @ columns, in scratch memory."""
    product = threads.scratch(name, (len(matrix), columns.shape[1]), np.float32)
    return np.matmul(matrix, columns, out=product)


@conv2d.on(np, when=_applies)
def conv2d_winograd_products(
    xp, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, precision="fast"
):
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    (ph, pw), (oh, ow) = geometry.padding, geometry.output_size
    n, c, h, w = x.shape
    o = len(weight)
    m, tiles = tile_size(oh, ow)
    a, grid = m + 2, (-(-oh // m), -(-ow // m))
    inside = grid[0] * m, grid[1] * m  # outputs of whole tiles, of which some may not exist
    around = inside[0] + 2, inside[1] + 2  # the inputs that they see
    pieces = threads.equal_pieces(n, max(1, TILES // tiles))

    images = channels_last(x)
    y = memory.empty((n, oh, ow, o), np.float32)

    def transformed(kernels):
        """U of kernels (rows, columns, 3, 3): (a a, columns, rows)."""
        rows, columns = kernels.shape[:2]
        taps = kernels.transpose(2, 3, 1, 0).reshape(9, -1)
        return blas.matmul(_square(m, "G"), taps).reshape(-1, columns, rows)

    def values_of(piece):
        """V, (a a, tiles, c)."""
        framed = _framed(images[piece], (ph, pw), around, "framed")
        v = _product(_square(m, "B^T"), _gathered(framed, a, m, grid, "tiles"), "v")
        return v.reshape(a * a, -1, c)

    def forward(piece, u):
        v = values_of(piece)
        products = threads.scratch("products", (a * a, v.shape[1], o), np.float32)
        np.matmul(v, u, out=products)
        if bias is not None:
            products[a + 1] += bias  # the point (1, 1), which goes to all outputs of a tile
        results = _product(_square(m, "A").T, products.reshape(a * a, -1), "tiles")
        for result, place in zip(results, _places(y[piece], m, m, grid), strict=True):
            result = result.reshape(-1, *grid, o)
            place[...] = result[:, : place.shape[1], : place.shape[2]]

    threads.run(functools.partial(forward, u=transformed(weight)), pieces)

    @once
    def gradients(dy):
        """By images, by weight and bias of each piece, together: they share the transform of dy."""
        dy = channels_last(dy)
        dimages = memory.empty(images.shape, np.float32)
        dweights = np.empty((len(pieces), 9, c * o), np.float32)
        dbiases = np.empty((len(pieces), o), np.float32)
        u = transformed(weight.swapaxes(0, 1))  # BLAS is faster than with a transposed view

        def backward(i):
            piece = pieces[i]
            v = values_of(piece)
            framed = _framed(dy[piece], (0, 0), inside, "framed")
            products = _product(_square(m, "A"), _gathered(framed, m, m, grid, "tiles"), "products")
            products = products.reshape(a * a, -1, o)
            dbiases[i] = products[a + 1].sum(axis=0)
            du = threads.scratch("du", (a * a, c, o), np.float32)
            np.matmul(v.swapaxes(1, 2), products, out=du)
            np.matmul(_square(m, "G").T, du.reshape(a * a, -1), out=dweights[i])
            np.matmul(products, u, out=v)
            shares = _product(_square(m, "B^T").T, v.reshape(a * a, -1), "tiles")
            total = threads.scratch("framed", (len(v[0]) // tiles, *around, c), np.float32)
            total[...] = 0
            for share, place in zip(shares, _places(total, a, m, grid), strict=True):
                place += share.reshape(place.shape)
            dimages[piece] = total[:, ph : ph + h, pw : pw + w]

        threads.run(backward, range(len(pieces)))
        return dimages, dweights, dbiases

    def dx(dy):
        return channels_first(gradients(dy)[0])

    def dweight(dy):
        gradient = gradients(dy)[1].sum(axis=0).reshape(3, 3, c, o)
        return np.ascontiguousarray(gradient.transpose(3, 2, 0, 1))

    def dbias(dy):
        return gradients(dy)[2].sum(axis=0)

    return channels_first(y), dx, dweight, None if bias is None else dbias
