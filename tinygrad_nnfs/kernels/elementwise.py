"""leaky_relu, dropout and 2x2 max-pooling of large arrays on numpy: in pieces that fit a cache.

A pass of numpy over an array larger than the caches waits for memory. Cut into pieces, all passes
but the first find their piece in the cache, and the pieces can go to several threads.
"""

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.ops.activation import leaky_relu
from tinygrad_nnfs.ops.convolution import pair
from tinygrad_nnfs.ops.dropout import dropout
from tinygrad_nnfs.ops.pooling import max_pool2d

SIZE = 2**16  # elements of a piece: 256 KiB in float32


def _is_large(x, **_):
    return threads.is_large(x.size)


def _flat(array, like=None):
    """All elements in the memory order of `like`: a view, or a copy where that is needed."""
    if like is not None and array.strides != like.strides:
        ordered = memory.empty_like(like, dtype=array.dtype)
        ordered[...] = array
        array = ordered
    return array.ravel(order="K")


@leaky_relu.on(np, when=_is_large)
def leaky_relu_in_pieces(xp, x, *, slope=0.01):
    y = memory.empty_like(x)
    flat_x, flat_y = _flat(x), _flat(y)
    larger = np.maximum if slope <= 1 else np.minimum

    def forward(piece):
        np.multiply(flat_x[piece], slope, out=flat_y[piece])
        larger(flat_x[piece], flat_y[piece], out=flat_y[piece])

    threads.run(forward, threads.pieces(x.size, SIZE))
    signed = y if slope >= 0 else x

    def dx(dy):
        gradient = memory.empty_like(signed)
        flat_signed, flat_dy, flat_dx = _flat(signed), _flat(dy, like=signed), _flat(gradient)

        def backward(piece):
            factor = flat_dx[piece]
            np.multiply(flat_signed[piece] > 0, dy.dtype.type(1 - slope), out=factor)
            factor += dy.dtype.type(slope)
            factor *= flat_dy[piece]

        threads.run(backward, threads.pieces(dy.size, SIZE))
        return gradient

    return y, dx


@dropout.on(np, when=_is_large)
def dropout_in_pieces(xp, x, *, p, key):
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], found {p}")
    bits = memory.empty((x.size,), np.uint16)

    def draw(piece):
        bits[piece] = backend.random_bits(np, key, (piece.stop - piece.start,), skip=piece.start)

    threads.run(draw, threads.pieces(x.size, SIZE))
    keep = memory.empty_like(x, dtype=bool)
    scale = 1 / (1 - p) if p < 1 else 0.0
    # by the axis that is the outermost in memory
    outermost = int(np.argmax(keep.strides))
    sources = np.moveaxis(bits.reshape(x.shape), outermost, 0)
    targets = np.moveaxis(keep, outermost, 0)

    def compare(piece):
        np.greater_equal(sources[piece], round(p * 2**16), out=targets[piece])

    threads.run(compare, threads.pieces(len(targets), 1))

    def drop(values):
        kept = memory.empty_like(keep, dtype=values.dtype)
        flat_values, flat_keep, flat_kept = _flat(values, like=kept), _flat(keep), _flat(kept)

        def work(piece):
            np.multiply(flat_values[piece], flat_keep[piece], out=flat_kept[piece])
            flat_kept[piece] *= scale

        threads.run(work, threads.pieces(values.size, SIZE))
        return kept

    return drop(x), drop


def _halves(x, *, kernel_size, stride=None, padding=0):
    """Windows of 2x2 that cover the image without overlap or rest."""
    return (
        x.ndim == 4
        and threads.is_large(x.size)
        and pair("kernel_size", kernel_size, 1) == (2, 2)
        and (stride is None or pair("stride", stride, 1) == (2, 2))
        and pair("padding", padding, 0) == (0, 0)
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
    )


@max_pool2d.on(np, when=_halves)
def max_pool2d_by_halves(xp, x, *, kernel_size, stride=None, padding=0):
    """Columns compete first, then rows, so that the first of equals in row order wins."""
    n, c, h, w = x.shape
    order = sorted(range(4), key=lambda axis: -x.strides[axis])  # axes from outermost to innermost

    def empty(height, width, dtype):
        """An array (n, c, height, width) in x's memory order."""
        shape = (n, c, height, width)
        dense = memory.empty(tuple(shape[axis] for axis in order), dtype)
        return dense.transpose(np.argsort(order))

    y = empty(h // 2, w // 2, x.dtype)
    right = empty(h, w // 2, bool)  # does the right one of two win?
    lower = empty(h // 2, w // 2, bool)

    def forward(rows):
        pairs = slice(2 * rows.start, 2 * rows.stop)
        a, b = x[:, :, pairs, 0::2], x[:, :, pairs, 1::2]
        np.greater(b, a, out=right[:, :, pairs])
        winners = np.maximum(a, b)
        a, b = winners[:, :, 0::2], winners[:, :, 1::2]
        np.greater(b, a, out=lower[:, :, rows])
        np.maximum(a, b, out=y[:, :, rows])

    threads.run(forward, threads.pieces(h // 2, 1))

    def dx(dy):
        gradient = empty(h, w, dy.dtype)

        def backward(rows):
            pairs = slice(2 * rows.start, 2 * rows.stop)
            winners = np.empty_like(gradient[:, :, pairs, 0::2])
            a, b = winners[:, :, 0::2], winners[:, :, 1::2]
            np.multiply(dy[:, :, rows], lower[:, :, rows], out=b)
            np.subtract(dy[:, :, rows], b, out=a)
            a, b = gradient[:, :, pairs, 0::2], gradient[:, :, pairs, 1::2]
            np.multiply(winners, right[:, :, pairs], out=b)
            np.subtract(winners, b, out=a)

        threads.run(backward, threads.pieces(h // 2, 1))
        return gradient

    return y, dx
