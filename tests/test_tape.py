"""The tape: what is recorded, freed, added up and refused."""

import gc
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_nnfs import Parameter, Tensor, no_grad, op
from tinygrad_nnfs.ops import exp, multiply


@pytest.fixture
def no_collector():
    """With the garbage collector off, only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


# -- gradients through graphs of every form --------------------------------------------------------


def test_diamond():
    x = leaf(3.0)
    a, b = x * 2, x * x
    (a * b).sum().backward()  # 2 x^3
    assert x.grad.item() == 6 * 9


def test_shared_subgraph_is_passed_once():
    calls = []

    @op
    def counted(xp, x):
        return x + 0, lambda dy: (calls.append(1), dy * 1.0)[1]

    x = leaf(1.0)
    shared = counted(x)
    (shared * 2 + shared * 3 + shared).sum().backward()
    assert x.grad.item() == 6
    assert len(calls) == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_random_graphs_agree_with_forward_mode(steps):
    """Values and derivatives of random graphs of +, * and tanh, against dual numbers."""
    x = leaf(0.7)
    nodes, duals = [x], [(0.7, 1.0)]
    for kind, i, j in steps:
        i, j = i % len(nodes), j % len(nodes)
        (a, da), (b, db) = duals[i], duals[j]
        if kind == 0:
            nodes.append(nodes[i] + nodes[j])
            duals.append((a + b, da + db))
        elif kind == 1:
            nodes.append((nodes[i] * nodes[j]).tanh())
            duals.append((np.tanh(a * b), (da * b + a * db) * (1 - np.tanh(a * b) ** 2)))
        else:
            nodes.append(nodes[i].tanh())
            duals.append((np.tanh(a), da * (1 - np.tanh(a) ** 2)))
    nodes[-1].backward()
    assert nodes[-1].item() == pytest.approx(duals[-1][0])
    assert x.grad.item() == pytest.approx(duals[-1][1])


def test_gradients_add_up_over_backwards():
    x = leaf(2.0)
    for _ in range(3):
        (x * x).sum().backward()
    assert x.grad.item() == 12


def test_leaf_can_be_the_root():
    x, dy = leaf(1.0, 2.0), np.array([3.0, 4.0])
    x.backward(dy)
    assert x.grad.numpy().tolist() == [3, 4]
    assert not np.shares_memory(x.grad.numpy(), dy)


def test_rules_of_inputs_without_gradient_are_dropped():
    x, w = Tensor(np.ones(3)), Parameter(np.ones(3))
    y = x * w
    assert [rule is None for rule in y.node.rules] == [True, False]
    assert (x * x).node is None


def test_gradients_of_two_leaves_never_share_memory():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    dy = np.ones(2)
    ((a + b) + (a - b).reshape(1, 2).reshape(2)).backward(dy)
    assert not np.shares_memory(a.grad.numpy(), b.grad.numpy())
    assert not np.shares_memory(a.grad.numpy(), dy)
    assert dy.tolist() == [1, 1]
    a.grad.data[0] = 99
    assert b.grad.numpy()[0] != 99


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_collector")
def test_dropped_graph_is_freed_at_once():
    x = leaf(1.0)
    y = exp(x * 2)
    node, saved = weakref.ref(y.node), weakref.ref(y.data)
    del y
    assert node() is None
    assert saved() is None


@pytest.mark.usefixtures("no_collector")
def test_saved_arrays_die_in_backward_while_the_output_is_held():
    x = leaf(1.0)
    hidden = exp(x)
    saved = weakref.ref(hidden.data)
    loss = (hidden * 3).sum()
    del hidden
    assert saved() is not None
    loss.backward()
    assert saved() is None


@pytest.mark.usefixtures("no_collector")
def test_saved_arrays_die_one_after_the_other_during_backward():
    alive = []

    @op
    def watched(xp, x):
        saved = np.ones(1)
        references.append(weakref.ref(saved))

        def dx(dy):
            alive.append(sum(reference() is not None for reference in references))
            return dy * saved

        return x * saved, dx

    references = []
    y = leaf(1.0)
    for _ in range(5):
        y = watched(y)
    y.backward()
    assert alive == [5, 4, 3, 2, 1]


@pytest.mark.usefixtures("no_collector")
def test_activation_that_no_rule_asked_for_dies_at_once():
    x = leaf(1.0)
    hidden = x + 1
    activation = weakref.ref(hidden.data)
    y = hidden + 1
    del hidden
    assert activation() is None
    assert y.node is not None


def test_no_reference_cycles():
    gc.collect()
    x = Parameter(np.ones((4, 4)))
    for _ in range(3):
        (x @ x).tanh().sum().backward()
        x.grad = None
    assert gc.collect() == 0


@pytest.mark.usefixtures("no_collector")
def test_chain_of_200_000_ops():
    x = leaf(1.0)
    start = time.perf_counter()
    y = x
    for _ in range(200_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1
    node = weakref.ref(y.node)
    del y
    assert node() is None
    assert (
        time.perf_counter() - start < 60
    )  # no test of speed: it hangs when something is quadratic


# -- refusals --------------------------------------------------------------------------------------


def test_second_backward_names_the_op():
    x = leaf(1.0)
    y = exp(x)
    z = (y * 2).sum()
    z.backward()
    with pytest.raises(RuntimeError, match=r"passed through sum before.*retain_graph=True"):
        z.backward()
    with pytest.raises(RuntimeError, match="passed through exp before"):
        (y * 3).sum().backward()
    assert x.grad.item() == pytest.approx(2 * np.e)


def test_retain_graph():
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 4


def test_retain_grad_keeps_the_gradient_by_a_result():
    x = leaf(2.0, 3.0)
    y = x * x
    y.retain_grad()
    z = y * 5
    z.sum().backward(retain_graph=True)
    np.testing.assert_array_equal(y.grad.data, [5, 5])
    assert z.grad is None
    z.sum().backward()
    np.testing.assert_array_equal(y.grad.data, [10, 10])
    assert not np.shares_memory(y.grad.data, x.grad.data)


def test_retained_gradient_of_the_root_is_the_upstream_gradient():
    y = leaf(1.0, 2.0) + 1
    y.retain_grad()
    upstream = np.array([3.0, 4.0])
    y.backward(upstream)
    np.testing.assert_array_equal(y.grad.data, upstream)
    assert not np.shares_memory(y.grad.data, upstream)


def test_retain_grad_off_the_tape_is_refused():
    with pytest.raises(RuntimeError, match="there will be no gradient"):
        Tensor([1.0]).retain_grad()


def test_backward_of_many_elements_needs_a_gradient():
    with pytest.raises(RuntimeError, match=r"result of exp needs a gradient of shape \(2,\)"):
        exp(leaf(1.0, 2.0)).backward()


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (np.ones(3), r"must be float64 \(2,\), found float64 \(3,\)"),
        (Tensor(np.ones(2, np.float32)), r"must be float64 \(2,\), found float32 \(2,\)"),
    ],
)
def test_backward_refuses_another_shape_or_dtype(gradient, message):
    with pytest.raises(ValueError, match=message):
        exp(leaf(1.0, 2.0)).backward(gradient)


def test_backward_of_nothing_recorded():
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        Tensor([1.0]).backward()


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (lambda dy: dy.sum(), r"float64 \(\)"),
        (lambda dy: dy[:1], r"float64 \(1,\)"),
        (lambda dy: dy.reshape(1, 2), r"float64 \(1, 2\)"),
        (lambda dy: dy.astype(np.float32), r"float32 \(2,\)"),
        (lambda dy: dy.astype(np.int64), r"int64 \(2,\)"),
    ],
)
def test_rule_of_wrong_shape_or_dtype_is_named_and_nothing_reaches_grad(rule, found):
    @op
    def wrong(xp, a, b):
        return a + b, rule, lambda dy: dy

    a, b = leaf(1.0, 2.0), leaf(1.0, 2.0)
    y = wrong(a, b)
    with pytest.raises(RuntimeError, match=rf"rule of wrong for input 0 returned {found}, the inp"):
        y.sum().backward()
    assert a.grad is None
    assert b.grad is None


def test_rule_that_raises_says_where():
    @op
    def broken(xp, x):
        return x * 1, lambda dy: dy / undefined  # noqa: F821

    with pytest.raises(NameError) as error:
        broken(leaf(1.0)).backward()
    assert error.value.__notes__ == [
        "in the rule of broken for input 0, which must return an array, float64 (1,)"
    ]


# -- no_grad and threads ---------------------------------------------------------------------------


def test_no_grad_as_block_and_decorator():
    x = leaf(1.0)
    with no_grad():
        assert (x * 2).node is None
        with no_grad():
            pass
        assert (x * 2).node is None
    assert (x * 2).node is not None

    @no_grad()
    def double():
        return x * 2

    assert double().node is None
    assert (x * 2).node is not None


def test_no_grad_ends_with_an_error():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1.0) * 2).requires_grad


def test_no_grad_in_one_thread_while_another_records():
    inside, recorded = threading.Event(), threading.Event()
    results = {}

    def silent():
        with no_grad():
            inside.set()
            recorded.wait(10)
            results["silent"] = (leaf(1.0) * 2).requires_grad

    thread = threading.Thread(target=silent)
    thread.start()
    inside.wait(10)
    results["recording"] = (leaf(1.0) * 2).requires_grad
    recorded.set()
    thread.join()
    assert results == {"silent": False, "recording": True}


def test_threads_that_share_a_leaf_lose_no_gradient():
    x = Parameter(np.zeros(2))

    def work():
        for _ in range(300):
            (x * 2).sum().backward()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert x.grad.numpy().tolist() == [2400, 2400]


def test_eight_threads_with_graphs_of_their_own():
    def work(seed):
        random = np.random.default_rng(seed)
        w = Parameter(random.standard_normal((8, 8)))
        for _ in range(50):
            x = random.standard_normal((4, 8))
            (multiply(Tensor(x) @ w, 0.5).tanh() ** 2).sum().backward()
        results[seed] = w.grad.numpy().copy()

    results: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for seed in range(8):
        work(seed)
        np.testing.assert_array_equal(together[seed], results[seed])
