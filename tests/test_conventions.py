"""Ties, kinks, extremes and NaN: the conventions that no derivative decides."""

import numpy as np
import pytest

from tinygrad_nnfs import Tensor, backend, ops
from tinygrad_nnfs.registry import kernel_mode

NAN, INF = np.nan, np.inf


@pytest.fixture(autouse=True, params=[True, False], ids=["kernels", "reference"])
def implementation(request, monkeypatch):
    """Each convention holds for the op itself and for the variant that runs in its place."""
    monkeypatch.setattr(kernel_mode, "enabled", request.param)


def gradient(function, *arrays):
    leaves = [Tensor(np.array(a, np.float64), requires_grad=True) for a in arrays]
    y = function(*leaves)
    y.backward(np.ones(y.shape))
    gradients = [leaf.grad.numpy().tolist() for leaf in leaves]
    return gradients[0] if len(gradients) == 1 else gradients


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (ops.max, [[3, 1, 3, 2]], [0.5, 0, 0.5, 0]),
        (ops.min, [[1, 1, 1, 2]], [1 / 3, 1 / 3, 1 / 3, 0]),
        (ops.maximum, [[1, 2, 3], [2, 2, 2]], [[0, 0.5, 1], [1, 0.5, 0]]),
        (ops.minimum, [[1, 2, 3], [2, 2, 2]], [[1, 0.5, 0], [0, 0.5, 1]]),
        (lambda x: ops.clip(x, low=0, high=2), [[-1, 0, 1, 2, 3]], [0, 1, 1, 1, 0]),
        (ops.abs, [[-2, 0, 2]], [-1, 0, 1]),
        (ops.relu, [[-2, 0, 2]], [0, 0, 1]),
        (lambda x: ops.leaky_relu(x, slope=0.1), [[-2, 0, 2]], [0.1, 0.1, 1]),
        (lambda x: x**0, [[0, 1]], [0, 0]),
        (lambda x: x**1, [[0, 1]], [1, 1]),
        (lambda x: x**2, [[0, 1]], [0, 2]),
        (lambda x: 0**x, [[1, 2]], [0, 0]),
        (lambda x: ops.where(x > 1, x, x * NAN), [[2.0, 3.0]], None),
    ],
)
def test_ties_and_kinks(function, inputs, expected):
    found = gradient(function, *inputs)
    if expected is not None:
        np.testing.assert_allclose(found, expected)


def test_max_pool_gives_the_gradient_to_the_first_maximum():
    x = np.zeros((1, 1, 2, 4))
    x[0, 0] = [[1, 5, 2, 2], [5, 5, 2, 2]]
    found = gradient(lambda t: ops.max_pool2d(t, kernel_size=2), x)
    assert found == [[[[0, 1, 1, 0], [0, 0, 0, 0]]]]


def test_max_pool_padding_never_wins():
    x = np.full((1, 1, 2, 2), -1e30)
    y = ops.max_pool2d(x, kernel_size=2, stride=1, padding=1)
    assert (y.numpy() == -1e30).all()


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "elu", "gelu", "softplus", "sigmoid", "tanh", "exp", "abs"]
)
def test_nan_propagates_elementwise(name):
    y = getattr(ops, name)(np.array([NAN, 1.0])).numpy()
    assert np.isnan(y).tolist() == [True, False]


def test_nan_propagates_through_reductions_and_pooling():
    x = np.ones((1, 1, 2, 4))
    x[0, 0, 1, 1] = NAN
    assert np.isnan(ops.max_pool2d(x, kernel_size=2).numpy()).tolist() == [[[[True, False]]]]
    assert np.isnan(ops.max(x).item())
    assert np.isnan(ops.min(x).item())
    assert np.isnan(ops.maximum(np.array([NAN]), np.array([1.0])).item())


@pytest.mark.parametrize("channels", [1, 16])
def test_nan_propagates_through_convolution(channels):
    x = np.ones((2, channels, 8, 8), np.float32)
    x[1, 0, 1, 1] = NAN
    weight = Tensor(np.ones((16, channels, 3, 3), np.float32), requires_grad=True)
    y = ops.conv2d(x, weight)
    y.sum().backward()
    assert not np.isnan(y.numpy()[0]).any()
    assert np.isnan(y.numpy()[1, :, :2, :2]).all()
    assert np.isnan(weight.grad.numpy()[:, 0, :2, :2]).all()


def test_nothing_overflows_where_the_result_does_not():
    big = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    np.testing.assert_array_equal(ops.sigmoid(big).numpy(), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(ops.softplus(big).numpy(), [0, 0, np.log(2), 800, 1e4])
    np.testing.assert_array_equal(ops.softmax(big).numpy(), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(ops.elu(big).numpy()[[0, -1]], [-1, 1e4])
    assert np.isfinite(ops.log_softmax(big).numpy()).all()
    for function in (ops.sigmoid, ops.softplus, ops.elu, ops.gelu, ops.tanh, ops.softmax):
        assert np.isfinite(gradient(function, big)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_cross_entropy_is_exact_for_large_logits(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype)
    leaf = Tensor(logits, requires_grad=True)
    loss = ops.softmax_cross_entropy(leaf, np.array([0, 0]), reduction="none")
    assert loss.numpy().tolist() == [0, 2e4]
    loss.backward(np.ones(2, dtype))
    assert leaf.grad.numpy().tolist() == [[0, 0, 0], [-1, 1, 0]]
    for reduction, n in (("sum", 1), ("mean", 2)):
        leaf.grad = None
        loss = ops.softmax_cross_entropy(leaf, np.array([0, 0]), reduction=reduction)
        assert (loss.item(), loss.shape, loss.dtype) == (2e4 / n, (), dtype)
        loss.backward(3 * np.ones((), dtype))
        assert leaf.grad.numpy().tolist() == [[0, 0, 0], [-3 / n, 3 / n, 0]]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 3], ValueError, r"labels must be in 0\.\.2, found 0\.\.3"),
        ([-1, 0], ValueError, r"labels must be in 0\.\.2, found -1\.\.0"),
        ([0, 1, 2], ValueError, r"logits must be \(n, classes\) and labels \(n,\)"),
        ([[0, 1, 0], [1, 0, 0]], ValueError, "labels look one-hot: they must be class indices"),
        ([[0], [1]], ValueError, r"logits must be \(n, classes\) and labels \(n,\)"),
        (
            [0.0, 1.0],
            TypeError,
            "labels must be integers, found float64: give the list or an integer array",
        ),
    ],
)
def test_labels_are_checked(labels, error, message):
    with pytest.raises(error, match=message):
        ops.softmax_cross_entropy(np.zeros((2, 3)), np.array(labels))


def test_labels_of_any_integer_dtype():
    for dtype in ("uint8", "int8", "int32", "uint64", "int64"):
        loss = ops.softmax_cross_entropy(np.zeros((2, 3)), np.array([0, 2], dtype))
        assert loss.item() == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int)), "batch is empty"),
        (lambda: ops.mse_loss(np.zeros(0), np.zeros(0)), "batch is empty"),
        (lambda: ops.soft_cross_entropy(*[np.zeros((0, 3))] * 2), "batch is empty"),
        (
            lambda: ops.softmax_cross_entropy(np.zeros((1, 3)), [0], reduction="avg"),
            "reduction must be 'mean', 'sum' or 'none', found 'avg'",
        ),
        (
            lambda: ops.softmax_cross_entropy(np.zeros((1, 3)), [0], label_smoothing=1.0),
            r"label_smoothing must be in \[0, 1\)",
        ),
        (lambda: ops.dropout(np.zeros(3), p=1.5, key=(0, 0)), r"p must be in \[0, 1\], found 1.5"),
        (lambda: Tensor(np.zeros((2, 0))).max(axis=1), "zero-size array"),
        (lambda: Tensor(np.zeros(0)).mean(), "the mean of no elements is not defined"),
        (lambda: Tensor(np.zeros(1)).var(), "variance of 1 elements with correction=1"),
        (lambda: ops.max_pool2d(np.zeros((1, 1, 2, 2)), kernel_size=3), "does not fit"),
        (lambda: ops.max_pool2d(np.zeros((1, 2, 2)), kernel_size=1), "x must be images"),
        (
            lambda: ops.max_pool2d(np.zeros((1, 1, 4, 4)), kernel_size=2, padding=2),
            "more than half of the kernel",
        ),
        (
            lambda: ops.batch_norm2d(np.zeros((1, 2, 1, 1)), np.ones(2), np.ones(2)),
            "variance of 1 element\\(s\\) a channel",
        ),
        (
            lambda: ops.batch_norm2d(np.zeros((2, 2, 1, 1)), np.ones(3), np.ones(3)),
            r"x must be \(n, c, h, w\), weight and bias \(c,\)",
        ),
        (lambda: ops.layer_norm(np.zeros((2, 3)), np.ones(2), np.ones(2)), "last axes of x"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_embedding_checks_its_indices():
    with pytest.raises(
        IndexError, match=r"embedding\(.*\): indices must be in 0\.\.2, found 0\.\.3"
    ):
        ops.embedding(np.array([0, 3]), np.zeros((3, 2)))
    with pytest.raises(TypeError, match="indices must be integers"):
        ops.embedding(np.array([0.5]), np.zeros((3, 2)))


def test_an_infinite_gradient_stays_where_it_is():
    """0 times infinity is NaN, so that a choice must not be a product with 0 and 1."""
    for function in (
        ops.relu,
        lambda x: x.clip(0),
        lambda x: ops.maximum(x, 0.0),
        lambda x: ops.max(x.reshape(2, 1), axis=1),
    ):
        x = Tensor(np.array([0.0, 4.0]), requires_grad=True)
        with np.errstate(divide="ignore"):
            function(x).sqrt().sum().backward()
        assert not np.isnan(x.grad.numpy()).any()
    x = Tensor(np.array([-1.0, 4.0]), requires_grad=True)
    with np.errstate(divide="ignore"):
        x.relu().sqrt().sum().backward()
    assert x.grad.numpy().tolist() == [0, 0.25]


def test_divide_neither_overflows_nor_underflows_on_the_way():
    a, b = (Tensor(np.float32([v]), requires_grad=True) for v in (1e-24, 1e-23))
    (a / b).backward()
    assert b.grad.item() == pytest.approx(-1e22, rel=1e-5)


def test_once_is_not_misled_by_a_gradient_array_that_is_used_again():
    weight = Tensor(np.ones(1), requires_grad=True)
    y = ops.batch_norm2d(np.arange(4.0).reshape(4, 1, 1, 1), weight, np.zeros(1))
    dy = np.arange(4.0).reshape(4, 1, 1, 1)
    y.backward(dy, retain_graph=True)
    first = weight.grad.item()
    dy *= 2
    y.backward(dy)
    assert weight.grad.item() == pytest.approx(3 * first)


@pytest.mark.parametrize("kind", [np.array, list])
def test_an_index_may_change_after_the_forward(kind):
    index = kind([0, 1])
    x = Tensor(np.zeros(3), requires_grad=True)
    y = x[index].sum()
    index[:] = [2, 2]
    y.backward()
    assert x.grad.numpy().tolist() == [1, 1, 0]


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    x = np.ones(200_000)
    y = ops.dropout(x, p=p, key=(1, 2)).numpy()
    assert abs((y == 0).mean() - p) < 0.005
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p))


def test_dropout_masks_of_different_keys_are_independent():
    masks = [
        ops.dropout(np.ones(100_000), p=0.5, key=key).numpy() > 0
        for key in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for i, a in enumerate(masks):
        assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.02
        for b in masks[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_dropout_mask_follows_from_the_key_alone():
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 5))
    y = ops.dropout(x, p=0.5, key=(7, 8)).numpy()
    other_layout = np.ascontiguousarray(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)
    np.testing.assert_array_equal(ops.dropout(other_layout, p=0.5, key=(7, 8)).numpy(), y)


@pytest.mark.parametrize("size", [1, 17, 1023, 1025, 2**18 + 2**15 + 1])
@pytest.mark.parametrize("key", [(0, 0), (5, 2**64 - 1)])
def test_dropout_masks_are_the_bits_of_the_stream(size, key):
    y = ops.dropout(np.ones(size, np.float32), p=0.25, key=key).numpy()
    words = np.random.Philox(key=np.array(key, np.uint64)).random_raw(-(-size // 4))
    np.testing.assert_array_equal(y != 0, words.view(np.uint16)[:size] >= 2**14)


def test_philox_known_answer():
    """The published answer for key 0, counter 0; our streams start at counter 1 of their key."""
    words = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    before_zero = 2**256 - 1  # numpy counts before it draws
    assert np.random.Philox(key=0, counter=before_zero).random_raw(4).tolist() == words
    for key in ((0, 0), (5, 2**64 - 1), (0, 0)):  # what another key left behind must not matter
        expected = np.random.Philox(key=np.array(key, np.uint64)).random_raw(4)
        found = backend.random_bits(np, key, (16,)).view(np.uint64)
        assert found.tolist() == expected.tolist()
        assert (
            backend.random_bits(np, key, (3, 1)).tolist()
            == expected.view(np.uint16)[:3].reshape(3, 1).tolist()
        )
