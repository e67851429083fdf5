"""Dropout."""

from tinygrad_nnfs import backend
from tinygrad_nnfs.registry import Float, op


def check_dropout(p, key):
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], found {p}")
    if isinstance(key, tuple) and not 0 <= min(key) <= max(key) < 2**64:
        raise ValueError(f"key must be two integers in 0..2**64-1, found {key}")


def _bits(xp, key, shape):
    """A random integer for each element. Those of images lie channels last, as images do."""
    if len(shape) != 4:
        return backend.random_bits(xp, key, shape)
    n, c, h, w = shape
    return backend.random_bits(xp, key, (n, h, w, c)).transpose(0, 3, 1, 2)


@op
def dropout(xp, x: Float, *, p, key):
    """Zero each element with probability p, scale the others by 1 / (1 - p): any shape.

    The mask follows from `key`, two integers, and each element's logical position alone, so equal
    keys give equal masks on every device (`backend.random_key()` gives a fresh one). p counts in
    steps of 2^-16. Srivastava et al., 2014; "inverted", so that evaluation does nothing.

    dx = dy * keep / (1 - p)
    with keep = 1 where x was kept, else 0
    """
    check_dropout(p, key)
    bits = _bits(xp, key, x.shape)
    # kept in x's own memory order: products of arrays of one order are several times faster
    keep = xp.greater_equal(bits, round(p * 2**16), out=xp.empty_like(x, dtype=bool))
    scale = 1 / (1 - p) if p < 1 else 0.0

    def drop(values):
        kept = values * keep
        kept *= scale
        return kept

    return drop(x), drop


@dropout.samples
def _(draw):
    key = (draw.integer(0, 9), draw.integer(0, 9))
    yield draw.case(draw.normal(*draw.shape()), p=draw.choice([0.0, 0.25, 0.5, 1.0]), key=key)
