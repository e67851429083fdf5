"""Shapes that do not fit: every op says so in one line, and takes what its docstring allows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_nnfs import OPS, Tensor, ops, reference_kernels
from tinygrad_nnfs.kernels import threads
from tinygrad_nnfs.testing import op_cases


def works(function, *inputs, **options):
    """numpy as the oracle: does it take these?"""
    try:
        function(*inputs, **options)
    except (ValueError, IndexError):
        return False
    return True


def broadcast(*inputs, **_):
    return works(np.broadcast_shapes, *(np.shape(x) for x in inputs))


def anything(*_, **__):
    return True


def matmul(a, b):
    row, column = a.shape[-1:], b.shape[-2:][:1]
    return bool(a.ndim and b.ndim) and row == column and works(np.matmul, a, b)


def linear(x, weight, bias=None):
    fits = weight.ndim == 2 and x.shape[-1:] == weight.shape[1:]
    return fits and (bias is None or bias.shape == weight.shape[:1])


def embedding(indices, weight):
    return weight.ndim == 2 and (not indices.size or indices.max() < len(weight))


def window_fits(sizes, kernel, padding=0, dilation=1):
    paddings, dilations = np.broadcast_to(padding, 2), np.broadcast_to(dilation, 2)
    return all(
        d * (k - 1) + 1 <= n + 2 * p
        for n, k, p, d in zip(sizes, kernel, paddings, dilations, strict=True)
    )


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] * groups:
        return False
    if not weight.size:
        return False
    divides, biased = len(weight) % groups == 0, bias is None or bias.shape == weight.shape[:1]
    return divides and biased and window_fits(x.shape[2:], weight.shape[2:], padding, dilation)


def avg_pool2d(x, *, kernel_size, stride=None, padding=0):
    return x.ndim == 4 and window_fits(x.shape[2:], np.broadcast_to(kernel_size, 2), padding)


def max_pool2d(x, **options):
    return avg_pool2d(x, **options) and 0 not in x.shape[2:]


def batch_norm2d(x, weight, bias, *, running=None, training=True):
    if x.ndim != 4 or not weight.shape == bias.shape == x.shape[1:2]:
        return False
    if running is not None and running[0].shape != weight.shape:
        return False
    return (running is not None and not training) or len(x) * math.prod(x.shape[2:]) >= 2


def layer_norm(x, weight, bias):
    fits = weight.ndim > 0 and weight.shape == bias.shape == x.shape[-weight.ndim :]
    return fits and weight.size > 0


def softmax_cross_entropy(logits, labels, **_):
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        return False
    return labels.size > 0 and labels.max() < logits.shape[1]


def soft_cross_entropy(logits, targets, *, reduction):
    if logits.ndim != 2 or targets.shape != logits.shape or not logits.shape[1]:
        return False
    return len(logits) > 0 or reduction != "mean"


def mse_loss(prediction, target, *, reduction):
    return prediction.shape == target.shape and (prediction.size > 0 or reduction != "mean")


def reduced(x, axis):
    """The sizes of the axes that are reduced, or None if x does not have them."""
    axes = range(x.ndim) if axis is None else np.atleast_1d(axis).astype(int)
    return [x.shape[i] for i in axes] if all(-x.ndim <= i < x.ndim for i in axes) else None


def sum(x, *, axis, **_):
    return reduced(x, axis) is not None


def mean(x, *, axis, **_):
    sizes = reduced(x, axis)
    return sizes is not None and 0 not in sizes


def var(x, *, axis, correction, **_):
    sizes = reduced(x, axis)
    return sizes is not None and math.prod(sizes) > correction


def extremum(x, *, axis, **_):
    return sum(x, axis=axis) and works(np.max, x, axis=axis)


BINARY = ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"]
COMPARISONS = ["less", "less_equal", "greater", "greater_equal", "equal", "not_equal"]
UNARY = [
    *("negative", "exp", "log", "sqrt", "abs", "clip", "dropout", "astype", "to"),
    *("relu", "leaky_relu", "elu", "gelu", "softplus", "sigmoid", "tanh"),
]
# does the op take these shapes? By its docstring, written down once more
TAKES = {
    **dict.fromkeys([*BINARY, *COMPARISONS, "where"], broadcast),
    **dict.fromkeys(UNARY, anything),
    **{f.__name__: f for f in (matmul, linear, embedding, conv2d, avg_pool2d, max_pool2d)},
    **{f.__name__: f for f in (batch_norm2d, layer_norm, softmax_cross_entropy)},
    **{f.__name__: f for f in (soft_cross_entropy, mse_loss, sum, mean, var)},
    "conv2d_naive": conv2d,
    **dict.fromkeys(["softmax", "log_softmax"], lambda x, axis=-1: works(np.max, x, axis=axis)),
    **dict.fromkeys(["max", "min"], extremum),
    "reshape": lambda x, **shape: works(np.reshape, x, **shape),
    "transpose": lambda x, axes=None: works(np.transpose, x, axes),
    "getitem": lambda x, index: works(x.__getitem__, index),
    "pad": lambda x, pad_width, **_: len(pad_width) == x.ndim,
    "concatenate": lambda *xs, axis=0: works(np.concatenate, xs, axis=axis),
    "stack": lambda *xs, axis=0: works(np.stack, xs, axis=axis),
}


@st.composite
def spoilt(draw, x):
    """x with its values in another shape, mostly one that is nearly its own."""
    shape = list(x.shape)
    how = draw(st.sampled_from(["size", "size", "fewer", "more", "any"]))
    if how == "any" or (how in ("size", "fewer") and not shape):
        shape = draw(st.lists(st.integers(0, 4), max_size=5))
    elif how == "size":
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 5))
    elif how == "fewer":
        del shape[draw(st.integers(0, len(shape) - 1))]
    else:
        shape.insert(draw(st.integers(0, len(shape))), draw(st.integers(0, 3)))
    return np.resize(x, shape)


@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_shapes_that_do_not_fit_are_refused_by_name(name, data):
    case = data.draw(st.sampled_from(data.draw(op_cases(OPS[name]))))
    inputs = list(case.inputs)
    arrays = [i for i, x in enumerate(inputs) if isinstance(x, np.ndarray)]
    for i in data.draw(st.sets(st.sampled_from(arrays), min_size=1)):
        inputs[i] = data.draw(spoilt(inputs[i]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    inputs = [
        x.astype(dtype) if i in arrays and x.dtype.kind == "f" else x for i, x in enumerate(inputs)
    ]
    taken = TAKES[name](*inputs, **case.params)
    given_ = [Tensor(x) if i in arrays else x for i, x in enumerate(inputs)]
    for variants in (threads.tiny_pieces(), reference_kernels()):
        with variants, np.errstate(all="ignore"):
            if taken:
                assert isinstance(OPS[name](*given_, **case.params), Tensor)
                continue
            with pytest.raises((ValueError, TypeError, IndexError)) as error:
                OPS[name](*given_, **case.params)
        message = str(error.value)
        assert message.startswith(f"{name}(")
        assert "\n" not in message
        for i in arrays:
            assert f": {inputs[i].dtype} {inputs[i].shape}" in message
        reason = message.partition("): ")[2]
        assert reason
        assert "zip()" not in reason
        assert reason == reason.strip()


@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_numbers_in_place_of_arrays_are_taken_or_refused_by_name(name, data):
    case = data.draw(st.sampled_from(data.draw(op_cases(OPS[name]))))
    number = data.draw(st.sampled_from([0, 1, 1.5, True, None]))
    inputs = list(case.inputs)
    inputs[data.draw(st.integers(0, len(inputs) - 1))] = number
    with np.errstate(all="ignore"):
        try:
            assert OPS[name](*inputs, **case.params).dtype.kind in "biuf"
        except (ValueError, TypeError, IndexError) as error:
            message = str(error)
            assert message.startswith(f"{name}(")
            assert "\n" not in message
            assert f": {number!r}" in message or f" {np.asarray(number).shape}" in message
            assert "object has no attribute" not in message or "it needs an array" in message


def test_what_is_no_array_is_shown_on_one_short_line():
    class Odd:
        shape = (3,)

        def __repr__(self):
            return "two\nlines"

    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=r"^add\(a: float32 \(2,\), b: two lines\): elements must"):
        ops.add(x, Odd())
    with pytest.raises(ValueError, match=r"b: \[\[1, 1, 1, 1, 1, 1, \.\.\.\], \[2\]\]\): the"):
        ops.add(x, [[1] * 2000, [2]])


def test_windows_that_see_padding_alone_have_no_largest_element():
    with pytest.raises(ValueError, match=r"max_pool2d\(x: .*\): an image without pixels"):
        ops.max_pool2d(np.ones((1, 1, 0, 4)), kernel_size=2, padding=1)
    y = ops.avg_pool2d(np.ones((1, 1, 0, 4)), kernel_size=2, padding=1)
    assert y.numpy().tolist() == [[[[0, 0, 0]]]]
