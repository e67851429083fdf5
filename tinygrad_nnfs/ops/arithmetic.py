"""Arithmetic, element by element, with numpy's broadcasting.

Each rule undoes the broadcasting: where the shape of an input was stretched to that of the output,
its formula's result is summed over the stretch (`unbroadcast`).
"""

from tinygrad_nnfs.registry import Float, Index, Number, op, unbroadcast


@op(method="__add__", saves=0)
def add(xp, a: Number, b: Number):
    """a + b.

    da = dy
    db = dy
    """
    a_shape, b_shape = xp.shape(a), xp.shape(b)

    def da(dy):
        return unbroadcast(dy, a_shape)

    def db(dy):
        return unbroadcast(dy, b_shape)

    return xp.add(a, b), da, db


@op(method="__sub__", saves=0)
def subtract(xp, a: Number, b: Number):
    """a - b.

    da = dy
    db = -dy
    """
    a_shape, b_shape = xp.shape(a), xp.shape(b)

    def da(dy):
        return unbroadcast(dy, a_shape)

    def db(dy):
        return unbroadcast(-dy, b_shape)

    return xp.subtract(a, b), da, db


@op(method="__mul__")
def multiply(xp, a: Number, b: Number):
    """a * b, element by element.

    da = dy * b
    db = dy * a
    """
    a_shape, b_shape = xp.shape(a), xp.shape(b)

    def da(dy):
        return unbroadcast(dy * b, a_shape)

    def db(dy):
        return unbroadcast(dy * a, b_shape)

    return xp.multiply(a, b), da, db


@op(method="__truediv__")
def divide(xp, a: Float, b: Float):
    """a / b.

    da = dy / b
    db = -dy * a / b**2
    """
    a_shape, b_shape = xp.shape(a), xp.shape(b)

    def da(dy):
        return unbroadcast(dy / b, a_shape)

    def db(dy):
        return unbroadcast(-dy * (a / b) / b, b_shape)  # b * b could overflow

    return xp.divide(a, b), da, db


@divide.samples
def _(draw):
    a, b = draw.broadcastable(2)
    yield draw.case(draw.normal(*a), draw.away_from(0, *b))


@op(method="__pow__")
def power(xp, a: Number, b: Number):
    """a ** b. The derivative by b is 0 at a = 0 (for b > 0) and NaN for a < 0.

    da = where(b == 0, 0, dy * b * a ** (b - 1))
    db = where(a == 0, 0, dy * a**b * log(a))
    """
    y = a**b

    def da(dy):
        # b a^(b-1), and 0 for b = 0, where a^(b-1) must not make it 0 * inf
        return unbroadcast(dy * b * a ** (b - (b != 0)), a.shape)

    def db(dy):
        # a^b log a; at a = 0 its limit for b > 0, which is 0
        return unbroadcast(dy * y * xp.log(a + (a == 0), dtype=dy.dtype), b.shape)

    return y, da, db


@power.samples
def _(draw):
    a, b = draw.broadcastable(2)
    yield draw.case(draw.positive(*a), draw.normal(*b))
    yield draw.case(draw.away_from(0, *a), draw.choice([-1, 0, 1, 2, 3]))
    yield draw.case(draw.tied(*a), draw.choice([0, 1, 2, 3]))
    yield draw.case(draw.integer(0, 2), draw.positive(*b))


@op(method="__neg__", saves=0)
def negative(xp, x: Number):
    """-x.

    dx = -dy
    """

    def dx(dy):
        return -dy

    return xp.negative(x), dx


@op(method="exp")
def exp(xp, x: Float):
    """e ** x.

    dx = dy * y
    """
    y = xp.exp(x)

    def dx(dy):
        return dy * y

    return y, dx


@negative.samples
@exp.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()))


@op(method="log")
def log(xp, x: Float):
    """The natural logarithm: -inf at 0, NaN below.

    dx = dy / x
    """

    def dx(dy):
        return dy / x

    return xp.log(x), dx


@op(method="sqrt")
def sqrt(xp, x: Float):
    """The square root; its derivative is infinite at 0.

    dx = dy / (2 * y)
    """
    y = xp.sqrt(x)

    def dx(dy):
        return dy / (2 * y)

    return y, dx


@log.samples
@sqrt.samples
def _(draw):
    yield draw.case(draw.positive(*draw.shape()))


@op(method="__abs__")
def abs(xp, x: Number):
    """The absolute value; its derivative at 0 is 0.

    dx = dy * sign(x)
    """

    def dx(dy):
        return dy * xp.sign(x)

    return xp.abs(x), dx


@abs.samples
def _(draw):
    yield draw.case(draw.away_from(0, *draw.shape()))
    yield draw.case(draw.tied(*draw.shape()))


@op
def maximum(xp, a: Number, b: Number):
    """The larger of a and b; where they are equal each gets half of the gradient.

    da = dy * ((a > b) + (a == b) / 2)
    db = dy * ((b > a) + (a == b) / 2)
    """

    def da(dy):
        return unbroadcast(xp.where(a == b, dy / 2, xp.where(a > b, dy, 0)), a.shape)

    def db(dy):
        return unbroadcast(xp.where(a == b, dy / 2, xp.where(b > a, dy, 0)), b.shape)

    return xp.maximum(a, b), da, db


@op
def minimum(xp, a: Number, b: Number):
    """The smaller of a and b; where they are equal each gets half of the gradient.

    da = dy * ((a < b) + (a == b) / 2)
    db = dy * ((b < a) + (a == b) / 2)
    """

    def da(dy):
        return unbroadcast(xp.where(a == b, dy / 2, xp.where(a < b, dy, 0)), a.shape)

    def db(dy):
        return unbroadcast(xp.where(a == b, dy / 2, xp.where(b < a, dy, 0)), b.shape)

    return xp.minimum(a, b), da, db


@maximum.samples
@minimum.samples
def _(draw):
    a, b = draw.broadcastable(2)
    apart = draw.distinct(*b) + draw.gap / 2  # no element of b is near one of a
    yield draw.case(draw.distinct(*a), apart)
    yield draw.case(draw.tied(*a), draw.tied(*b))


@op
def where(xp, condition: Index, a: Number, b: Number):
    """a where `condition` (bool) holds, else b.

    da = where(condition, dy, 0)
    db = where(condition, 0, dy)
    """
    a_shape, b_shape = xp.shape(a), xp.shape(b)

    def da(dy):
        return unbroadcast(xp.where(condition, dy, 0), a_shape)

    def db(dy):
        return unbroadcast(xp.where(condition, 0, dy), b_shape)

    return xp.where(condition, a, b), None, da, db


@where.samples
def _(draw):
    condition, a, b = draw.broadcastable(3)
    yield draw.case(draw.booleans(*condition), draw.normal(*a), draw.normal(*b))


@op(method="clip")
def clip(xp, x: Number, *, low=None, high=None):
    """x limited to [low, high], None for no limit; at the limits the gradient still passes.

    dx = where((low <= x) & (x <= high), dy, 0)
    """
    for name, limit in (("low", low), ("high", high)):
        if not isinstance(limit, int | float | None):
            raise TypeError(f"{name} must be a number or None, found {limit!r}")
    if x.dtype.kind != "f" and (isinstance(low, float) or isinstance(high, float)):
        x = x.astype(xp.float32)

    def dx(dy):
        inside = xp.ones_like(x, dtype=bool)
        if low is not None:
            inside &= x >= low
        if high is not None:
            inside &= x <= high
        return xp.where(inside, dy, 0)

    return xp.clip(x, low, high), dx


@clip.samples
def _(draw):
    x = draw.away_from(-0.5, *draw.shape())
    yield draw.case(x, low=-0.5)
    yield draw.case(-x, high=0.5)
    yield draw.case(draw.away_from(0, *draw.shape()), low=0.0, high=9.0)


# -- comparisons: bool tensors, without gradient ---------------------------------------------------


@op(method="__lt__")
def less(xp, a: Number, b: Number):
    """a < b, element by element."""
    return xp.less(a, b), None, None


@op(method="__le__")
def less_equal(xp, a: Number, b: Number):
    """a <= b, element by element."""
    return xp.less_equal(a, b), None, None


@op(method="__gt__")
def greater(xp, a: Number, b: Number):
    """a > b, element by element."""
    return xp.greater(a, b), None, None


@op(method="__ge__")
def greater_equal(xp, a: Number, b: Number):
    """a >= b, element by element."""
    return xp.greater_equal(a, b), None, None


@op(method="__eq__")
def equal(xp, a: Number, b: Number):
    """a == b, element by element."""
    return xp.equal(a, b), None, None


@op(method="__ne__")
def not_equal(xp, a: Number, b: Number):
    """a != b, element by element."""
    return xp.not_equal(a, b), None, None


@add.samples
@subtract.samples
@multiply.samples
@less.samples
@less_equal.samples
@greater.samples
@greater_equal.samples
@equal.samples
@not_equal.samples
def _(draw):
    a, b = draw.broadcastable(2)
    yield draw.case(draw.normal(*a), draw.normal(*b))
