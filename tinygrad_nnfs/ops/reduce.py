"""Reductions over all axes, one axis or several (`axis=None`, an int, a tuple of ints).

In the formulas spread(dy) is dy at each of the elements that were reduced to its place, and `count`
their number.
"""

import math
import operator

from tinygrad_nnfs.registry import Float, Number, op


def _restore(xp, reduced, shape, axis, keepdims):
    """A reduced array as a view of the `shape` it was reduced from."""
    if axis is not None and not keepdims:
        reduced = xp.expand_dims(reduced, axis)
    return xp.broadcast_to(reduced, shape)


def _axes(x, axis, keepdims):
    """`axis` as a tuple of axes of x, or None for all."""
    if not isinstance(keepdims, bool):
        raise TypeError(f"keepdims must be True or False, found {keepdims!r}: axes go in a tuple")
    if axis is None:
        return None
    axes = tuple(axis) if isinstance(axis, list | tuple) else (axis,)
    if not all(hasattr(i, "__index__") and -x.ndim <= i < x.ndim for i in axes):
        raise ValueError(f"axis {axis} is out of range for {x.ndim} axes")
    return tuple(operator.index(i) % x.ndim for i in axes)


def _count(shape, axes):
    """How many elements a reduction over `axes` puts together."""
    return math.prod(shape if axes is None else (shape[i] for i in axes))


@op(method="sum", saves=0)
def sum(xp, x: Number, *, axis=None, keepdims=False):
    """The sum over `axis`; 0 over no elements.

    dx = spread(dy)
    """
    axis = _axes(x, axis, keepdims)
    shape = x.shape

    def dx(dy):
        return _restore(xp, dy, shape, axis, keepdims)

    return x.sum(axis=axis, keepdims=keepdims), dx


@sum.samples
def _(draw):
    shape = draw.shape()
    yield draw.case(draw.normal(*shape), axis=draw.axes(shape), keepdims=draw.boolean())


@op(method="mean", saves=0)
def mean(xp, x: Float, *, axis=None, keepdims=False):
    """The arithmetic mean over `axis`.

    dx = spread(dy) / count
    """
    axis = _axes(x, axis, keepdims)
    shape, n = x.shape, _count(x.shape, axis)
    if n == 0:
        raise ValueError("the mean of no elements is not defined")

    def dx(dy):
        # not dy / n: an n above 65,504 would be infinite in float16
        return _restore(xp, dy * (1 / n), shape, axis, keepdims)

    return x.mean(axis=axis, keepdims=keepdims), dx


@mean.samples
def _(draw):
    shape = draw.shape(smallest=1)
    yield draw.case(draw.normal(*shape), axis=draw.axes(shape), keepdims=draw.boolean())


@op(method="var")
def var(xp, x: Float, *, axis=None, keepdims=False, correction=1):
    """The variance over `axis`: the sum of squared deviations / (count - correction).

    `correction=1` (PyTorch's default) estimates a population's variance from a sample,
    `correction=0` (numpy's default) describes the elements themselves.

    dx = spread(dy) * 2 * (x - mean(x, axis)) / (count - correction)
    """
    axis = _axes(x, axis, keepdims)
    freedom = _count(x.shape, axis) - correction
    if freedom <= 0:
        raise ValueError(
            f"the variance of {freedom + correction} elements with correction={correction} is "
            "not defined"
        )

    def dx(dy):
        # the mean's own dependence on x cancels: its deviations sum to zero
        deviation = x - x.mean(axis=axis, keepdims=True)
        return _restore(xp, dy, x.shape, axis, keepdims) * deviation * (2 / freedom)

    return x.var(axis=axis, keepdims=keepdims, ddof=correction), dx


@var.samples
def _(draw):
    shape = draw.shape(smallest=2)
    axis = draw.axes(shape)
    correction = draw.integer(0, 1) if shape and axis != () else 0
    if correction == 0 or shape:
        yield draw.case(
            draw.normal(*shape), axis=axis, keepdims=draw.boolean(), correction=correction
        )


def _share_among_ties(xp, x, y, dy, axis, keepdims):
    """dy to the elements of x that equal their extremum y, in equal parts."""
    chosen = (x == _restore(xp, y, x.shape, axis, keepdims)) | (x != x)  # NaN is its own extremum
    parts = dy / chosen.sum(axis=axis, keepdims=keepdims).astype(dy.dtype)
    return xp.where(chosen, _restore(xp, parts, x.shape, axis, keepdims), 0)


@op(method="max")
def max(xp, x: Number, *, axis=None, keepdims=False):
    """The largest element over `axis`; equal ones share the gradient.

    dx = spread(dy) * (x == spread(y)) / sum(x == spread(y), axis)
    """
    axis = _axes(x, axis, keepdims)
    y = x.max(axis=axis, keepdims=keepdims)

    def dx(dy):
        return _share_among_ties(xp, x, y, dy, axis, keepdims)

    return y, dx


@op(method="min")
def min(xp, x: Number, *, axis=None, keepdims=False):
    """The smallest element over `axis`; equal ones share the gradient.

    dx = spread(dy) * (x == spread(y)) / sum(x == spread(y), axis)
    """
    axis = _axes(x, axis, keepdims)
    y = x.min(axis=axis, keepdims=keepdims)

    def dx(dy):
        return _share_among_ties(xp, x, y, dy, axis, keepdims)

    return y, dx


@max.samples
@min.samples
def _(draw):
    shape = draw.shape(smallest=1)
    yield draw.case(draw.distinct(*shape), axis=draw.axes(shape), keepdims=draw.boolean())
    yield draw.case(draw.tied(*shape), axis=draw.axes(shape), keepdims=draw.boolean())
