"""conv2d of stride 1 on numpy: columns of pixels shared instead of windows copied.

im2col copies every pixel kh kw times. Here the images lie in memory as (n, h, w, c), and only kh
copies are made: a column holds the kh pixels that the window's columns are made of.

    columns (n oh, w, kh c)      one image row of outputs: columns 0 1 2 3 ... w - 1
    window at 0                  columns 0, 1, 2
    window at 1                  columns 1, 2, 3        a view: the windows overlap in memory

So the windows at one horizontal position, of all rows of outputs, are a matrix (n oh, kw kh c), and
the convolution is one matrix product for each position. Shapes stay logically (n, c, h, w): the
results are transposed views (PyTorch's channels_last), and elementwise ops keep their memory order,
so that everything up to the next convolution runs in it without knowing.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.ops.convolution import Geometry, check_precision, conv2d, pair
from tinygrad_nnfs.registry import once

# Elements that a piece of work reads and writes, in whole images. For each product BLAS rearranges
# the kernels, which weighs the more the fewer rows there are: half of this is slower by a sixth,
# although it fits a smaller cache.
SIZE = 2**19


def is_plain(x, weight, *, stride, dilation, groups):
    """Stride 1, no dilation, no groups, and something to compute."""
    plain = pair("stride", stride, 1) == pair("dilation", dilation, 1) == (1, 1) and groups == 1
    return plain and x.ndim == weight.ndim == 4 and x.size > 0 and weight.size > 0


def _applies(x, weight, bias=None, *, stride=1, dilation=1, groups=1, **_):
    return is_plain(x, weight, stride=stride, dilation=dilation, groups=groups)


def channels_last(x):
    """(n, c, h, w) as (n, h, w, c) in C order: a view where it lies so in memory already."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_first(x):
    """(n, h, w, c) as (n, c, h, w): a view."""
    return x.transpose(0, 3, 1, 2)


def pad(x, padding, name=None):
    """(n, h, w, c) with zeros around h and w, in scratch memory if it has a `name`."""
    ph, pw = padding
    if ph == pw == 0:
        return x
    n, h, w, c = x.shape
    shape = (n, h + 2 * ph, w + 2 * pw, c)
    padded = threads.scratch(name, shape, x.dtype) if name else np.empty(shape, x.dtype)
    padded[:, :ph] = padded[:, ph + h :] = 0
    padded[:, ph : ph + h, :pw] = padded[:, ph : ph + h, pw + w :] = 0
    padded[:, ph : ph + h, pw : pw + w] = x
    return padded


def _columns(x, kh):
    """(n, h, w, c) -> (n, oh, w, kh c), in scratch memory."""
    n, h, w, c = x.shape
    oh = h - kh + 1
    columns = threads.scratch("columns", (n, oh, w, kh, c), x.dtype)
    for u in range(kh):
        columns[:, :, :, u] = x[:, u : u + oh]
    return columns.reshape(n, oh, w, kh * c)


def _windows(columns, kw):
    """(n, oh, w, k) -> (ow, n oh, kw k): for each position a matrix; a view, not to be written."""
    n, oh, w, k = columns.shape
    shape, item = (w - kw + 1, n * oh, kw * k), columns.itemsize
    return as_strided(columns, shape, (k * item, w * k * item, item), writeable=False)


def _by_position(y):
    """(n, oh, ow, o) -> (ow, n oh, o): a view."""
    n, oh, ow, o = y.shape
    return y.reshape(n * oh, ow, o).transpose(1, 0, 2)


@conv2d.on(np, when=_applies)
def conv2d_shared_columns(
    xp, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, precision="fast"
):
    check_precision(precision)
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    n = len(x)
    o, c, kh, kw = weight.shape
    oh, ow = geometry.output_size
    h, w = oh + kh - 1, ow + kw - 1
    ph, pw = geometry.padding
    dtype = x.dtype
    most = max(1, SIZE // (oh * w * kh * c + oh * ow * o))
    number = 2 * -(-n // (2 * most))  # even, for two threads to end together
    pieces = threads.pieces(n, -(-n // number))

    kernels = weight.transpose(3, 2, 1, 0).reshape(kw * kh * c, o)
    images = channels_last(x)
    y = memory.empty((n, oh, ow, o), dtype)

    def windows_of(piece):
        return _windows(_columns(pad(images[piece], geometry.padding, "padded"), kh), kw)

    def forward(piece):
        np.matmul(windows_of(piece), kernels, out=_by_position(y[piece]))
        if bias is not None:
            y[piece] += bias

    threads.run(forward, pieces)

    def dx(dy):
        # the transpose, by the same means: kernels back to front; the product holds kh parts, and
        # the u-th belongs u rows further down
        dy = channels_last(dy)
        reversed_kernels = weight[:, :, :, ::-1].transpose(3, 0, 2, 1).reshape(kw * o, kh * c)
        gradient = memory.empty((n, h, w, c), dtype)
        # near the left and the right edge some of the kw outputs that saw a column do not exist
        edges = [*range(kw - 1), *range(max(ow, kw - 1), w)]

        def backward(piece):
            size = piece.stop - piece.start
            parts = threads.scratch("parts", (size, oh, w, kh, c), dtype)
            by_position = _by_position(parts.reshape(size, oh, w, kh * c))
            if ow >= kw:
                windows = _windows(dy[piece], kw)
                np.matmul(windows, reversed_kernels, out=by_position[kw - 1 : ow])
            rows = dy[piece].reshape(size * oh, ow * o)
            for j in edges:
                start = j - kw + 1
                first, last = max(0, start), min(j + 1, ow)
                taps = reversed_kernels[(first - start) * o : (last - start) * o]
                np.matmul(rows[:, first * o : last * o], taps, out=by_position[j])
            gradient[piece, :oh] = parts[:, :, :, 0]
            gradient[piece, oh:] = 0
            for u in range(1, kh):
                gradient[piece, u : u + oh] += parts[:, :, :, u]

        threads.run(backward, pieces)
        return channels_first(gradient[:, ph : h - ph, pw : w - pw])

    @once
    def gradients(dy):
        dy = channels_last(dy)
        dweights = np.empty((len(pieces), kw * kh * c, o), dtype)
        dbiases = np.empty((len(pieces), o), dtype)

        def backward(i):
            windows, part = windows_of(pieces[i]), dy[pieces[i]]
            products = threads.scratch("products", (ow, kw * kh * c, o), dtype)
            np.matmul(windows.transpose(0, 2, 1), _by_position(part), out=products)
            products.sum(axis=0, out=dweights[i])
            if bias is not None:
                rows = part.reshape(-1, o)
                np.matmul(np.ones(len(rows), dtype), rows, out=dbiases[i])  # faster than a sum

        threads.run(backward, range(len(pieces)))
        return dweights, dbiases

    def dweight(dy):
        gradient = gradients(dy)[0].sum(axis=0).reshape(kw, kh, c, o)
        return np.ascontiguousarray(gradient.transpose(3, 2, 1, 0))

    def dbias(dy):
        return gradients(dy)[1].sum(axis=0)

    return channels_first(y), dx, dweight, None if bias is None else dbias
