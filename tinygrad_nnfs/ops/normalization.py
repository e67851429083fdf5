"""Normalisation layers: zero mean and unit variance, then a learned scale and shift."""

from tinygrad_nnfs.registry import Float, once, op


def _normalize(xp, x, mean, inverse):
    return (x - mean) * inverse


def _through_statistics(xp, dx, normalized, inverse, axes):
    """The gradient by x of (x - mean) * inverse, when mean and inverse depend on x as well.

    The part of dx along the constant (through the mean) and along `normalized` (through the
    variance) is taken out: Ioffe and Szegedy, 2015, the unnumbered equations of section 3.
    """
    along_mean = dx.mean(axis=axes, keepdims=True)
    along_variance = (dx * normalized).mean(axis=axes, keepdims=True)
    return inverse * (dx - along_mean - normalized * along_variance)


@op
def batch_norm2d(
    xp,
    x: Float,
    weight: Float,
    bias: Float,
    *,
    running=None,
    training=True,
    momentum=0.1,
    eps=1e-5,
):
    """Normalise each channel over the batch: (n, c, h, w), (c), (c) -> (n, c, h, w).

    y = weight (x - mean) / sqrt(var + eps) + bias, with the batch's own (biased) statistics while
    `training`. `running` is a pair of arrays (c), mean and variance, that training moves towards
    the batch's, `running += momentum (batch - running)` with the unbiased variance, and that
    evaluation uses instead. That update is this library's one side effect. Ioffe and Szegedy, 2015.
    In evaluation the statistics are constants, so that dx is just weight / s * dy.

    dx = weight / s * (dy - a - z * b)
    dweight = sum(dy * z, axes)
    dbias = sum(dy, axes)
    with a = mean(dy, axes)
    with b = mean(dy * z, axes)
    with z = (x - mean(x, axes)) / s
    with s = sqrt(var(x, axes) + eps)
    with axes = (0, 2, 3)
    """
    if x.ndim != 4 or not weight.shape == bias.shape == x.shape[1:2]:
        raise ValueError("x must be (n, c, h, w), weight and bias (c,)")
    if running is not None and not all(r.shape == weight.shape for r in running):
        raise ValueError(f"running must be two arrays of shape {weight.shape}")
    axes, spread = (0, 2, 3), (slice(None), None, None)  # (c) against (n, c, h, w)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    own = training or running is None
    if own and count < 2:
        raise ValueError(f"the variance of {count} element(s) a channel is not defined")
    if own:
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
        if training and running is not None:
            running[0][...] += momentum * (mean - running[0])
            running[1][...] += momentum * (variance * (count / (count - 1)) - running[1])
    else:
        mean, variance = running
    inverse = (1 / xp.sqrt(variance + eps)).astype(x.dtype)[spread]
    mean = mean.astype(x.dtype)[spread]

    @once
    def shared(dy):
        normalized = _normalize(xp, x, mean, inverse)
        return normalized, (dy * normalized).sum(axis=axes)

    def dx(dy):
        scaled = dy * weight[spread]
        if not own:
            return scaled * inverse
        return _through_statistics(xp, scaled, shared(dy)[0], inverse, axes)

    def dweight(dy):
        return shared(dy)[1].copy()

    def dbias(dy):
        return dy.sum(axis=axes)

    y = _normalize(xp, x, mean, inverse)
    y *= weight[spread]
    y += bias[spread]
    return y, dx, dweight, dbias


@batch_norm2d.samples
def _(draw):
    n, c, h = draw.sizes(3)
    x, weight, bias = draw.distinct(n + 1, c, h, 2), draw.normal(c), draw.normal(c)
    yield draw.case(x, weight, bias)
    yield draw.case(x, weight, bias, running=(draw.normal(c), draw.positive(c)), training=False)


@op
def layer_norm(xp, x: Float, weight: Float, bias: Float, *, eps=1e-5):
    """Normalise each element of the batch over its last axes: those of `weight` and `bias`.

    y = weight (x - mean) / sqrt(var + eps) + bias: (..., *s), s, s -> (..., *s). Ba et al., 2016.

    dx = (g - a - z * b) / s
    dweight = sum(dy * z, batch)
    dbias = sum(dy, batch)
    with a = mean(g, axes)
    with b = mean(g * z, axes)
    with g = dy * weight
    with z = (x - mean(x, axes)) / s
    with s = sqrt(var(x, axes) + eps)
    with axes = the last ones, which weight has
    with batch = the ones before
    """
    normed = weight.ndim
    if not normed or weight.shape != bias.shape or x.shape[-normed:] != weight.shape:
        raise ValueError("weight and bias must have the last axes of x as their shape")
    if not weight.size:
        raise ValueError("there is nothing to normalise: the last axes of x are empty")
    axes = tuple(range(-normed, 0))
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / xp.sqrt(x.var(axis=axes, keepdims=True) + eps)
    batch = tuple(range(x.ndim - normed))

    def dx(dy):
        normalized = _normalize(xp, x, mean, inverse)
        return _through_statistics(xp, dy * weight, normalized, inverse, axes)

    def dweight(dy):
        return (dy * _normalize(xp, x, mean, inverse)).sum(axis=batch)

    def dbias(dy):
        return dy.sum(axis=batch)

    return _normalize(xp, x, mean, inverse) * weight + bias, dx, dweight, dbias


@layer_norm.samples
def _(draw):
    n, a, b = draw.sizes(3)
    a += 1
    yield draw.case(draw.distinct(draw.integer(0, 3), a), draw.normal(a), draw.normal(a))
    yield draw.case(draw.distinct(n, a, b), draw.normal(a, b), draw.normal(a, b))
    yield draw.case(draw.distinct(n, b, a), draw.normal(a), draw.normal(a))
