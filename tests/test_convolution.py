"""Convolution against SciPy's correlation, its definition in loops, and itself in other layouts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate2d

from tinygrad_nnfs import Tensor
from tinygrad_nnfs.ops import conv2d, conv2d_naive, max_pool2d

sizes = st.integers(1, 4)


def arrays(seed, *shapes):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for shape in shapes]


@given(st.integers(0, 999), sizes, sizes, sizes, sizes, sizes, st.integers(0, 3), st.integers(0, 3))
def test_values_and_gradients_are_scipys_correlations(seed, n, c, o, kh, kw, more_h, more_w):
    h, w = kh + more_h, kw + more_w
    x, weight, bias, dy = arrays(
        seed, (n, c, h, w), (o, c, kh, kw), (o,), (n, o, more_h + 1, more_w + 1)
    )
    tensors = [Tensor(a, requires_grad=True) for a in (x, weight, bias)]
    y = conv2d(*tensors)
    y.backward(dy)

    expected = np.zeros(y.shape)
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for i in range(n):
        for j in range(o):
            expected[i, j] += bias[j]
            for k in range(c):
                expected[i, j] += correlate2d(x[i, k], weight[j, k], mode="valid")
                dweight[j, k] += correlate2d(x[i, k], dy[i, j], mode="valid")
                # dX: the full correlation with the kernel rotated by 180 degrees
                rotated = weight[j, k][::-1, ::-1]
                dx[i, k] += correlate2d(dy[i, j], rotated, mode="full")
                np.testing.assert_allclose(
                    correlate2d(dy[i, j], rotated, mode="full"),
                    convolve2d(dy[i, j], weight[j, k], mode="full"),
                    atol=1e-12,
                )
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    for tensor, gradient in zip(tensors, (dx, dweight, dy.sum(axis=(0, 2, 3))), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-11)


@given(
    st.integers(0, 999),
    *(st.integers(0, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    *(st.tuples(st.integers(1, 3), st.integers(1, 3)) for _ in range(2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
def test_im2col_is_the_definition(seed, n, c, o, g, kernel, stride, padding, dilated):
    dilation = 2 if dilated else 1
    shape = (n, g * c, *(dilation * k + 2 for k in kernel))
    inputs = arrays(seed, shape, (g * o, c, *kernel), (g * o,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": g}
    results = []
    for op in (conv2d, conv2d_naive):
        tensors = [Tensor(a, requires_grad=True) for a in inputs]
        y = op(*tensors, **options)
        y.backward(np.random.default_rng(seed).standard_normal(y.shape))
        results.append([y.numpy(), *(t.grad.numpy() for t in tensors)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_two_forwards_before_either_backward():
    """Scratch memory of the first call must not be what the second call's rules read."""
    inputs = arrays(0, (2, 3, 8, 8), (4, 3, 3, 3)), arrays(1, (2, 3, 8, 8), (4, 3, 3, 3))
    alone = []
    for x, weight in inputs:
        tensors = Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True)
        conv2d(*tensors).sum().backward()
        alone.append([t.grad.numpy() for t in tensors])
    pairs = [[Tensor(a, requires_grad=True) for a in pair] for pair in inputs]
    outputs = [conv2d(*pair).sum() for pair in pairs]
    for y in outputs:
        y.backward()
    for pair, expected in zip(pairs, alone, strict=True):
        for tensor, gradient in zip(pair, expected, strict=True):
            np.testing.assert_array_equal(tensor.grad.numpy(), gradient)


def test_a_chain_of_layers_is_the_same_in_the_kernels_own_layout():
    x, first, second = arrays(0, (3, 2, 12, 11), (4, 2, 3, 3), (5, 4, 2, 3))
    results = []
    for convolve in (conv2d, conv2d_naive):
        tensors = [Tensor(a, requires_grad=True) for a in (x, first, second)]
        hidden = max_pool2d(convolve(*tensors[:2]), kernel_size=2)
        y = convolve(hidden, tensors[2], padding=1).reshape(3, -1)
        (y * y).sum().backward()
        results.append([y.numpy(), *(t.grad.numpy() for t in tensors)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "weight", "options", "message"),
    [
        ((1, 2, 5, 5), (3, 4, 3, 3), {}, "x has 2 channels, weight takes 4$"),
        ((1, 2, 5), (3, 2, 3, 3), {}, r"x must be \(n, channels, h, w\)"),
        ((1, 2, 2, 5), (3, 2, 3, 3), {}, "window of 3x3 does not fit the padded image 2x5"),
        ((1, 2, 4, 5), (3, 2, 3, 3), {"dilation": 2}, "window of 5x5 does not fit .* 4x5"),
        ((1, 2, 5, 5), (3, 2, 3, 3), {"stride": 0}, "stride must be an integer >= 1"),
        ((1, 2, 5, 5), (3, 2, 3, 3), {"padding": -1}, "padding must be an integer >= 0"),
        ((1, 2, 5, 5), (3, 2, 3, 3), {"stride": (1, 2, 3)}, "stride must be"),
        ((1, 4, 5, 5), (3, 2, 3, 3), {"groups": 2}, "3 outputs do not divide into 2 groups"),
        ((1, 4, 5, 5), (3, 2, 3, 3), {"groups": 0}, "3 outputs do not divide into 0 groups"),
    ],
)
@pytest.mark.parametrize("op", [conv2d, conv2d_naive])
def test_bad_input_is_named(op, x, weight, options, message):
    with pytest.raises(ValueError, match=message) as error:
        op(np.zeros(x), np.zeros(weight), **options)
    assert str(error.value).startswith(f"{op.__name__}(x: float64 {x}, weight: float64 {weight}")


def test_bad_bias_is_named():
    with pytest.raises(ValueError, match=r"bias must be \(3,\), one number for each output"):
        conv2d(np.zeros((1, 2, 5, 5)), np.zeros((3, 2, 3, 3)), np.zeros(2))
