"""Optimisers against PyTorch and their formulas, schedules, clipping."""

import math

import numpy as np
import pytest

from tinygrad_nnfs import Parameter, Tensor, optim


def run(optimizer, parameters, steps=5):
    random = np.random.default_rng(0)
    for _ in range(steps):
        for p in parameters:
            p.grad = Tensor(random.standard_normal(p.shape))
        optimizer.step()
    return [p.numpy().copy() for p in parameters]


def fresh():
    random = np.random.default_rng(1)
    return [Parameter(random.standard_normal(shape)) for shape in ((3, 2), (4,), ())]


def test_sgd_is_its_docstring():
    (p,) = [Parameter(np.array([1.0, 2.0]))]
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01)
    theta, v = np.array([1.0, 2.0]), np.zeros(2)
    for g in ([1.0, -1.0], [0.5, 2.0], [3.0, 0.0]):
        optimizer.lr = optimizer.lr / 2
        p.grad = Tensor(np.array(g))
        optimizer.step()
        v = 0.9 * v + optimizer.lr * (g + 0.01 * theta)
        theta = theta - v
        np.testing.assert_allclose(p.numpy(), theta, rtol=1e-14)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda ps: optim.SGD(ps, lr=0.1), lambda t, ps: t.SGD(ps, lr=0.1)),
        (
            lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
            lambda t, ps: t.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
        ),
        (
            lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
            lambda t, ps: t.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
        ),
        (
            lambda ps: optim.Adam(ps, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1),
            lambda t, ps: t.Adam(ps, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1),
        ),
        (
            lambda ps: optim.AdamW(ps, lr=0.1, weight_decay=0.1),
            lambda t, ps: t.AdamW(ps, lr=0.1, weight_decay=0.1),
        ),
    ],
)
def test_optimizers_agree_with_torch(ours, theirs):
    torch = pytest.importorskip("torch")
    parameters = fresh()
    found = run(ours(parameters), parameters)
    tensors = [torch.tensor(p.numpy(), requires_grad=True) for p in fresh()]
    optimizer = theirs(torch.optim, tensors)
    random = np.random.default_rng(0)
    for _ in range(5):
        for t in tensors:
            t.grad = torch.from_numpy(np.asarray(random.standard_normal(tuple(t.shape))))
        optimizer.step()
    for a, b in zip(found, tensors, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-10)


def test_groups_have_their_own_settings():
    weights, biases = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.SGD(
        [{"params": [weights], "weight_decay": 1.0}, {"params": [biases], "lr": 0.0}], lr=0.5
    )
    for p in (weights, biases):
        p.grad = Tensor(np.zeros(2))
    optimizer.step()
    assert weights.numpy().tolist() == [0.5, 0.5]
    assert biases.numpy().tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"different learning rates \[0\.0, 0\.5\]"):
        optimizer.lr = 1.0


def test_parameters_without_gradient_are_left_alone():
    p, other = Parameter(np.ones(2)), Parameter(np.ones(2))
    for make in (lambda ps: optim.SGD(ps, lr=1, momentum=0.9, weight_decay=1), optim.AdamW):
        other.grad = Tensor(np.ones(2))
        make([p, other]).step()
    assert p.numpy().tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="no parameter has a gradient: call backward"):
        optim.SGD([p], lr=1).step()


def test_zero_grad_and_gradients_not_mutated():
    p = Parameter(np.ones(2))
    optimizer = optim.SGD([p], lr=1, momentum=0.9, weight_decay=1)
    gradient = np.ones(2)
    p.grad = Tensor(gradient)
    optimizer.step()
    assert gradient.tolist() == [1, 1]
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.SGD([], lr=1), ValueError, "there are no parameters"),
        (
            lambda: optim.SGD([Tensor([1.0])], lr=1),
            TypeError,
            "expected Parameters, found a Tensor",
        ),
        (lambda: optim.SGD([P, P], lr=1), ValueError, "a parameter was given twice"),
        (lambda: optim.SGD([P], lr=-1), ValueError, "SGD: lr must be >= 0, found -1"),
        (lambda: optim.SGD([P], lr=math.nan), ValueError, "lr must be >= 0, found nan"),
        (lambda: optim.SGD([P], lr=1, momentum=1), ValueError, r"momentum must be in \[0, 1\)"),
        (lambda: optim.SGD([P], lr=1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (
            lambda: optim.SGD([{"params": [P], "decay": 1}], lr=1),
            ValueError,
            r"unknown settings \['decay'\]; known: \['lr'",
        ),
        (lambda: optim.Adam([P], betas=(0.9, 1)), ValueError, r"Adam: betas must be in \[0, 1\)"),
        (lambda: optim.SGD(P, lr=1), TypeError, r"network\.parameters\(\), found one Parameter"),
        (lambda: optim.SGD([{"lr": 1}], lr=1), TypeError, 'a group is a dict with "params"'),
        (
            lambda: optim.SGD([{"params": [P], "momentum": 5}], lr=1),
            ValueError,
            r"momentum must be in \[0, 1\), found 5",
        ),
        (lambda: setattr(optim.SGD([P], lr=1), "lr", -1), ValueError, "lr must be >= 0, found -1"),
        (lambda: optim.SGD([P], lr=optim.CosineDecay(0.1, 9)), TypeError, "lr is a number; with a"),
        (lambda: optim.OneCycle(0.1, 10, warmup=1.0), ValueError, r"warmup must be in \(0, 1\)"),
        (lambda: optim.StepDecay(0.1, every=0), ValueError, "StepDecay: every must be > 0"),
        (lambda: optim.CosineDecay(0.1, total=0), ValueError, "CosineDecay: total must be > 0"),
        (lambda: optim.clip_grad_norm([P], 0), ValueError, "max_norm must be > 0, found 0"),
    ],
)
def test_bad_settings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


P = Parameter([1.0])


def test_clip_grad_norm():
    a, b, c = (Parameter(np.zeros(2)) for _ in range(3))
    a.grad, b.grad = Tensor(np.array([3.0, 0.0])), Tensor(np.array([0.0, 4.0]))
    assert optim.clip_grad_norm([a, b, c], 1.0) == 5
    np.testing.assert_allclose([a.grad.numpy()[0], b.grad.numpy()[1]], [0.6, 0.8])
    assert optim.clip_grad_norm([a, b, c], 2.0) == pytest.approx(1)
    np.testing.assert_allclose(a.grad.numpy()[0], 0.6)
    a.grad = Tensor(np.array([np.nan, 1.0]))
    assert math.isnan(optim.clip_grad_norm([a], 1.0))
    assert a.grad.numpy()[1] == 1


def test_clip_grad_norm_counts_a_shared_parameter_once_and_does_not_overflow():
    p = Parameter(np.zeros(2, np.float32))
    p.grad = Tensor(np.float32([3e20, 4e20]))
    assert optim.clip_grad_norm([p, p], 1.0) == pytest.approx(5e20)
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=1e-6)


def test_schedules():
    assert optim.Constant(0.1)(7) == 0.1
    decay = optim.InverseTimeDecay(0.01, decay=0.5)
    assert [decay(t) for t in (0, 1, 2)] == [0.01, 0.01 / 1.5, 0.005]
    steps = optim.StepDecay(1.0, every=10, factor=0.5)
    assert [steps(t) for t in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    cosine = optim.CosineDecay(1.0, total=10, final=0.2)
    assert [cosine(t) for t in (0, 5, 10, 11)] == pytest.approx([1, 0.6, 0.2, 0.2])


def test_one_cycle_agrees_with_torch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101)
    rates = []
    for _ in range(101):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step() if len(rates) < 101 else None
    # PyTorch turns one step before the share that it is given, for its steps count from 0 to 100
    ours = optim.OneCycle(1.0, total=100, warmup=(0.3 * 101 - 1) / 100)
    assert [ours(t) for t in range(101)] == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: optim.Adam(ps, lr=0.1),
        lambda ps: optim.AdamW(ps, lr=0.1),
    ],
)
def test_state_dict_goes_on_where_it_was(make):
    whole = fresh()
    optimizer = make(whole)
    run(optimizer, whole, steps=3)
    state, halfway = optimizer.state_dict(), [p.numpy().copy() for p in whole]
    expected = run(optimizer, whole)
    parameters = [Parameter(np.array(array, order="F")) for array in halfway]
    resumed = make(parameters)
    resumed.load_state_dict(state)
    for a, b in zip(run(resumed, parameters), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    for parameter in parameters:  # buffers lie as their parameters do: fast updates look for that
        for value in resumed.state[parameter].values():
            assert isinstance(value, int) or value.strides == parameter.data.strides
    state["0.velocity" if "0.velocity" in state else "0.mean"][...] = 0  # a copy
    assert any(a.any() for a in resumed.state_dict().values())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"3.velocity": np.zeros(1)}, "'3.velocity' is unknown: there are 3 parameters"),
        ({"velocity": np.zeros(1)}, "'velocity' is unknown"),
        ({"0.": np.zeros((3, 2))}, "'0.' is unknown"),
        ({"0.velocity": np.zeros((2, 3))}, r"0.velocity is float64 \(2, 3\), expected float64 \(3"),
        ({"0.velocity": np.zeros((3, 2), "f")}, r"is float32 \(3, 2\), expected float64 \(3, 2\)"),
        ({"0.mean": np.zeros((3, 2))}, r"of parameter 0 there is \['mean'\], expected \['velocity"),
        ({"0.velocity": np.array(3)}, r"there is \['velocity'\], expected \['velocity'\]"),
    ],
)
def test_state_that_does_not_fit(state, message):
    parameters = fresh()
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    run(optimizer, parameters)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("missing", ["t", "mean", "square"])
def test_half_of_the_state_of_adam_is_refused(missing):
    parameters = fresh()
    optimizer = optim.Adam(parameters)
    run(optimizer, parameters)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"0\.t is int64 \(2,\), expected"):
        optimizer.load_state_dict({**state, "0.t": np.array([3, 4])})
    del state[f"1.{missing}"]
    with pytest.raises(ValueError, match=r"of parameter 1 there is .* \['mean', 'square', 't'\]"):
        optimizer.load_state_dict(state)


def test_sgd_leaves_an_infinite_weight_infinite():
    p = Parameter(np.array([np.inf, 1.0], np.float32))
    for momentum in (0.0, 0.9):
        p.grad = Tensor(np.ones(2, np.float32))
        optim.SGD([p], lr=0.1, momentum=momentum).step()
        assert p.data[0] == np.inf


def test_state_may_be_of_tensors_and_lists():
    parameters = fresh()
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    state = {"0.velocity": Tensor(np.ones((3, 2))), "1.velocity": [1.0, 2.0, 3.0, 4.0]}
    optimizer.load_state_dict(state)
    assert optimizer.state_dict()["1.velocity"].tolist() == [1, 2, 3, 4]
    assert (optimizer.state_dict()["0.velocity"] == 1).all()


def test_an_optimiser_of_ones_own_keeps_what_it_likes():
    class Counting(optim.Optimizer):
        def update(self, data, grad, state, group):
            state["count"] = state.get("count", 0) + 1
            data -= grad / state["count"]

    parameters = fresh()
    first, second = Counting(parameters), Counting(parameters)
    run(first, parameters)
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == second.state_dict()


def test_weight_average_is_its_docstring():
    p = Parameter(np.asfortranarray(np.ones((2, 3))))
    average = optim.WeightAverage([p], decay=0.5)
    expected = np.ones((2, 3))
    random = np.random.default_rng(0)
    for t in range(1, 20):
        p.data[...] = random.standard_normal((2, 3))
        average.update()
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * p.data
    own = p.data
    with average.applied():
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-12)
        assert p.data.strides == own.strides
    assert p.data is own
    restored = optim.WeightAverage([p], decay=0.5)
    restored.load_state_dict(average.state_dict())
    for a in (average, restored):
        a.update()
    np.testing.assert_array_equal(average.averages[0], restored.averages[0])
    assert restored.t == 20


def test_weight_average_refuses_what_does_not_fit():
    average = optim.WeightAverage(fresh(), decay=0.5)
    with pytest.raises(ValueError, match=r"expected \{'t': \(\), '0': \(3, 2\)"):
        average.load_state_dict({"t": np.array(1)})
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), found 1"):
        optim.WeightAverage([P], decay=1)
