"""conv2d of stride 1 on numpy: rows shared instead of windows copied.

im2col copies every pixel kh kw times. Here the images lie in memory as (h, c, w, n), and only kw
copies are made, the j-th shifted left by j columns:

    shifted (h, kw c, ow n)      bands (oh, kh kw c, ow n)
    row 0  ------------          band 0 = rows 0, 1, 2
    row 1  ------------          band 1 = rows 1, 2, 3      a view: the bands overlap in memory
    row 2  ------------          ...

A band holds all that one row of outputs is computed from, in the order of a matrix, so that the
convolution is one batched matrix product over the bands. Shapes stay logically (n, c, h, w): the
results are transposed views, and numpy's elementwise functions keep their memory order, so that
everything up to the next convolution runs in it without knowing.
"""

import math
import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinygrad_nnfs.ops.convolution import Geometry, conv2d, pair


def _applies(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    del bias, padding
    plain = pair("stride", stride, 1) == pair("dilation", dilation, 1) == (1, 1) and groups == 1
    return plain and x.ndim == weight.ndim == 4 and x.size > 0 and weight.size > 0


_memory = threading.local()


def _scratch(name, shape, dtype):
    """An array with any content, for use until this thread next asks for `name`.

    Fresh memory of this size costs a page fault every 4 KiB, as much time as filling it. Only what
    dies inside one call may live here. A thread keeps its largest block of each name until it ends.
    """
    size = math.prod(shape) * dtype.itemsize
    block = getattr(_memory, name, None)
    if block is None or block.nbytes < size:
        block = np.empty(size, np.uint8)
        setattr(_memory, name, block)
    return block[:size].view(dtype).reshape(shape)


def _shift(x, kw):
    """(h, c, w, n) -> (h, kw c, ow n): kw copies, the j-th without its first j columns."""
    h, c, w, n = x.shape
    ow = w - kw + 1
    shifted = _scratch("shifted", (h, kw, c, ow, n), x.dtype)
    for j in range(kw):
        shifted[:, j] = x[:, :, j : j + ow]
    return shifted.reshape(h, kw * c, ow * n)


def _bands(rows, kh):
    """(h, r, l) -> (h - kh + 1, kh r, l): each kh rows as one matrix; a view, not to be written."""
    h, r, length = rows.shape
    shape = (h - kh + 1, kh * r, length)
    return as_strided(rows, shape, rows.strides, writeable=False)


def _pad_rows(x, padding):
    """(n, c, h, w) in any memory order -> (h, c, w, n), with zeros around h and w."""
    x = x.transpose(2, 1, 3, 0)
    if padding == (0, 0):
        return x
    ph, pw = padding
    h, c, w, n = x.shape
    padded = np.zeros((h + 2 * ph, c, w + 2 * pw, n), x.dtype)
    padded[ph : ph + h, :, pw : pw + w] = x
    return padded


@conv2d.on(np, when=_applies)
def conv2d_shared_rows(xp, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    n = len(x)
    o, c, kh, kw = weight.shape
    oh, ow = geometry.output_size

    kernels = weight.transpose(0, 2, 3, 1).reshape(o, kh * kw * c)
    y = np.matmul(kernels, _bands(_shift(_pad_rows(x, geometry.padding), kw), kh))
    y = y.reshape(oh, o, ow, n)
    if bias is not None:
        y += bias[:, None, None]

    def rows(dy):  # (n, o, oh, ow) -> (oh, o, ow n)
        return dy.transpose(2, 1, 3, 0).reshape(oh, o, ow * n)

    def dx(dy):
        # the transpose, by the same means: row i of dx takes rows i-kh+1..i of dy, kernels upside
        # down; the product holds kw parts, and the j-th belongs j columns to the right
        h, w = oh + kh - 1, ow + kw - 1
        padded = _scratch("padded", (h + kh - 1, o, ow * n), dy.dtype)
        padded[: kh - 1] = padded[h:] = 0
        padded[kh - 1 : h] = rows(dy)
        upside_down = weight[:, :, ::-1].transpose(3, 1, 2, 0).reshape(kw * c, kh * o)
        parts = _scratch("parts", (h, kw * c, ow * n), dy.dtype)
        np.matmul(upside_down, _bands(padded, kh), out=parts)
        parts = parts.reshape(h, kw, c, ow, n)
        gradient = np.zeros((h, c, w, n), dy.dtype)
        for j in range(kw):
            gradient[:, :, j : j + ow] += parts[:, j]
        ph, pw = geometry.padding
        return gradient[ph : h - ph, :, pw : w - pw].transpose(3, 1, 0, 2)

    def dweight(dy):
        bands = _bands(_shift(_pad_rows(x, geometry.padding), kw), kh)
        gradient = np.matmul(rows(dy), bands.transpose(0, 2, 1)).sum(axis=0)
        return np.ascontiguousarray(gradient.reshape(o, kh, kw, c).transpose(0, 3, 1, 2))

    def dbias(dy):
        return rows(dy).sum(axis=(0, 2))

    return y.transpose(3, 1, 0, 2), dx, dweight, None if bias is None else dbias
