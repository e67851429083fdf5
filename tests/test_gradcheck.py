"""What gradient checks go by: kinks, the complex step, another backend; and what they hand back."""

import importlib
import re
import shutil
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_nnfs import OPS, backend, nn, op, ops
from tinygrad_nnfs.checking import (
    CHECKS,
    Case,
    CheckError,
    Draw,
    cases_of,
    check_op,
    gradcheck,
    run_checks,
    strided,
    transposed,
)
from tinygrad_nnfs.checking.derivatives import STEP, complex_slope, roughness, slope
from tinygrad_nnfs.checking.reproduction import code_in, literal
from tinygrad_nnfs.registry import unbroadcast
from tinygrad_nnfs.testing import check_op as check_op_with_hypothesis
from tinygrad_nnfs.testing import op_cases


def one(draw):
    yield draw.case(draw.normal(*draw.shape(smallest=1)))


# -- kinks -----------------------------------------------------------------------------------------


@given(
    kink=st.floats(-1.99, 1.99),
    jump=st.floats(0.1, 10) | st.floats(-10, -0.1),
    coefficients=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
)
def test_roughness_bounds_what_a_kink_does_to_a_slope(kink, jump, coefficients):
    def smooth(t):
        return np.polyval(coefficients, t) + np.sin(t)

    def kinked(t):
        return smooth(t) + jump * np.maximum(t - kink * STEP, 0)

    true = coefficients[2] + 1
    assert abs(slope(smooth) - true) < 1e-9
    assert roughness(smooth) < 1e-9
    if abs(kink) > 1e-3:
        error = abs(slope(kinked) - true - (jump if kink < 0 else 0))
        assert error <= 0.6 * roughness(kinked) + 1e-9


def many_zeros(draw):
    yield draw.case(draw.tied(*draw.shape(smallest=1)))


@given(st.integers(0, 10**6))
def test_gradcheck_does_not_fail_at_kinks(seed):
    x = Draw(seed).tied(3, 4)
    gradcheck(ops.relu, x)
    gradcheck(lambda x: (ops.relu(x) - ops.relu(-x)).sum(), x)  # smooth, but its parts are not
    gradcheck(lambda x: ops.max(ops.abs(x), axis=1), x)
    gradcheck(lambda x, w: ops.relu(x @ w).sum(), np.zeros((2, 3)), np.ones((3, 4)))


@given(seed=st.integers(0, 10**6))
def test_numbers_and_inputs_near_the_end_of_a_domain(seed):
    for x in (0.002, np.array(2.0), np.array([1e-3, 1.0, 2.0])):
        gradcheck(lambda x: x.log() * x, x, seed=seed)
        gradcheck(lambda x: (1 - x * x).sqrt(), np.minimum(x, 0.9995), seed=seed)

    @op
    def wrong_log(xp, x):
        return xp.log(x), lambda dy: 1.01 * dy / x

    for x in ([1e-3, 1.0], [1e-3], 0.002):
        with pytest.raises(CheckError, match=r"wrong_log: the gradient by x.* is .*, finite"):
            gradcheck(wrong_log, x, seed=seed)
    with pytest.raises(CheckError, match=r"nothing can be said of x: .* or ends, wherever"):
        gradcheck(ops.log, np.array([1e-12]), seed=seed)


@pytest.mark.parametrize("factor", [1.01, -1, 2])
@given(seed=st.integers(0, 10**6))
def test_a_wrong_rule_is_found_between_kinks(factor, seed):
    @op
    def wrong_relu(xp, x):
        return xp.maximum(x, 0), lambda dy: xp.where(x > 0, factor * dy, 0)

    x = Draw(seed).tied(3, 4)
    x[1, 2] = 0.25  # where all are negative, the rule is right
    with pytest.raises(CheckError, match=r"wrong_relu: the gradient by x\[\d, \d\] is"):
        gradcheck(wrong_relu, x, seed=seed)
    wrong_relu.samples(many_zeros)
    with pytest.raises(CheckError, match="wrong_relu: the gradient by x"):
        check_op(wrong_relu)


def test_jumps_everywhere_are_no_pass():
    @op
    def jumping(xp, x):
        return (x * 2**0.5 * 1e8) % 1, lambda dy: dy * 0

    with pytest.raises(CheckError, match="nothing can be said of x: the function has kinks"):
        gradcheck(jumping, np.ones(5))
    assert CHECKS["gradient"](jumping, Case((np.ones(5),), {})) == {}


def test_what_is_not_computed_in_float64_is_no_pass():
    with pytest.raises(CheckError, match="or it does not compute in float64"):
        gradcheck(lambda x: (x.astype("float32") * 2).astype("float64").sum(), np.ones(3))
    noise = np.random.default_rng(0)
    with pytest.raises(CheckError, match="or not the same each time"):
        gradcheck(lambda x: (x * noise.random(3)).sum(), np.ones(3))


def test_equal_elements_share_their_gradient():
    """No direction of one input shows it: each of them is a kink."""

    @op
    def greedy(xp, a, b):
        return (
            xp.maximum(a, b),
            lambda dy: unbroadcast(xp.where(a >= b, dy, 0), a.shape),
            lambda dy: unbroadcast(xp.where(b >= a, dy, 0), b.shape),
        )

    @greedy.samples
    def _(draw):
        a, b = draw.broadcastable(2)
        yield draw.case(draw.tied(*a), draw.tied(*b))

    for check in (check_op, check_op_with_hypothesis):
        with pytest.raises(CheckError, match="do equal elements share their gradient"):
            check(greedy)


def test_an_infinite_gradient_at_a_kink_is_a_failure():
    @op
    def bad_abs(xp, x):
        return xp.abs(x), lambda dy: dy / xp.where(x == 0, xp.nan, xp.sign(x))

    bad_abs.samples(many_zeros)
    with pytest.raises(CheckError, match=r"the gradient by x.* is nan"):
        check_op(bad_abs)


# -- the complex step ------------------------------------------------------------------------------


def has_complex_step(name, seed):
    op = OPS[name]
    case = next(cases_of(op, Draw(seed)))
    y = op.reference(np, *case.inputs, **case.params)[0]

    def forward(xp, inputs):
        return op.reference(xp, *inputs, **case.params)[0]

    ones = np.ones(case.inputs[0].shape), np.ones(y.shape)
    return complex_slope(forward, list(case.inputs), 0, *ones)


ANALYTIC = [
    *("add", "multiply", "divide", "power", "exp", "log", "sqrt", "tanh", "gelu", "matmul"),
    *("linear", "conv2d", "conv2d_naive", "mse_loss", "sum", "mean", "transpose", "avg_pool2d"),
    *("reshape", "getitem", "concatenate", "stack", "pad"),
]
NOT_ANALYTIC = [
    *("abs", "relu", "leaky_relu", "elu", "sigmoid", "softmax", "max", "maximum", "clip", "var"),
    *("softplus", "layer_norm", "softmax_cross_entropy", "less", "astype"),
]


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_complex_step_applies_to_analytic_ops(name):
    assert has_complex_step(name, 3) is not None


@pytest.mark.parametrize("name", NOT_ANALYTIC)
def test_the_complex_step_refuses_others(name):
    assert has_complex_step(name, 3) is None


@pytest.mark.parametrize(
    "forward",
    [
        lambda xp, x: xp.abs(x),
        lambda xp, x: abs(x),
        lambda xp, x: np.abs(x) * x,
        lambda xp, x: x.real * x,
        lambda xp, x: x * x.astype(float),
        lambda xp, x: np.sort(x),
        lambda xp, x: x[x.argsort()],
        lambda xp, x: x * (x > 0),
        lambda xp, x: x.clip(0, 1),
        lambda xp, x: xp.linalg.norm(x) * x,
        lambda xp, x: x * float(x[0]),
        lambda xp, x: x if x[0] else -x,
        lambda xp, x: np.zeros(3) + np.array([float(v) for v in x]),
        lambda xp, x: np.abs(np.asarray(x)),
        lambda xp, x: xp.conj(x) * x,
        lambda xp, x: np.fft.fft(x),
        lambda xp, x: [buffer := np.zeros(3), buffer.__setitem__(0, x[0])][0],
        lambda xp, x: undefined,  # noqa: F821
    ],
)
def test_what_is_not_analytic_is_refused_however_it_is_written(forward):
    x = np.array([0.5, -1.5, 2.5])
    found = complex_slope(lambda xp, a: forward(xp, *a), [x], 0, np.ones(3), np.ones(3))
    assert found is None


def test_a_forward_that_slips_through_is_no_false_alarm():
    @op
    def evades(xp, x):
        return x * np.abs(np.asarray(x)), lambda dy: 2 * dy * abs(x)

    evades.samples(lambda draw: (draw.case(draw.away_from(0, *draw.shape())) for _ in range(1)))
    check_op(evades)


def test_the_complex_step_sees_what_differences_cannot():
    @op
    def nearly(xp, x):
        return xp.sin(x), lambda dy: dy * xp.cos(x) * (1 + 1e-9)

    nearly.samples(one)
    with pytest.raises(CheckError, match="the complex step gives") as error:
        check_op(nearly)
    assert "check: complex step" in str(error.value)


# -- another backend -------------------------------------------------------------------------------


def stand_in(**wrong):
    """Numpy by another name, for a GPU that is not there; some of its functions may be wrong."""
    xp = types.ModuleType("stand_in")
    vars(xp).update({k: v for k, v in vars(np).items() if not k.startswith("__")} | wrong)
    return xp


def test_another_backend_is_compared_with_numpy(monkeypatch):
    monkeypatch.setattr(backend, "cupy_if_installed", stand_in)
    for name in ("exp", "conv2d", "getitem", "batch_norm2d", "to", "max_pool2d"):
        check_op(OPS[name], cases=2)
    monkeypatch.setattr(backend, "cupy_if_installed", lambda: stand_in(tanh=np.sin))
    with pytest.raises(CheckError, match=r"tanh with stand_in: the output.* is .*, expected"):
        check_op(OPS["tanh"])
    monkeypatch.setattr(backend, "cupy_if_installed", lambda: stand_in(sign=np.cos))
    with pytest.raises(CheckError, match=r"abs with stand_in: the gradient by x.* is .*, expected"):
        check_op(OPS["abs"])


# -- calls are independent -------------------------------------------------------------------------


def test_shared_state_is_caught():
    @op
    def one_buffer(xp, x):
        saved["x"] = x
        return x * x, lambda dy: 2 * dy * saved["x"]

    saved = {}
    one_buffer.samples(one)
    with pytest.raises(CheckError, match="one_buffer after another call: the gradient by x"):
        check_op(one_buffer)


def test_a_gradient_that_is_kept_is_caught():
    @op
    def keeps(xp, x):
        known = []

        def dx(dy):
            known.append(known[0] if known else 2 * dy * x)
            return known[0]

        return x * x, dx

    keeps.samples(one)
    with pytest.raises(CheckError, match="its rules used twice: the gradient by x"):
        check_op(keeps)


# -- reproductions ---------------------------------------------------------------------------------

arrays = st.builds(
    lambda seed, shape, dtype, order: order(
        np.asarray(np.random.default_rng(seed).standard_normal(shape) * 9).astype(dtype)
    ),
    st.integers(0, 99),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.sampled_from(["float64", "float32", "int64", "uint8", "bool"]),
    st.sampled_from([np.asarray, transposed, strided]),
)


def steps(x):
    """The strides that matter."""
    return [step for step, n in zip(x.strides, x.shape, strict=True) if n > 1]


@given(arrays)
def test_literals_are_exact(x):
    again = eval(literal(x), {"np": np, "strided": strided})
    assert (again.dtype, again.shape) == (x.dtype, x.shape)
    if x.size:
        assert steps(again) == steps(x)
    np.testing.assert_array_equal(again, x)


def test_literals_of_parameters():
    x = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    value = {"a": (slice(None, 2), ..., None), "b": [1.5, np.float32(0.1)], "c": np.float32, "d": x}
    again = eval(literal(value), {"np": np})
    assert again["a"] == value["a"]
    assert again["b"] == value["b"]
    assert again["c"] is np.float32
    assert again["d"].strides == x.strides
    assert eval(literal((np.dtype("int8"), float)), {"np": np}) == (np.dtype("int8"), float)


MY_OPS = """
from tinygrad_nnfs import op

@op
def scaled(xp, x, w, *, by=1.0):
    return x * w * by, lambda dy: FACTOR * dy * w * by, lambda dy: (dy * x * by)

@scaled.samples
def _(draw):
    shape = draw.shape()
    yield draw.case(draw.normal(*shape), draw.normal(*shape), by=draw.choice([1.0, float("inf")]))

def cubed(x):
    return (scaled(x, x) * x).sum()
"""


@pytest.mark.parametrize("check", [check_op, check_op_with_hypothesis, None])
def test_the_code_of_a_failure_fails_and_passes_once_the_rule_is_right(
    check, tmp_path, monkeypatch
):
    wrong = MY_OPS.replace("FACTOR", "-1").replace(', float("inf")', ", 2.0")
    (tmp_path / "my_scaled.py").write_text(wrong)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scaled", raising=False)
    import my_scaled

    with pytest.raises(CheckError) as error:
        if check:
            check(my_scaled.scaled)
        else:
            gradcheck(my_scaled.cubed, np.array([0.1, 0.7, -1 / 3]), seed=5)
    code = code_in(str(error.value))
    assert "from my_scaled import" in code
    with pytest.raises(CheckError) as again:
        exec(code, {})
    assert str(again.value) == str(error.value)
    if check:
        assert "np.array(" in code
        assert len(code) < 400  # the smallest case: one element
    else:
        assert "-0.3333333333333333" in code

    (tmp_path / "my_scaled.py").write_text(MY_OPS.replace("FACTOR", "1"))
    monkeypatch.delitem(sys.modules, "my_scaled")
    sys.modules.pop("my_scaled", None)
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    exec(code, {})


def test_what_cannot_be_imported_is_named():
    with pytest.raises(CheckError) as error:
        gradcheck(lambda x: (x.detach() * x).sum(), np.ones(2))
    code = code_in(str(error.value))
    assert "# fn is the function that was checked: define it here" in code
    with pytest.raises(CheckError, match="the gradient by x"):
        exec(code, {"fn": lambda x: (x.detach() * x).sum()})


def test_one_wrong_element_of_many_is_found_and_not_all_are_written_out():
    @op
    def one_wrong(xp, x):
        def dx(dy):
            gradient = 2 * dy * x
            gradient[70, 33] *= 1.5
            return gradient

        return x * x, dx

    with pytest.raises(CheckError, match=r"the gradient by x\[70, 33\] is ") as error:
        gradcheck(lambda x: one_wrong(x).sum(), np.random.default_rng(0).random((100, 1000)) + 1)
    assert "too large to be written out" in str(error.value)
    assert len(str(error.value)) < 500


# -- reports and settings --------------------------------------------------------------------------


def test_the_report_has_each_input():
    report = check_op(OPS["conv2d_naive"], cases=5)
    assert report.cases == 20
    assert set(report.inputs) == {"x", "weight", "bias"}
    assert all(0 < found.worst_error < 1e-7 for found in report.inputs.values())
    assert 0 < report.inputs["bias"].cases < report.inputs["weight"].cases <= 20
    assert check_op(OPS["less"], cases=2).inputs == {}
    assert set(check_op(OPS["stack"], cases=2).inputs) == {"*xs"}
    errors = gradcheck(lambda a, b: (a * b).sum(), np.ones(2), np.ones(2))
    assert set(errors) == {0, 1}


def counted():
    calls = []

    @op
    def doubled(xp, x):
        return x * 2, lambda dy: dy * 2

    @doubled.samples
    def _(draw):
        calls.append(1)
        yield draw.case(draw.normal(*draw.shape(smallest=1)))

    return doubled, calls


@pytest.mark.parametrize("examples", [3, 11])
def test_settings_are_honoured(examples):
    doubled, calls = counted()
    chosen = settings(max_examples=examples, derandomize=True, database=None)
    report = check_op_with_hypothesis(doubled, settings=chosen)
    assert report.cases == examples
    assert len(calls) == examples + 1  # one to see that there are samples


def test_the_profile_is_honoured():
    before = settings.get_current_profile_name()
    settings.register_profile("seven", max_examples=7, database=None)
    try:
        settings.load_profile("seven")
        doubled, _ = counted()
        assert check_op_with_hypothesis(doubled).cases == 7
    finally:
        settings.load_profile(before)


def test_settings_above_a_given_test_are_honoured():
    doubled, calls = counted()

    @settings(max_examples=5, derandomize=True, database=None)
    @given(op_cases(doubled))
    def check(cases):
        for case in cases:
            run_checks(doubled, case)

    check()
    assert len(calls) == 5


def test_hypothesis_draws_memory_orders():
    seen = set()

    @settings(max_examples=200, database=None)
    @given(op_cases(OPS["tanh"]))
    def check(cases):
        for case in cases:
            x = case.inputs[0]
            if x.ndim > 1 and min(x.shape) > 1:
                seen.add((x.flags.c_contiguous, x.flags.f_contiguous))

    check()
    assert seen == {(True, False), (False, True), (False, False)}


def test_a_function_that_changes_its_input_hides_nothing():
    @op
    def wrong_square(xp, x):
        return x * x, lambda dy: 3 * x * dy

    def f(x):
        y = wrong_square(x).sum()
        x.data[...] = 0
        return y

    with pytest.raises(CheckError, match="the gradient by x"):
        gradcheck(f, [1.0, 2.0])


def test_a_factor_of_zero_is_not_right_by_symmetry():
    @op
    def three_abs(xp, x):
        return xp.abs(x), lambda dy: 3 * dy * xp.sign(x)

    @three_abs.samples
    def _(draw):
        yield draw.case(np.zeros(3))

    for check in (lambda: gradcheck(three_abs, np.zeros(3)), lambda: check_op(three_abs)):
        with pytest.raises(CheckError, match="the gradient by x"):
            check()
    gradcheck(abs, np.zeros(3))
    gradcheck(lambda x: (0 * x).sum(), np.zeros(3))  # a gradient of 0 that is right


def test_errors_say_what_is_needed_to_find_the_fault():
    @op
    def almost(xp, x):
        return x * x, lambda dy: dy * 2 * x * (1 + 1e-10)

    @op
    def refused(xp, x, y):
        return x * y, lambda dy: dy * y, lambda dy: dy.nonsense

    @op
    def undefined(xp, x):
        return xp.log(x), lambda dy: dy / x

    @op
    def misspelt(xp, x):
        return 2 * x, lambda dy: 2 * dy

    @almost.samples
    @undefined.samples
    def _(draw):
        yield draw.case(np.array([-1.3, 0.5]))

    @refused.samples
    def _(draw):
        yield draw.case(draw.normal(2), draw.normal(2))

    @misspelt.samples
    def _(draw):
        yield draw.case(draw.norml(2))

    with pytest.raises(CheckError, match="2 of 2 elements differ") as e:
        check_op(almost)
    found, expected = re.findall(r"is (\S+), the complex step gives (\S+) ", str(e.value))[0]
    assert found != expected
    with pytest.raises(AttributeError) as e:
        check_op(refused)
    assert e.value.__notes__[0] == "in the rule of refused for y"
    with np.errstate(all="ignore"), pytest.raises(CheckError, match="undefined: the result is not"):
        check_op(undefined)
    with pytest.raises(AttributeError, match="norml") as e:
        check_op(misspelt)
    assert e.value.__notes__ == ["in the samples of misspelt"]


def test_a_rule_is_a_function():
    @op
    def number(xp, x):
        return 2 * x, 2.0

    @number.samples
    def _(draw):
        yield draw.case(draw.normal(2))

    with pytest.raises(TypeError, match="op number: a rule must be a function of dy, or None"):
        check_op(number)


def test_empty_arrays_are_not_the_smallest_example():
    @op
    def unbroadcast(xp, x, y):
        return x + y, lambda dy: dy, lambda dy: dy

    @unbroadcast.samples
    def _(draw):
        yield draw.case(draw.normal(0, 3), draw.normal(3))
        yield draw.case(draw.normal(2, 3), draw.normal(3))

    with pytest.raises(CheckError, match=r"case: unbroadcast\(float64 \(2, 3\)"):
        check_op(unbroadcast)


def test_integers_are_tensors_throughout():
    labels = np.array([1, 0])
    logits = np.array([[0.5, -0.2], [0.1, 0.3]])
    gradcheck(lambda x, i: ops.softmax_cross_entropy(x, i.numpy()), logits, labels)


def test_a_result_that_is_not_finite_is_no_matter_of_gradients():
    with np.errstate(all="ignore"), pytest.raises(CheckError, match="the result is not finite"):
        gradcheck(lambda x: x.log().sum(), [1.0, -2.0])


def test_no_cases_and_no_directions_are_refused():
    with pytest.raises(ValueError, match="must be an integer >= 1, found 0"):
        gradcheck(ops.exp, [1.0], directions=0)
    with pytest.raises(ValueError, match="must be an integer >= 1, found 0"):
        check_op(ops.exp, cases=0)


def test_shapes_come_before_values():
    @op
    def summed(xp, x):
        return x * 2, lambda dy: (dy * 2).sum()

    @summed.samples
    def _(draw):
        yield draw.case(draw.normal(3))

    with pytest.raises(CheckError, match=r"the gradient by x is float64 \(\), the input"):
        check_op(summed)


def test_a_forgotten_sum_is_called_that():
    @op
    def scaled(xp, x, scale):
        return x * scale, lambda dy: dy * scale, lambda dy: dy * x

    @scaled.samples
    def _(draw):
        yield draw.case(draw.normal(1, 1), draw.normal(1))  # as large as the input, but of 2 axes

    hint = (
        r"by scale is float64 \(1, 1\), the input float64 \(1,\): sum over the axes that were bro"
    )
    with pytest.raises(CheckError, match=hint):
        check_op(scaled)


def test_samples_that_do_not_fit_the_op_are_named():
    @op
    def powered(xp, x, *, exponent):
        return x**exponent, lambda dy: dy * exponent * x ** (exponent - 1)

    @powered.samples
    def _(draw):
        yield draw.case(draw.positive(2), 3)

    with pytest.raises(CheckError, match=r"powered\(x, \*, exponent\): .* too many positional"):
        check_op(powered)

    @op
    def scaled(xp, x, factor):
        return x * factor, lambda dy: dy * factor, None

    @scaled.samples
    def _(draw):
        yield draw.case(draw.normal(2), factor=2.0)

    with pytest.raises(CheckError, match=r"scaled\(x, factor\): .* factor is an input; draw"):
        check_op(scaled)


def test_inputs_are_called_as_the_function_calls_them():
    def product(first, *, second=2.0):
        return (first * second).detach() * first

    with pytest.raises(
        CheckError, match=r"product: the gradient by first\[0\] .* \(at first\[0\] = 1"
    ):
        gradcheck(product, [1.0])
    with pytest.raises(
        CheckError, match=r"the gradient by inputs\[1\]\[0\] .* \(at inputs\[1\]\[0\] = 2"
    ):
        gradcheck(lambda *inputs: inputs[0] * inputs[1].detach(), [1.0], [2.0])


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        (
            lambda dy, x: (dy * x).sum(axis=1),
            r"\(1,\), .* \(3,\): sum over the axes that were broa",
        ),
        (
            lambda dy, x: (dy * x).T,
            r"\(3, 1\), .* \(3,\): sum over the axes that were broadcast, a",
        ),
    ],
)
def test_a_sum_over_the_wrong_axis_is_called_that(rule, hint):
    @op
    def scaled(xp, x, scale):
        return x * scale, lambda dy: dy * scale, lambda dy: rule(dy, x)

    @scaled.samples
    def _(draw):
        yield draw.case(draw.normal(1, 3), draw.normal(3))

    with pytest.raises(CheckError, match=hint):
        check_op(scaled)


def test_a_gradient_in_another_shape_is_to_be_reshaped():
    @op
    def doubled(xp, x):
        return x * 2, lambda dy: 2 * dy.ravel()

    @doubled.samples
    def _(draw):
        yield draw.case(draw.normal(2, 3))

    with pytest.raises(
        CheckError, match=r"\(6,\), the input float64 \(2, 3\): reshape it, or trans"
    ):
        check_op(doubled)


def test_a_tensor_that_is_given_twice_is_named():
    @op
    def third(xp, k, a, b):
        both = 2 if a is b else 1
        y, dk = k + a + b, lambda dy: dy.sum(axis=0, keepdims=True)
        return y, dk, lambda dy: both * dy, lambda dy: both * dy

    @third.samples
    def _(draw):
        yield draw.case(draw.normal(1), draw.normal(2), draw.normal(2))

    with pytest.raises(CheckError, match="the gradient by a and b together"):
        check_op(third)


def test_one_more_saved_array_is_noticed_among_small_ones():
    @op
    def three(xp, x):
        a, b, c = x * 2, x * 3, x * 4
        return x * 9, lambda dy: dy * (a + b + c) / x

    @three.samples
    def _(draw):
        yield draw.case(draw.away_from(0, 4, 2))

    with pytest.raises(CheckError, match="its rules keep 256 bytes"):
        check_op(three)


def test_inputs_of_a_module_and_of_rest_are_named():
    class Wrong(nn.Module):
        def forward(self, x, scale):
            return x * scale.detach()

    with pytest.raises(CheckError, match=r"by scale\[0\] is 0"):
        gradcheck(Wrong(), [1.0], [2.0])
    with pytest.raises(CheckError, match=r"by rest\[0\]\[0\] is 0"):
        gradcheck(lambda a, *rest: a * rest[0].detach(), [1.0], [2.0])


@pytest.mark.parametrize("seed", range(10))
def test_inputs_are_moved_in_their_own_memory_order(seed):
    """A variant for channels last would be asked about another order, where its mask is another."""
    random = np.random.default_rng(seed)
    images = random.standard_normal((1, 2, 3, 2)).transpose(0, 3, 1, 2)
    CHECKS["gradient"](ops.dropout, Case((images,), {"p": 0.25, "key": (seed, 0)}))
