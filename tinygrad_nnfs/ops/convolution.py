"""Two-dimensional convolution (cross-correlation, as every framework calls it) of images.

Forward and gradients are one matrix product each. im2col lays the window under each output
position out as a column, so that the convolution is `kernels @ columns`; col2im, its transpose,
adds columns back to where they came from. Sizes that stand side by side in a shape, as in
(g, n oh ow), are one axis.
"""

import itertools
import math
import operator
from typing import Any

from tinygrad_nnfs.registry import Float, op

# -- geometry, shared with pooling -----------------------------------------------------------------


def pair(name: str, value: Any, smallest: int) -> tuple[int, int]:
    """An int, or a pair of ints for height and width, as a pair."""
    values = value if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2 or not all(hasattr(v, "__index__") and v >= smallest for v in values):
        raise ValueError(f"{name} must be an integer >= {smallest}, or two, found {value!r}")
    return operator.index(values[0]), operator.index(values[1])


def output_size(shape, kernel, stride, padding, dilation):
    """(oh, ow): how many window positions fit into images of `shape` (n, c, h, w)."""
    if len(shape) != 4:
        raise ValueError("x must be images (n, channels, height, width)")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    room = [n + 2 * p for n, p in zip(shape[2:], padding, strict=True)]
    if any(r > n for r, n in zip(reach, room, strict=True)):
        raise ValueError(
            f"a window of {reach[0]}x{reach[1]} does not fit the padded image {room[0]}x{room[1]}"
        )
    return tuple((n - r) // s + 1 for n, r, s in zip(room, reach, stride, strict=True))


def window_slices(i, j, size, stride):
    """What lies under offset (i, j) of every window: an index into padded images."""
    return (
        slice(None),
        slice(None),
        slice(i, i + (size[0] - 1) * stride[0] + 1, stride[0]),
        slice(j, j + (size[1] - 1) * stride[1] + 1, stride[1]),
    )


def pad_image(xp, x, padding, value):
    """x with `value` around its last two axes; x itself where there is nothing to add."""
    if padding == (0, 0):
        return x
    n, c, h, w = x.shape
    padded = xp.full((n, c, h + 2 * padding[0], w + 2 * padding[1]), value, x.dtype)
    crop(padded, padding)[...] = x
    return padded


def crop(x, padding):
    """The view of x without its padding."""
    rows, columns = (slice(p, n - p) for p, n in zip(padding, x.shape[2:], strict=True))
    return x[:, :, rows, columns]


class Geometry:
    """The numbers of one convolution, checked."""

    def __init__(self, x, weight, bias, stride, padding, dilation, groups):
        self.stride, self.padding = pair("stride", stride, 1), pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        if x.ndim != 4 or weight.ndim != 4:
            raise ValueError(
                "x must be (n, channels, h, w), weight (outputs, channels, kh, kw)"
                + ("; for one channel write x[:, None]" if x.ndim == 3 else "")
            )
        self.outputs, channels, *kernel = weight.shape
        self.kernel = tuple(kernel)
        if not weight.size:
            raise ValueError("weight has no elements")
        self.groups = groups
        if groups < 1 or self.outputs % groups:
            raise ValueError(f"{self.outputs} outputs do not divide into {groups} groups")
        if x.shape[1] != channels * groups:
            raise ValueError(
                f"x has {x.shape[1]} channels, weight takes {channels * groups}"
                + (f" ({channels} in each of {groups} groups)" if groups > 1 else "")
            )
        if bias is not None and bias.shape != (self.outputs,):
            raise ValueError(f"bias must be ({self.outputs},), one number for each output")
        self.output_size = output_size(
            x.shape, self.kernel, self.stride, self.padding, self.dilation
        )

    def offsets(self):
        """For each offset in the kernel: its (i, j), and what lies under it in padded images."""
        for i, j in itertools.product(*map(range, self.kernel)):
            offset = i * self.dilation[0], j * self.dilation[1]
            yield i, j, window_slices(*offset, self.output_size, self.stride)


# -- im2col and col2im -----------------------------------------------------------------------------


def im2col(xp, x, geometry):
    """The window under each output position as a column: to (g, c/g kh kw, n oh ow)."""
    n, c = x.shape[:2]
    padded = pad_image(xp, x, geometry.padding, 0).transpose(1, 0, 2, 3)
    (kh, kw), (oh, ow), g = geometry.kernel, geometry.output_size, geometry.groups
    columns = xp.empty((c, kh, kw, n, oh, ow), x.dtype)
    for i, j, (_, _, rows, cols) in geometry.offsets():
        columns[:, i, j] = padded[:, :, rows, cols]
    return columns.reshape(g, c // g * kh * kw, n * oh * ow)


def col2im(xp, columns, shape, geometry):
    """The transpose of im2col: columns added up where they came from, in images of `shape`."""
    n, c, h, w = shape
    columns = columns.reshape(c, *geometry.kernel, n, *geometry.output_size)
    (ph, pw) = geometry.padding
    padded = xp.zeros((n, c, h + 2 * ph, w + 2 * pw), columns.dtype)
    for i, j, place in geometry.offsets():
        padded[place] += columns[:, i, j].transpose(1, 0, 2, 3)
    return crop(padded, geometry.padding)


def check_precision(precision: Any) -> None:
    if precision not in ("fast", "exact"):
        raise ValueError(f"precision must be 'fast' or 'exact', found {precision!r}")


def _flops(y, x, weight, *_, **__):
    return 2 * y.size * (weight.size // len(weight))


@op(flops=_flops)
def conv2d(
    xp,
    x: Float,
    weight: Float,
    bias: Float = None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    precision="fast",
):
    """Slide kernels over images: (n, c, h, w), (o, c/groups, kh, kw), (o) -> (n, o, oh, ow).

    For groups=1, y[n, o, i, j] = bias[o] + sum over c, u, v of
    weight[o, c, u, v] x[n, c, i stride + u dilation - padding, j stride + v dilation - padding],
    where oh = (h + 2 padding - dilation (kh - 1) - 1) // stride + 1, ow likewise. With more groups
    the g-th share of the outputs sees the g-th share of the channels alone. stride, padding and
    dilation are integers or (vertical, horizontal) pairs. `precision="fast"` allows kernels whose
    rounding errors are ten to twenty times larger (Winograd's, 3 to 9e-6 of the largest value in
    float32), and which make NaN of what an Inf has a part in, and around it; "exact" keeps to plain
    sums of products.

    By im2col: Chellapilla et al., "High performance convolutional neural networks", 2006.

    dx = col2im(W.mT @ D)
    dweight = D @ im2col(x).mT
    dbias = sum(dy, (0, 2, 3))
    with W = weight as (g, o/g, c/g kh kw)
    with D = dy as (g, o/g, n oh ow)
    """
    check_precision(precision)
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    n, o, g = len(x), geometry.outputs, groups
    x_shape, weight_shape = x.shape, weight.shape
    kernels = weight.reshape(g, o // g, math.prod(weight.shape[1:]))  # (g, o/g, c/g kh kw)
    y = xp.matmul(kernels, im2col(xp, x, geometry))  # (g, o/g, n oh ow)
    y = y.reshape(o, n, *geometry.output_size).transpose(1, 0, 2, 3)
    if bias is not None:
        y += bias[:, None, None]

    def rows(dy):  # (n, o, oh, ow) -> (g, o/g, n oh ow)
        return dy.transpose(1, 0, 2, 3).reshape(g, o // g, n * math.prod(geometry.output_size))

    def dx(dy):
        columns = xp.matmul(kernels.swapaxes(1, 2), rows(dy))
        return col2im(xp, columns, x_shape, geometry)

    def dweight(dy):
        # the columns are made again rather than kept: they are kh kw times the images
        columns = im2col(xp, x, geometry)
        return xp.matmul(rows(dy), columns.swapaxes(1, 2)).reshape(weight_shape)

    def dbias(dy):
        return dy.sum(axis=(0, 2, 3))

    return y, dx, dweight, None if bias is None else dbias


@op(flops=_flops)
def conv2d_naive(
    xp, x: Float, weight: Float, bias: Float = None, *, stride=1, padding=0, dilation=1, groups=1
):
    """`conv2d` by its definition, in plain loops: the tests' oracle, the benchmark's baseline.

    dx[n, c, p, q] = the sum of dy[n, o, i, j] weight[o, c, u, v] over all o, i, j, u, v for which
        p = i stride + u dilation - padding and q = j stride + v dilation - padding
    dweight[o, c, u, v] = the sum over all n, i, j of
        dy[n, o, i, j] x[n, c, i stride + u dilation - padding, j stride + v dilation - padding]
    dbias = sum(dy, (0, 2, 3))
    """
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    padded = pad_image(xp, x, geometry.padding, 0)
    n, o, (oh, ow) = len(x), geometry.outputs, geometry.output_size
    channels = weight.shape[1]
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation

    def windows():
        """Each output position, and the index of its window in `padded`."""
        for image, out, i, j in itertools.product(range(n), range(o), range(oh), range(ow)):
            first = out // (o // groups) * channels
            yield (
                (image, out, i, j),
                (
                    image,
                    slice(first, first + channels),
                    slice(i * sh, i * sh + dh * (kh - 1) + 1, dh),
                    slice(j * sw, j * sw + dw * (kw - 1) + 1, dw),
                ),
            )

    y = xp.zeros((n, o, oh, ow), x.dtype)
    for place, window in windows():
        y[place] = (weight[place[1]] * padded[window]).sum()
        if bias is not None:
            y[place] += bias[place[1]]

    def dx(dy):
        gradient = pad_image(xp, xp.zeros_like(x), geometry.padding, 0)
        for place, window in windows():
            gradient[window] += dy[place] * weight[place[1]]
        return crop(gradient, geometry.padding)

    def dweight(dy):
        padded = pad_image(xp, x, geometry.padding, 0)
        gradient = xp.zeros_like(weight)
        for place, window in windows():
            gradient[place[1]] += dy[place] * padded[window]
        return gradient

    def dbias(dy):
        return dy.sum(axis=(0, 2, 3))

    return y, dx, dweight, None if bias is None else dbias


@conv2d_naive.samples
def _small_cases(draw):
    n = draw.integer(0, 2)
    c, o, kh, kw = draw.sizes(4, largest=3)
    h, w = kh + draw.integer(0, 3), kw + draw.integer(0, 3)
    x = draw.normal(n, c, h, w)
    yield draw.case(x, draw.normal(o, c, kh, kw), draw.normal(o))
    yield draw.case(x, draw.normal(o, c, kh, kw), padding=(draw.integer(0, 2), draw.integer(0, 2)))
    stride = draw.integer(1, 3), draw.integer(1, 3)
    yield draw.case(x, draw.normal(o, c, kh, kw), stride=stride, padding=draw.integer(0, 2))
    g, dilation = draw.integer(1, 3), draw.sizes(2, largest=2)
    wide = draw.normal(n, g * c, 2 * h, 2 * w)
    weight, bias = draw.normal(g * o, c, kh, kw), draw.normal(g * o)
    yield draw.case(wide, weight, bias, dilation=dilation, groups=g)


@conv2d.samples
def _(draw):
    yield from _small_cases(draw)
    # as many channels as the kernels for networks ask for
    x = draw.normal(draw.integer(0, 2), 16, draw.integer(3, 8), draw.integer(3, 8))
    yield draw.case(x, draw.normal(16, 16, 3, 3), draw.normal(16), padding=draw.integer(0, 2))
    # and as few as the first layer of one sees
    x = draw.normal(draw.integer(0, 2), draw.integer(1, 3), draw.integer(5, 8), draw.integer(5, 8))
    weight = draw.normal(draw.choice([16, 32]), x.shape[1], *draw.sizes(2, largest=3))
    options = {"stride": draw.sizes(2, largest=2), "dilation": draw.sizes(2, largest=2)}
    yield draw.case(x, weight, draw.normal(len(weight)), padding=draw.integer(0, 2), **options)
