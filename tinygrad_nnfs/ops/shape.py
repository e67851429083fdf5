"""Shapes, indexing and moves: the elements stay what they are, only their places change."""

import copy
from types import EllipsisType

from tinygrad_nnfs import backend
from tinygrad_nnfs.registry import Number, op
from tinygrad_nnfs.tensor import Tensor


@op(method="reshape", spread=True, saves=0)
def reshape(xp, x: Number, *, shape):
    """The same elements, in the same (row-major) order, in `shape`; one size may be -1.

    dx = reshape(dy, x.shape)
    """
    before, in_order, strides = x.shape, x.flags.c_contiguous, x.strides

    def dx(dy):
        dy = dy.reshape(before)
        if in_order:
            return dy
        # a kernel may keep images in another memory order: give it its gradient in that, too
        order = backend.axes_by_stride(strides)
        return dy.transpose(order).copy().transpose([order.index(i) for i in range(dy.ndim)])

    return x.reshape(shape), dx


@reshape.samples
def _(draw):
    a, b, c = draw.sizes(3, smallest=0)
    yield draw.case(draw.normal(a, b, c), shape=(c, a * b))
    yield draw.case(draw.normal(a + 1, b + 1), shape=(-1, a + 1))
    yield draw.case(draw.normal(), shape=(1, 1))
    # in another memory order, as a convolution leaves images
    yield draw.case(draw.normal(b + 2, c + 2, 2).transpose(2, 1, 0), shape=(2, -1))


@op(method="transpose", spread=True, saves=0)
def transpose(xp, x: Number, *, axes=None):
    """The axes in the order `axes` (numpy's transpose, PyTorch's permute); None reverses them.

    dx = transpose(dy, argsort(axes))
    """
    if axes is not None and len(axes) != x.ndim:
        raise ValueError(f"axes must name each axis of x once, found {axes}")
    y = xp.transpose(x, axes)
    order = range(x.ndim)[::-1] if axes is None else [axis % x.ndim for axis in axes]
    inverse = [order.index(axis) for axis in range(x.ndim)]

    def dx(dy):
        return xp.transpose(dy, inverse)

    return y, dx


@transpose.samples
def _(draw):
    shape = draw.shape()
    yield draw.case(draw.normal(*shape))
    axes = draw.permutation(len(shape))
    yield draw.case(draw.normal(*shape), axes=tuple(a - len(shape) * draw.boolean() for a in axes))


@op(method="__getitem__")
def getitem(xp, x: Number, *, index):
    """x[index]: integers, slices, None, ..., integer or bool arrays and Tensors, as in numpy.

    dx[i] = the sum of dy over the places of y that x[i] was taken to
    """
    shape, dtype = x.shape, x.dtype
    parts = index if isinstance(index, tuple) else (index,)
    index = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
    basic = all(isinstance(part, int | slice | EllipsisType | None) for part in index)
    # the rule reads the index later: whoever gave a list or array may have changed it by then
    index = copy.deepcopy(index)

    def dx(dy):
        full = xp.zeros(shape, dtype)
        if basic:
            full[index] = dy
        else:
            xp.add.at(full, index, dy)  # an element that was picked twice gets both gradients
        return full

    return x[index], dx


@getitem.samples
def _(draw):
    n, m = draw.sizes(2)
    x = draw.normal(n, m)
    i = draw.integer(-n, n - 1)
    yield draw.case(x, index=i)
    yield draw.case(x, index=(slice(None, None, -1), None, draw.integer(0, m - 1)))
    yield draw.case(x, index=(..., slice(draw.integer(0, m), None)))
    yield draw.case(x, index=(draw.labels(5, n), draw.labels(5, m)))
    yield draw.case(x, index=draw.booleans(n, m))
    yield draw.case(x, index=([0, i, 0],))


@op(saves=0)
def concatenate(xp, *xs: Number, axis=0):
    """The tensors one after the other along `axis`; their other sizes are equal.

    dxs[i] = the part of dy that lies where xs[i] was put
    """
    y = xp.concatenate(xs, axis=axis)
    along = range(y.ndim)[axis]

    def rule(start, stop):
        place = (slice(None),) * along + (slice(start, stop),)
        return lambda dy: dy[place]

    ends = [0]
    for x in xs:
        ends.append(ends[-1] + x.shape[along])
    return y, *map(rule, ends[:-1], ends[1:])


@concatenate.samples
def _(draw):
    a, b, c, d = draw.sizes(4, smallest=0)
    yield draw.case(draw.normal(a, c), draw.normal(b, c), draw.normal(d, c))
    yield draw.case(draw.normal(a, c), draw.normal(a, b), axis=-1)


@op(saves=0)
def stack(xp, *xs: Number, axis=0):
    """Tensors of one shape along a new axis.

    dxs[i] = take(dy, i, axis)
    """
    y = xp.stack(xs, axis=axis)
    along = range(y.ndim)[axis]

    def rule(i):
        place = (slice(None),) * along + (i,)
        return lambda dy: dy[place]

    return y, *map(rule, range(len(xs)))


@stack.samples
def _(draw):
    shape = draw.shape()
    axis = draw.integer(-len(shape) - 1, len(shape))
    yield draw.case(draw.normal(*shape), draw.normal(*shape), axis=axis)


@op(saves=0)
def pad(xp, x: Number, *, pad_width, value=0):
    """x with `value` around it: `pad_width` is a (before, after) pair for each axis.

    dx = dy without what was put around x
    """
    if len(pad_width) != x.ndim:
        raise ValueError(f"pad_width must be a pair for each axis of x, found {pad_width}")
    inner = tuple(
        slice(before, before + n) for (before, _), n in zip(pad_width, x.shape, strict=True)
    )

    def dx(dy):
        return dy[inner]

    return xp.pad(x, pad_width, constant_values=value), dx


@pad.samples
def _(draw):
    shape = draw.sizes(draw.integer(1, 3), smallest=0)
    width = tuple((draw.integer(0, 2), draw.integer(0, 2)) for _ in shape)
    yield draw.case(draw.normal(*shape), pad_width=width, value=draw.choice([0, 1.5]))


@op(method="astype", saves=0)
def astype(xp, x: Number, *, dtype):
    """x in another dtype; the gradient comes back in x's own.

    dx = astype(dy, x.dtype)
    """
    before = x.dtype
    if xp.dtype(dtype).kind not in "biuf":
        raise TypeError(f"elements must be bool, integer or floating, not {dtype}")
    y = x.astype(dtype)

    def dx(dy):
        return dy.astype(before)

    return y, dx if y.dtype.kind == "f" else None


@astype.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()), dtype="float64")
    yield draw.case(draw.normal(*draw.shape()), dtype="float32")


@op(method="to", saves=0)
def to(xp, x: Number, *, device):
    """x on `device` ("cpu" or "cuda"); the gradient goes back to where x is.

    dx = to(dy, x.device)
    """
    home = backend.device_of(x)

    def dx(dy):
        return backend.move(dy, home)

    return backend.move(x, device), dx


@to.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()), device="cpu")
