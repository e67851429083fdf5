"""Every rule's formula is in its op's docstring, is right, and can be typeset."""

import inspect
from xml.etree import ElementTree

import formulas
import numpy as np
import pytest
from hypothesis import given

from tinygrad_nnfs import OPS, op
from tinygrad_nnfs.checking import Draw, cases_of
from tinygrad_nnfs.ops import convolution
from tinygrad_nnfs.registry import unbroadcast
from tinygrad_nnfs.testing import op_cases

# these are in words, or use words: the gradient checks alone say that their rules are right
IN_WORDS = {
    *("conv2d_naive", "dropout", "max_pool2d", "avg_pool2d"),
    *("concatenate", "getitem", "pad", "to"),
}


def rules_of(op, case):
    """The names of the inputs that have a rule, and the rules, in a call with this case."""
    inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in case.inputs]
    y, *rules = op.reference(np, *inputs, **case.params)
    names = formulas.inputs(op)
    if names[0].startswith("*"):
        names = names[:1] * len(inputs)
    return np.asarray(y), [(n.strip("*"), r, x) for n, r, x in zip(names, rules, inputs)]


@pytest.mark.parametrize("name", OPS)
def test_every_rule_has_a_formula(name):
    case = next(cases_of(OPS[name], Draw()))
    expected = {f"d{name}" for name, rule, _ in rules_of(OPS[name], case)[1] if rule}
    assert {formula.name for formula in formulas.read(OPS[name]).rules} == expected


def test_a_missing_formula_is_noticed():
    @op
    def without_formula(xp, x):
        """x."""
        return x, lambda dy: dy

    @without_formula.samples
    def _(draw):
        yield draw.case(draw.normal(2))

    with pytest.raises(AssertionError):
        test_every_rule_has_a_formula("without_formula")


@pytest.mark.parametrize("name", OPS)
def test_formulas_can_be_typeset(name):
    block = formulas.read(OPS[name])
    for formula in (*block.rules, *block.definitions):
        ElementTree.fromstring(f"<p>{formulas.mathml(formula)}</p>")


# -- are they right? -------------------------------------------------------------------------------


def keeping(reduction):
    return lambda x, axis: reduction(x, axis=axis, keepdims=True)


def vocabulary(op, case, y):
    """What the words in the formulas mean, for one case."""
    family = op.reference.__module__.rpartition(".")[2]
    names = dict(zip((n.strip("*") for n in formulas.inputs(op)), case.inputs))
    names |= {**default_params(op, case), "y": y}
    for function in ("exp", "log", "sqrt", "tanh", "sign", "where", "reshape", "transpose", "take"):
        names[function] = getattr(np, function)
    names |= {"pi": np.pi, "argsort": np.argsort, "astype": lambda x, dtype: x.astype(dtype)}
    names |= {"sum": keeping(np.sum), "mean": keeping(np.mean), "var": keeping(np.var)}
    names["softmax"] = lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    if family == "reduce":
        names |= reduction_words(case, names)
    if family == "loss":
        names |= loss_words(op, case, names)
    return names | extra_words(op, case, names)


def default_params(op, case):
    options = inspect.signature(op.reference).parameters.values()
    defaults = {p.name: p.default for p in options if p.kind is p.KEYWORD_ONLY}
    return defaults | case.params


def reduction_words(case, names):
    (x,) = case.inputs
    axis = names["axis"]
    axes = tuple(range(x.ndim)) if axis is None else axis
    kept = np.sum(x, axis=axes, keepdims=True).shape
    return {
        "axis": axes,
        "spread": lambda dy: np.broadcast_to(dy.reshape(kept), x.shape),
        "count": x.size // max(np.prod(kept, dtype=int), 1),
    }


def loss_words(op, case, names):
    x = case.inputs[0]
    losses = x.size if op.__name__ == "mse_loss" else len(x)
    share = 1 / losses if names["reduction"] == "mean" else 1.0

    def spread(dy):
        dy = np.asarray(dy) * share
        return dy if op.__name__ == "mse_loss" else dy.reshape(-1, 1)

    k = x.shape[-1] if x.ndim else 1
    return {"spread": spread, "k": k, "onehot": lambda labels: np.eye(k)[labels]}


def extra_words(op, case, names):
    """The words of single ops that their docstrings define in words."""
    x = case.inputs[0]
    if op.__name__ == "clip":
        return {
            "low": -np.inf if names["low"] is None else names["low"],
            "high": np.inf if names["high"] is None else names["high"],
        }
    if op.__name__ == "transpose":
        axes = names["axes"]
        return {"axes": [i % x.ndim for i in axes] if axes else range(x.ndim)[::-1]}
    if op.__name__ == "batch_norm2d":
        return {"weight": names["weight"][:, None, None]}
    if op.__name__ == "layer_norm":
        first = x.ndim - names["weight"].ndim
        return {"axes": tuple(range(first, x.ndim)), "batch": tuple(range(first))}
    if op.__name__ == "conv2d":
        options = {n: names[n] for n in ("stride", "padding", "dilation", "groups")}
        geometry = convolution.Geometry(x, names["weight"], None, **options)
        g = geometry.groups
        return {
            "W": names["weight"].reshape(g, geometry.outputs // g, -1),
            "D": lambda dy: dy.transpose(1, 0, 2, 3).reshape(g, geometry.outputs // g, -1),
            "im2col": lambda x: convolution.im2col(np, x, geometry),
            "col2im": lambda columns: convolution.col2im(np, columns, x.shape, geometry),
        }
    return {}


def fits(op, case):
    """Whether the formulas, which are written for the plain case, are meant for this one."""
    if op.__name__ in ("matmul", "linear"):
        return all(x.ndim >= 2 for x in case.inputs[:2]) and (
            op.__name__ == "matmul" or case.inputs[0].ndim == 2
        )
    if op.__name__ == "batch_norm2d":
        return case.params.get("training", True)
    if op.__name__ == "conv2d":
        return case.inputs[0].size > 0  # reshape(g, o/g, -1) of nothing is ambiguous
    return True


def check_formulas(op, case):
    y, rules = rules_of(op, case)
    names = vocabulary(op, case, y)
    block = formulas.read(op)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    names["dy"] = dy
    if callable(names.get("D")):
        names["D"] = names["D"](dy)
    for definition in reversed(block.definitions):
        if definition.expression is not None:
            names[definition.target] = eval(definition.value, {}, names)
    stated = {formula.name: formula for formula in block.rules}
    for i, (name, rule, x) in enumerate(rules):
        if rule is None or not isinstance(x, np.ndarray):
            continue
        formula = stated[f"d{name}"]
        if formula.target.endswith("[k]"):
            found = np.concatenate(
                [eval(formula.value, {}, names | {"k": k}) for k in range(len(x))]
            )
        else:
            found = eval(formula.value, {}, names | {"i": i})
        if np.size(found) != x.size:
            found = unbroadcast(found, x.shape)
        found = np.reshape(found, x.shape)  # sums and means keep the axes
        np.testing.assert_allclose(found, rule(dy), rtol=1e-9, atol=1e-9, err_msg=formula.target)


@pytest.mark.parametrize("name", [name for name in OPS if name not in IN_WORDS])
def test_formulas_are_right(name):
    op, seen = OPS[name], 0

    @given(op_cases(op))
    def check(cases):
        nonlocal seen
        for case in filter(lambda case: fits(op, case), cases):
            with np.errstate(all="ignore"):
                check_formulas(op, case)
            seen += 1

    check()
    assert seen
