"""leaky_relu, dropout and 2x2 max-pooling on numpy: in one pass by numba, else in pieces.

A pass of numpy over an array larger than the caches waits for memory. Cut into pieces, all passes
but the first find their piece in the cache. Either way the pieces go to several threads.
"""

import numpy as np

from tinygrad_nnfs.kernels import loops, memory, threads
from tinygrad_nnfs.kernels.shared_columns import channels_first, channels_last
from tinygrad_nnfs.ops.activation import check_number, leaky_relu
from tinygrad_nnfs.ops.convolution import pair
from tinygrad_nnfs.ops.dropout import check_dropout, dropout
from tinygrad_nnfs.ops.pooling import max_pool2d


def _is_worth_it(x, **_):
    if loops.numba_is_installed():
        return x.dtype in loops.COMPILED
    return threads.is_large(x.size)


def _run(name, inputs, outputs, *settings):
    """The loop `name` over arrays of one shape; the outputs are dense and of one memory order."""
    like = outputs[0]
    in_rows = like.flags.c_contiguous
    if in_rows and like.ndim and loops.numba_is_installed():
        # it flattens them itself, which takes longer in Python (those of 0-d it cannot)
        loops.run(name, like.size, *inputs, *outputs, *settings)
        return
    arrays = inputs if in_rows else [_in_order_of(like, array) for array in inputs]
    flat = [array.ravel("C" if in_rows else "K") for array in (*arrays, *outputs)]
    loops.run_in_pieces(name, like.size, flat, *settings)


def _in_order_of(like, array):
    """`array`, or where its elements lie in another order than those of `like`, a copy."""
    if _steps(array) == _steps(like):
        return array
    ordered = memory.empty_like(like, array.dtype)
    ordered[...] = array
    return ordered


def _steps(array):
    """The strides, in elements."""
    return [stride // array.itemsize for stride in array.strides]


@leaky_relu.on(np, when=_is_worth_it)
def leaky_relu_in_pieces(xp, x, *, slope=0.01):
    check_number("slope", slope)
    y, positive = memory.empty_like(x), memory.empty_like(x, bool)
    _run("leaky_relu", [x], [y, positive], slope)

    def dx(dy):  # saves `positive` alone: a quarter of x's memory, or of y's
        gradient = memory.empty_like(positive, dy.dtype)
        _run("leaky_relu_gradient", [positive, dy], [gradient], slope)
        return gradient

    return y, dx


def _lies_in_order_of_bits(x, *, p, key):
    in_order = x if x.ndim != 4 else x.transpose(0, 2, 3, 1)
    return _is_worth_it(x) and in_order.flags.c_contiguous


@dropout.on(np, when=_lies_in_order_of_bits)
def dropout_in_pieces(xp, x, *, p, key):
    check_dropout(p, key)
    keep, y = memory.empty_like(x, bool), memory.empty_like(x)
    least, scale = round(p * 2**16), 1 / (1 - p) if p < 1 else 0.0
    seed, call = key
    # numba takes all of Python's integers for signed ones of 64 bits
    settings = (seed ^ 2**63) - 2**63, (call ^ 2**63) - 2**63, least, scale
    arrays = [x, keep, y]
    if not (x.flags.c_contiguous and x.ndim and loops.numba_is_installed()):
        arrays = [array.ravel("K") for array in arrays]

    def drop(piece):
        loops.run("dropout", x.size, *arrays, *settings, piece.start, piece.stop)

    if loops.numba_is_installed():
        drop(slice(0, x.size))
    else:
        threads.run(drop, threads.pieces(x.size, loops.SIZE))

    def dx(dy):
        gradient = memory.empty_like(keep, dy.dtype)
        _run("keep_scaled", [dy, keep], [gradient], scale)
        return gradient

    return y, dx


def _is_quarters(x, *, kernel_size, stride=None, padding=0):
    """Windows of 2x2 that cover large images, channels last, without overlap or rest."""
    return (
        x.ndim == 4
        and x.size > 0
        and _is_worth_it(x)
        and x.transpose(0, 2, 3, 1).flags.c_contiguous
        and pair("kernel_size", kernel_size, 1) == (2, 2)
        and (stride is None or pair("stride", stride, 1) == (2, 2))
        and pair("padding", padding, 0) == (0, 0)
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
    )


@max_pool2d.on(np, when=_is_quarters)
def max_pool2d_by_quarters(xp, x, *, kernel_size, stride=None, padding=0):
    images = channels_last(x)
    n, h, w, c = images.shape
    y = memory.empty((n, h // 2, w // 2, c), x.dtype)
    winner = memory.empty(y.shape, np.int8)
    loops.run_in_pieces("max_pool", x.size, [images, y, winner])

    def dx(dy):
        dy = channels_last(dy)
        gradient = memory.empty((n, h, w, c), dy.dtype)
        loops.run_in_pieces("max_pool_gradient", gradient.size, [dy, winner, gradient])
        return channels_first(gradient)

    return channels_first(y), dx
