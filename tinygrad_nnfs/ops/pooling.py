"""Pooling over windows of images (n, c, h, w)."""

import itertools
from typing import Any

from tinygrad_nnfs.ops.convolution import crop, output_size, pad_image, pair, window_slices
from tinygrad_nnfs.registry import Float, op


def pooling_geometry(kernel_size: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], ...]:
    """Kernel, stride and padding as pairs, checked."""
    kernel, padding = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
    stride = kernel if stride is None else pair("stride", stride, 1)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the kernel {kernel}")
    return kernel, stride, padding


def _windows(x, kernel_size, stride, padding):
    """Kernel, padding, the elements under each place of the kernel, and do windows overlap."""
    kernel, stride, padding = pooling_geometry(kernel_size, stride, padding)
    size = output_size(x.shape, kernel, stride, padding, (1, 1))
    places = [window_slices(i, j, size, stride) for i, j in itertools.product(*map(range, kernel))]
    overlap = any(s < k for s, k in zip(stride, kernel, strict=True))
    return kernel, padding, places, overlap


@op
def max_pool2d(xp, x: Float, *, kernel_size, stride=None, padding=0):
    """The largest element of each window: (n, c, h, w) -> (n, c, oh, ow).

    `stride` is the kernel's size unless given; windows may overlap. Padding counts as -inf. Among
    equal elements of a window the first, in row order, gets the gradient.

    dx[n, c, p, q] = the sum of dy over the windows whose first maximum is x[n, c, p, q]
    """
    _, padding, places, overlap = _windows(x, kernel_size, stride, padding)
    if 0 in x.shape[2:]:
        raise ValueError("an image without pixels has no largest element")
    padded = pad_image(xp, x, padding, -xp.inf)
    y = padded[places[0]].copy(order="K")
    for place in places[1:]:
        xp.maximum(y, padded[place], out=y)

    def dx(dy):
        padded = pad_image(xp, x, padding, -xp.inf)
        gradient = xp.zeros_like(padded)
        free = xp.ones_like(y, dtype=bool)  # windows whose maximum has not been met yet
        for place in places:
            first = (padded[place] == y) | xp.isnan(padded[place])  # a NaN is the largest of all
            first &= free
            free ^= first
            if overlap:
                gradient[place] += dy * first
            else:  # a choice by the mask (where) would take ten times as long as this product
                xp.multiply(dy, first, out=gradient[place])
        return crop(gradient, padding)

    return y, dx


@max_pool2d.samples
def _(draw):
    yield draw.case(draw.distinct(*draw.sizes(2), 4, 6), kernel_size=2)
    k, s = draw.sizes(2, largest=3)
    h, w = draw.integer(k, 6), draw.integer(k, 6)
    x = draw.distinct(draw.integer(0, 2), *draw.sizes(1), h, w)
    yield draw.case(x, kernel_size=k, stride=s, padding=draw.integer(0, k // 2))
    yield draw.case(x, kernel_size=(k, 1), stride=(s, 2))
    yield draw.case(draw.tied(*x.shape), kernel_size=k, stride=s, padding=k // 2)


@op(saves=0)
def avg_pool2d(xp, x: Float, *, kernel_size, stride=None, padding=0):
    """The mean of each window: (n, c, h, w) -> (n, c, oh, ow).

    `stride` is the kernel's size unless given. Padding counts as zeros that are part of the mean.

    dx[n, c, p, q] = the sum of dy / (kh kw) over the windows that x[n, c, p, q] is in
    """
    kernel, padding, places, _ = _windows(x, kernel_size, stride, padding)
    area = kernel[0] * kernel[1]
    padded = pad_image(xp, x, padding, 0)
    y = padded[places[0]].copy(order="K")
    for place in places[1:]:
        y += padded[place]
    y /= area
    shape = padded.shape

    def dx(dy):
        gradient = xp.zeros(shape, dy.dtype)
        part = dy / area
        for place in places:
            gradient[place] += part
        return crop(gradient, padding)

    return y, dx


@avg_pool2d.samples
def _(draw):
    k, s = draw.sizes(2, largest=3)
    h, w = draw.integer(k, 6), draw.integer(k, 6)
    x = draw.normal(draw.integer(0, 2), *draw.sizes(1), h, w)
    yield draw.case(x, kernel_size=k)
    yield draw.case(x, kernel_size=k, stride=s, padding=draw.integer(0, k // 2))
    yield draw.case(x, kernel_size=(k, 1), stride=(s, 2))
