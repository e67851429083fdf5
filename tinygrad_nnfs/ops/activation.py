"""Activation functions, element by element, and the softmax family."""

import math

from tinygrad_nnfs.registry import Float, op


@op(method="relu")
def relu(xp, x: Float):
    """max(x, 0); the derivative at 0 is 0.

    dx = where(x > 0, dy, 0)
    """

    def dx(dy):
        return xp.where(x > 0, dy, 0)  # not a product: dy may be infinite where x < 0

    return xp.maximum(x, 0), dx


@relu.samples
def _(draw):
    yield draw.case(draw.away_from(0, *draw.shape()))
    yield draw.case(draw.tied(*draw.shape()))


def check_number(name, value):
    if not isinstance(value, (int, float)):  # a union takes three times as long
        raise TypeError(f"{name} must be a number, found {value!r}")


@op
def leaky_relu(xp, x: Float, *, slope=0.01):
    """x where x > 0, else slope x; the derivative at 0 is `slope` (Maas et al., 2013).

    dx = dy * where(x > 0, 1, slope)
    """
    check_number("slope", slope)
    y = xp.asarray(x * slope)
    if slope == 0:
        y = xp.where(x > 0, x, y)  # 0 times infinity is no number to compare with
    else:  # a choice by a mask would take ten times as long as the larger of the two
        y = xp.maximum(x, y, out=y) if slope <= 1 else xp.minimum(x, y, out=y)
    signed = y if slope >= 0 else x  # positive where x is; with y saved, x can die

    def dx(dy):
        factor = (signed > 0) * dy.dtype.type(1 - slope)
        factor += dy.dtype.type(slope)
        factor *= dy
        return factor

    return y, dx


@leaky_relu.samples
def _(draw):
    slope = draw.choice([0.01, 0.0, 0.5, 1.0, 2.0, -0.5])
    yield draw.case(draw.away_from(0, *draw.shape()), slope=slope)
    yield draw.case(draw.tied(*draw.shape()), slope=slope)


@op
def elu(xp, x: Float, *, alpha=1.0):
    """x where x > 0, else alpha (e^x - 1) (Clevert et al., 2016).

    dx = dy * where(x > 0, 1, alpha * exp(x))
    """
    check_number("alpha", alpha)
    y = xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))

    def dx(dy):
        return xp.where(x > 0, dy, dy * (y + alpha))

    return y, dx


@elu.samples
def _(draw):
    yield draw.case(draw.away_from(0, *draw.shape()), alpha=draw.choice([1.0, 0.5]))


@op
def gelu(xp, x: Float):
    """x Phi(x) in the tanh form (Hendrycks and Gimpel, 2016); PyTorch's `approximate="tanh"`.

    dx = dy * (1 + t + x * (1 - t**2) * u) / 2
    with t = tanh(c * (x + 0.044715 * x**3))
    with u = c * (1 + 3 * 0.044715 * x**2)
    with c = sqrt(2 / pi)
    """
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = xp.tanh(scale * (x + cubic * x * x * x))

    def dx(dy):
        inner = scale * (1 + 3 * cubic * x * x)
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)

    return 0.5 * x * (1 + t), dx


@op
def softplus(xp, x: Float):
    """log(1 + e^x), written so that nothing overflows.

    dx = dy / (1 + exp(-x))
    """

    def dx(dy):
        return dy * _sigmoid(xp, x)

    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x))), dx


def _sigmoid(xp, x):
    small = xp.exp(-xp.abs(x))  # never above 1: no overflow on either side
    return xp.where(x >= 0, 1, small) / (1 + small)


@op(method="sigmoid")
def sigmoid(xp, x: Float):
    """1 / (1 + e^-x).

    dx = dy * y * (1 - y)
    """
    y = _sigmoid(xp, x)

    def dx(dy):
        return dy * y * (1 - y)

    return y, dx


@op(method="tanh")
def tanh(xp, x: Float):
    """The hyperbolic tangent.

    dx = dy * (1 - y**2)
    """
    y = xp.tanh(x)

    def dx(dy):
        return dy * (1 - y * y)

    return y, dx


@gelu.samples
@softplus.samples
@sigmoid.samples
@tanh.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()))


@op
def softmax(xp, x: Float, *, axis=-1):
    """e^x over its sum along `axis`: positive numbers that add up to 1.

    dx = y * (dy - sum(dy * y, axis))
    """
    y = xp.exp(x - x.max(axis=axis, keepdims=True))  # exp never overflows
    y /= y.sum(axis=axis, keepdims=True)

    def dx(dy):
        # the Jacobian is diag(y) - y y^T
        weighted = dy * y
        return weighted - y * weighted.sum(axis=axis, keepdims=True)

    return y, dx


@op
def log_softmax(xp, x: Float, *, axis=-1):
    """log(softmax(x)) along `axis`, exact where softmax itself would round to 0.

    dx = dy - exp(y) * sum(dy, axis)
    """
    shifted = x - x.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))

    def dx(dy):
        return dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)

    return y, dx


@softmax.samples
@log_softmax.samples
def _(draw):
    n, k, m = draw.sizes(3)
    yield draw.case(draw.normal(draw.integer(0, 3), k))
    yield draw.case(draw.normal(n, k, m), axis=draw.integer(-3, 2))
