"""The `op` decorator: a user's own op gets everything that the built-in ones get."""

import inspect
import sys
import textwrap

import numpy as np
import pytest

from tinygrad_nnfs import OPS, Parameter, Tensor, op
from tinygrad_nnfs.checking import CheckError, check_op
from tinygrad_nnfs.registry import Float, Index, Number
from tinygrad_nnfs.testing import check_op as check_op_with_hypothesis


def test_an_op_in_a_users_own_file(tmp_path, monkeypatch):
    (tmp_path / "my_ops.py").write_text(
        textwrap.dedent('''
        from tinygrad_nnfs import op

        @op(method="swish")
        def swish(xp, x, *, beta=1.0):
            """x sigmoid(beta x)."""
            s = 1 / (1 + xp.exp(-beta * x))

            def dx(dy):
                return dy * (s + beta * x * s * (1 - s))

            return x * s, dx

        @swish.samples
        def _(draw):
            yield draw.case(draw.normal(*draw.shape()), beta=draw.choice([1.0, 2.0]))
        ''')
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_ops

    try:
        x = Tensor([1.0, -2.0], requires_grad=True)
        x.swish(2.0).sum().backward()
        assert x.grad is not None
        assert OPS["swish"] is my_ops.swish
        assert check_op(my_ops.swish).cases == 25
        check_op_with_hypothesis(my_ops.swish)
        assert str(inspect.signature(my_ops.swish)).startswith("(x, *, beta=1.0)")
        assert my_ops.swish.__doc__ == "x sigmoid(beta x)."
    finally:
        del Tensor.swish, sys.modules["my_ops"]


def test_signatures_hide_xp():
    for name, lifted in OPS.items():
        assert "xp" not in inspect.signature(lifted).parameters, name
        assert lifted.__doc__, f"{name} has no docstring"


def test_duplicate_names_are_refused():
    def exp(xp, x):
        return x, lambda dy: dy

    with pytest.raises(ValueError, match=r"op 'exp' in tinygrad_nnfs\.ops\.arithmetic already"):
        op(exp)


@pytest.mark.parametrize("method", ["sum", "data", "backward", "__add__"])
def test_what_tensors_have_is_not_replaced(method):
    def own(xp, x):
        return x * 1, lambda dy: dy

    before = getattr(Tensor, method)
    with pytest.raises(ValueError, match=f"op own: a Tensor has '{method}' already: give the"):
        op(method=method)(own)
    assert getattr(Tensor, method) is before
    assert "own" not in OPS


def test_an_op_may_be_defined_again_where_it_was(monkeypatch):
    """As a notebook's cell does that is run twice."""
    monkeypatch.setattr(Tensor, "scaled", None, raising=False)  # so that it goes afterwards
    monkeypatch.delattr(Tensor, "scaled")
    for factor in (1, 2):

        @op(method="scaled")
        def scaled(xp, x, factor=factor):
            return x * factor, lambda dy: dy * factor, None

    assert scaled(Tensor(1.0)).item() == Tensor(1.0).scaled().item() == 2


@pytest.mark.parametrize("name", ["dropout", "max_pool2d", "reshape"])
def test_an_option_that_is_missing_is_named(name):
    with pytest.raises(TypeError, match=rf"^{name}\(x, .*\): missing a required argument: "):
        OPS[name](np.ones((1, 1, 2, 2), np.float32))


@pytest.mark.parametrize("key", [(-1, 2), (1, 2**64)])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match=r"key must be two integers in 0\.\.2\*\*64-1, found"):
        OPS["dropout"](np.ones((1, 1, 2, 2), np.float32), p=0.5, key=key)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("leaky_relu", {"slope": None}, "slope must be a number, found None"),
        ("leaky_relu", {"slope": "a"}, "slope must be a number, found 'a'"),
        ("elu", {"alpha": np.ones(3)}, "alpha must be a number, found array"),
        ("clip", {"low": np.zeros(3)}, "low must be a number or None, found array"),
        ("reshape", {"shape": (2.0,)}, "'float' object cannot be interpreted as an integer"),
    ],
)
def test_options_that_are_no_numbers(name, options, message):
    with pytest.raises(TypeError, match=rf"^{name}\(x: .*\): {message}"):
        OPS[name](np.ones(3, np.float32), **options)


def test_means_of_many_numbers_in_half_precision():
    x = Tensor(np.ones((300, 300), np.float16), requires_grad=True)
    y = x.mean() + OPS["mse_loss"](x, np.zeros((300, 300), np.float16))
    y.backward()
    assert y.item() == 2
    np.testing.assert_allclose(x.grad.numpy(), 3 / 90_000, rtol=0.01)


def test_axes_may_be_numpys_integers():
    x = np.ones((2, 3), np.float32)
    for axis in (np.int64(1), (np.int64(1),), (np.int8(0), -1)):
        assert OPS["sum"](x, axis=axis).shape == x.sum(axis=axis).shape


def test_xp_must_come_first():
    with pytest.raises(TypeError, match="op wrong: the first argument must be xp"):

        @op
        def wrong(x):
            return x, lambda dy: dy


def test_number_of_rules_must_fit():
    @op
    def forgetful(xp, a, b):
        return a + b, lambda dy: dy

    with pytest.raises(
        TypeError, match=r"it has 2 inputs \(a, b\) and 1 rules; options stand behind a"
    ):
        forgetful(Tensor(1.0), Tensor(2.0))


def test_rules_must_come_in_a_tuple():
    @op
    def bare(xp, x):
        return x * 2

    with pytest.raises(
        TypeError, match="op bare must return its output and a rule for each input, as a tuple"
    ):
        bare(Tensor([1.0, 2.0]))


def test_ops_compute_with_arrays():
    from tinygrad_nnfs import ops

    @op
    def taped(xp, x):
        return ops.exp(x), lambda dy: dy

    with pytest.raises(TypeError, match="op taped returned a Tensor: an op computes with arrays"):
        taped(Tensor([1.0]))


def test_methods_show_what_they_take():
    assert str(inspect.signature(Tensor.sum)) == "(x, axis=None, keepdims=False)"
    assert str(inspect.signature(Tensor.reshape)) == "(x, *shape)"
    assert str(inspect.signature(Tensor.transpose)) == "(x, *axes)"


def test_variadic_inputs_stand_alone():
    with pytest.raises(TypeError, match=r"op mixed: \*inputs cannot stand beside other inputs"):

        @op
        def mixed(xp, a, *xs):
            return a, None


def test_the_wrong_rule_is_named_although_both_inputs_are_one_tensor():
    @op
    def second_wrong(xp, a, b):
        return a + b, lambda dy: dy, lambda dy: None

    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(
        RuntimeError, match="rule of second_wrong for input 1 returned a NoneType, t"
    ):
        second_wrong(x, x).backward()


def test_kinds_of_inputs():
    seen = {}

    @op
    def kinds(xp, a: Float, b: Number, c: Index):
        seen.update(a=a.dtype, b=b.dtype, c=c.dtype)
        return a * 1, lambda dy: dy, None, None

    kinds(np.arange(2), np.arange(2), np.arange(2))
    assert {k: str(v) for k, v in seen.items()} == {"a": "float32", "b": "float32", "c": "int64"}
    kinds(Tensor(np.ones(2)), [1, 2], [True, False])
    assert {k: str(v) for k, v in seen.items()} == {"a": "float64", "b": "float64", "c": "bool"}


def test_variants_are_chosen_by_their_condition():
    @op
    def plain(xp, x):
        return x + 0, lambda dy: dy

    @plain.on(np, when=lambda x: x.size > 2)
    def large(xp, x):
        return x + 100, lambda dy: dy

    assert plain(Tensor([1.0])).item() == 1
    assert plain(Tensor([1.0, 1.0, 1.0])).numpy()[0] == 101


def test_an_op_without_samples_is_refused():
    @op
    def unchecked(xp, x):
        return x, lambda dy: dy

    for check in (check_op, check_op_with_hypothesis):
        with pytest.raises(CheckError, match=r"unchecked has no samples: add some with @unchecked"):
            check(unchecked)


def test_parameters_are_tensors_with_gradient():
    assert Parameter([1.0]).requires_grad
    assert isinstance(Parameter([1.0]), Tensor)
