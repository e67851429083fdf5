"""The checkers themselves: wrong rules of every common kind are caught, right ones pass."""

import numpy as np
import pytest

from tinygrad_nnfs import OPS, Tensor, op, ops
from tinygrad_nnfs.checking import CheckError, Draw, check_op, gradcheck
from tinygrad_nnfs.registry import once
from tinygrad_nnfs.testing import check_op as check_op_with_hypothesis


def wrong_op(reference, sampler):
    """An op of a wrong reference, with samples."""
    lifted = op(reference)
    lifted.samples(sampler)
    return lifted


def one(draw):
    yield draw.case(draw.normal(*draw.shape(smallest=1)))


def two(draw):
    a, b = draw.broadcastable(2)
    yield draw.case(draw.normal(*a), draw.normal(*b))


def pair_of_one_shape(draw):
    shape = draw.shape(smallest=1)
    yield draw.case(draw.normal(*shape), draw.normal(*shape))


def matrices(draw):
    n, i, o = draw.sizes(3)
    yield draw.case(draw.normal(n, i), draw.normal(i, o))


def integers(draw):
    yield draw.case(np.arange(3))


def nothing(draw):
    yield from ()


def square(draw):
    n, m = draw.sizes(2, smallest=2)
    yield draw.case(draw.positive(n, m))


def wrong_sign(xp, x):
    return xp.sin(x), lambda dy: -dy * xp.cos(x)


def wrong_factor(xp, x):
    return x * x, lambda dy: dy * x


def wrong_constant(xp, x):
    return x.mean(), lambda dy: xp.broadcast_to(dy, x.shape)


def wrong_missing_unbroadcast(xp, a, b):
    return a + b, lambda dy: dy, lambda dy: dy


def wrong_transposed(xp, a, b):
    return (
        xp.matmul(a, b),
        lambda dy: xp.matmul(dy, b.T),
        lambda dy: xp.matmul(dy.T, a).reshape(b.shape),
    )


def wrong_axis(xp, x):
    total = x.sum(axis=1, keepdims=True)
    y = x / total
    return y, lambda dy: (dy - (dy * y).sum(axis=0, keepdims=True)) / total


def wrong_swapped(xp, a, b):
    return a - b, lambda dy: -dy, lambda dy: dy


def wrong_dtype(xp, x):
    return x * 2, lambda dy: dy * np.float64(2)


def wrong_mutates_dy(xp, x):
    def dx(dy):
        dy *= 2
        return dy

    return x * 2, dx


def wrong_mutates_input(xp, x):
    x += 1
    return x, lambda dy: dy * 1.0


def wrong_stale_save(xp, x):
    y = xp.exp(x)
    saved = y[...]
    y += 1
    return y, lambda dy: dy * saved


def wrong_shared_gradient(xp, a, b):
    product = []

    def da(dy):
        product.append(dy * 2.0)
        return product[-1]

    def db(dy):
        return product[-1] if product else dy * 2.0

    return 2 * (a + b), da, db


def wrong_memory_order(xp, x):
    factor = xp.arange(x.size, dtype=x.dtype).reshape(x.shape)
    y = (x.ravel(order="K") * factor.ravel(order="K")).reshape(x.shape)
    return y, lambda dy: dy * factor


def wrong_hoards(xp, x):
    copies = [x.copy() for _ in range(4)]
    return x * 2, lambda dy: dy * 2 + 0 * copies[0]


def wrong_float64(xp, x):
    return x * np.float64(3), lambda dy: (dy * 3).astype(x.dtype)


def wrong_forgotten_rule(xp, a, b):
    return a * b, lambda dy: (dy * b).sum(axis=tuple(range(dy.ndim - a.ndim))), None


def wrong_hidden_zero(xp, x):
    """Drops one element of many."""

    def dx(dy):
        gradient = dy * 2
        gradient.flat[-1] = 0
        return gradient

    return x * 2, dx


WRONG = [
    (wrong_sign, one, "the gradient by x"),
    (wrong_factor, one, "the gradient by x"),
    (wrong_constant, one, "the gradient by x"),
    (wrong_missing_unbroadcast, two, "gradient"),
    (wrong_transposed, matrices, "the gradient by b"),
    (wrong_axis, square, "gradient"),
    (wrong_swapped, two, "gradient"),
    (wrong_dtype, one, "the gradient by x is float64"),
    (wrong_mutates_dy, one, "writes to dy, which"),
    (wrong_mutates_input, one, "writes to x, which"),
    (wrong_stale_save, one, "the gradient by x"),
    (wrong_shared_gradient, two, "shares memory|gradient"),
    (wrong_memory_order, one, "memory order"),
    (wrong_hoards, one, "bytes, 320 are allowed|its rules keep"),
    (wrong_float64, one, "float32 inputs give float64"),
    (wrong_hidden_zero, one, "the gradient by x"),
    (wrong_forgotten_rule, pair_of_one_shape, "the gradient by b"),
]


@pytest.mark.parametrize(
    ("reference", "sampler", "message"), WRONG, ids=lambda x: getattr(x, "__name__", "")
)
@pytest.mark.parametrize("check", [check_op, check_op_with_hypothesis])
def test_wrong_rules_are_caught(reference, sampler, message, check):
    with pytest.raises((CheckError, ValueError), match=message):
        check(wrong_op(reference, sampler))


def test_the_message_names_check_case_and_place():
    with pytest.raises(CheckError) as error:
        check_op(wrong_op(wrong_factor, one))
    text = str(error.value)
    assert "wrong_factor: the gradient by x" in text
    assert "finite differences give" in text
    assert "check: gradient" in text
    assert "case: wrong_factor(float64 (" in text


def test_wrong_variant_is_caught():
    @op
    def doubled(xp, x):
        return x * 2, lambda dy: dy * 2

    @doubled.on(np, when=lambda x: x.size > 1)
    def doubled_fast(xp, x):
        return x * 2, lambda dy: dy * 3

    doubled.samples(one)
    with pytest.raises(CheckError, match="doubled_fast: the gradient by x"):
        check_op(doubled)


def test_a_variant_for_float32_alone_that_shares_its_gradient_is_caught():
    @op
    def doubled_again(xp, x):
        return x * 2, lambda dy: dy * 2

    @doubled_again.on(np, when=lambda x: x.dtype == np.float32)
    def doubled_once(xp, x):
        return x * 2, once(lambda dy: dy * 2)

    doubled_again.samples(one)
    with pytest.raises(CheckError, match="doubled_once, its rules used twice"):
        check_op(doubled_again)


@pytest.mark.parametrize("name", ["matmul", "conv2d", "max_pool2d", "softmax_cross_entropy"])
def test_right_ops_pass(name):
    assert check_op(OPS[name], cases=3).cases >= 3


def no_return(xp, x):
    def dx(dy):
        dy * 2

    return x * 2, dx


@pytest.mark.parametrize(
    ("reference", "sampler", "message"),
    [
        (lambda xp, x: x * 2, one, "must return its output and a rule for each input, as a tuple"),
        (lambda xp, x: (x * 2, lambda dy: 2.0), one, "the rule for x returned 2.0, not an"),
        (no_return, one, "the rule for x returned None, not an array"),
        (lambda xp, x: (x * 2, lambda dy: dy), lambda draw: [draw.case(1.0)], "must yield cases"),
        (lambda xp, x: (x * 2, lambda dy: dy), lambda draw: None, "must yield cases"),
        (
            lambda xp, x: (x * 2, lambda dy: dy),
            lambda draw: iter([np.ones(2)]),
            "must yield draw.case",
        ),
        (
            lambda xp, x: (x * 2, lambda dy: dy * 7),
            integers,
            "no case gives input x a float64 array",
        ),
        (lambda xp, x: (x * 2, lambda dy: dy * 7), nothing, "its samples yield no case"),
    ],
)
@pytest.mark.parametrize("check", [check_op, check_op_with_hypothesis])
def test_beginners_mistakes_are_named(reference, sampler, message, check):
    reference.__name__ = "mistaken"
    with pytest.raises((CheckError, TypeError), match=message):
        check(wrong_op(reference, sampler))


def test_a_plain_function_is_not_an_op():
    for check in (check_op, check_op_with_hypothesis):
        with pytest.raises(CheckError, match="is not an op: decorate it with @op"):
            check(np.sin)


def test_other_errors_say_which_case():
    def broken(xp, x):
        return x * 2, lambda dy: dy / undefined  # noqa: F821

    with pytest.raises(NameError) as error:
        check_op(wrong_op(broken, one))
    rule, case = error.value.__notes__
    assert rule == "in the rule of broken for x"
    assert "case: broken(float64 (" in case


# -- gradcheck -------------------------------------------------------------------------------------


def test_gradcheck_of_a_composed_function():
    def network(x, w, labels):
        return ops.softmax_cross_entropy(ops.leaky_relu(x @ w), labels)

    random = np.random.default_rng(0)
    gradcheck(network, random.standard_normal((3, 4)), random.standard_normal((4, 5)), [0, 1, 2])


def test_gradcheck_takes_tensors_numbers_and_float32():
    gradcheck(lambda x, y: (x * y).sum(), Tensor([1.0, 2.0]), 3.0)
    gradcheck(ops.exp, np.float32([0.5]))
    gradcheck(lambda x: x.detach() * 0, np.ones(2))


def test_gradcheck_reports_input_and_place():
    @op
    def bad(xp, a, b):
        def db(dy):
            gradient = dy * a
            gradient[1] += 0.5
            return gradient

        return a * b, lambda dy: dy * b, db

    with pytest.raises(CheckError, match=r"bad: the gradient by b\[1\] is .* give .* 1 of 3"):
        gradcheck(bad, np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))


def test_gradcheck_catches_a_missing_gradient():
    with pytest.raises(CheckError, match="is 0, finite differences give"):
        gradcheck(lambda x: (x.detach() * 2).sum(), np.ones(2))


def test_gradcheck_wants_a_floating_tensor_and_something_to_check():
    with pytest.raises(TypeError, match="must return a floating Tensor, found float"):
        gradcheck(lambda x: 1.0, np.ones(2))
    with pytest.raises(TypeError, match="must return a floating Tensor, found one of int64"):
        gradcheck(lambda x: x.astype("int64"), np.ones(2))
    with pytest.raises(TypeError, match="nothing to check"):
        gradcheck(lambda x: x * 2.0, np.array([1, 2]))


def test_gradcheck_takes_lists():
    @op
    def seven(xp, x):
        return x * 2, lambda dy: dy * 0 + 7

    with pytest.raises(CheckError, match="finite differences give 2 "):
        gradcheck(lambda x: seven(x).sum(), [1.0, 2.0])


# -- draw ------------------------------------------------------------------------------------------


def test_draw_keeps_its_promises():
    for seed in range(50):
        draw = Draw(seed)
        shape = draw.shape()
        values = draw.distinct(*shape)
        gaps = np.diff(np.sort(values, axis=None))
        assert (gaps >= draw.gap).all()
        assert (abs(draw.away_from(1.5, *shape) - 1.5) >= draw.gap).all()
        np.broadcast_shapes(*draw.broadcastable(3))
        assert sorted(draw.permutation(4)) == [0, 1, 2, 3]
        assert (draw.positive(3) >= 0.5).all()
        assert set(draw.labels(20, 3)) <= {0, 1, 2}
