"""detect_anomaly: the right op is blamed, every change of memory is found, and nothing else is."""

import contextlib
import gc
import linecache
import math
import re
import runpy
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.evaluation import probabilities
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import (
    OPS,
    AnomalyError,
    Tensor,
    detect_anomaly,
    manual_seed,
    nn,
    no_grad,
    op,
    ops,
    optim,
    profile,
    reference_kernels,
    registry,
)
from tinygrad_nnfs.debug import count, describe, fingerprint
from tinygrad_nnfs.kernels import threads
from tinygrad_nnfs.ops import conv2d, softmax_cross_entropy
from tinygrad_nnfs.testing import op_cases

THIS_FILE = __file__


@pytest.fixture(autouse=True)
def _no_observer_is_left_behind():
    yield
    assert registry.observers == ()


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


@contextlib.contextmanager
def accused(message):
    """The block raises an AnomalyError that begins with `message`."""
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        yield
    assert str(error.value).startswith(message)


def line_of(source):
    """`file:line` of the only line of this file that ends with the comment `# source`."""
    lines = Path(THIS_FILE).read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, start=1) if line.endswith(f"# {source}"))
    return f"{THIS_FILE}:{number}, in "


# -- which op is blamed ----------------------------------------------------------------------------


def test_a_forward_that_makes_an_infinity_is_named_with_line_and_inputs():
    x = Tensor(np.array([[1.0, 0.0, -2.0]]))
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        (x + 0).log().sum()  # the logarithm
    assert str(error.value).splitlines() == [
        "log made 1 NaN, 1 -Inf out of finite inputs",
        f"  called at {line_of('the logarithm')}"
        "test_a_forward_that_makes_an_infinity_is_named_with_line_and_inputs: "
        "(x + 0).log().sum()  # the logarithm",
        "  x: float64 (1, 3), -2 to 1",
        "  output: float64 (1, 3), all 0, 1 NaN, 1 -Inf",
    ]


def test_a_backward_that_makes_an_infinity_is_named_with_the_line_of_its_forward():
    x = leaf(4.0, 0.0)
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        y = x.sqrt()  # the root
        y.sum().backward()
    first, *rest = str(error.value).splitlines()
    assert first == "the backward of sqrt made 1 +Inf in the gradient by x out of finite inputs"
    assert line_of("the root") in rest[0]
    assert rest[1:] == [
        "  x: float64 (2,), 0 to 4",
        "  dy: float64 (2,), all 1",
        "  the gradient by x: float64 (2,), all 0.25, 1 +Inf",
    ]
    assert x.grad is None


def test_the_layer_and_the_parameter_are_named():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    network[1][1].weight.data[0, 1] = np.nan
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        network(np.ones((5, 3), np.float32))  # the network
    assert str(error.value).startswith(
        "NaN came into linear in Sequential, layer 1.1 (Linear), with weight (1.1.weight)\n"
        f"  called at {line_of('the network')}"
    )
    assert "\n  weight (1.1.weight): float32 (2, 4), " in str(error.value)


def test_modules_of_a_user_are_the_users_code():
    class Wrong(nn.Module):
        def forward(self, x):
            return x / (x - x)  # the division

    network = nn.Sequential(nn.ReLU(), Wrong())
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        network(Tensor([1.0]))
    assert str(error.value).startswith("divide in Sequential, layer 1 (Wrong), made 1 +Inf out of")
    assert line_of("the division") in str(error.value)


def test_the_models_of_the_library_are_users_too():
    network = MLP()
    network[1].bias.data[0] = np.nan
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        probabilities(network, np.zeros((2, 28, 28), np.uint8), [*"0123456789"])
    assert re.search(r"called at \S*evaluation\.py:\d+, in ", str(error.value))


def test_a_module_alone_and_one_that_is_kept_out_of_sight():
    hidden = nn.Linear(2, 2)
    hidden.weight.data[...] = np.inf

    class Hides(nn.Module):
        def forward(self, x):
            return hidden(x)

    with accused("NaN came into relu in ReLU with x"):
        nn.ReLU()(Tensor([np.nan]))
    with accused("Inf came into linear in Hides, a Linear, with weight"):
        Hides()(Tensor([[1.0, 2.0]]))


def test_bad_data_is_not_blamed_on_the_op():
    images = np.zeros((2, 3))
    images[0, 0] = np.nan
    with accused("NaN came into matmul with a"):
        Tensor(images) @ np.ones((3, 2))
    with accused("Inf came into matmul with b"):
        np.ones((2, 3)) @ Tensor(np.full((3, 2), np.inf))
    with accused("NaN came into stack with xs[1]"):
        ops.stack([1.0], [np.nan])


def test_a_gradient_that_is_not_finite_from_the_beginning_is_said_to_come_in():
    x = leaf(1.0, 2.0)
    with accused("NaN came into the backward of exp with dy, the"):
        x.exp().backward(np.array([1.0, np.nan]))


def test_numbers_and_masks_may_be_infinite():
    scores, allowed = leaf(1.0, 2.0, 3.0), np.array([True, False, True])
    mask = np.where(allowed, 0, -np.inf)
    with detect_anomaly():
        for masked in (
            ops.where(allowed, scores, -math.inf),
            ops.where(allowed, scores, mask),
            scores + mask,
            ops.minimum(scores, np.inf),
            ops.concatenate(scores, ops.pad(scores, pad_width=((0, 1),), value=-math.inf)),
        ):
            assert np.isfinite(ops.softmax(masked).data).all()
            ops.softmax(masked * 2).max().backward()
        scores.clip(high=math.inf).sum().backward()
        assert (ops.where(allowed, scores, math.inf) * 2).min().item() == 2  # passed on


def test_a_nan_made_from_a_mask_is_a_fault():
    scores = Tensor([1.0, 2.0])
    with accused("softmax made 2 NaN out of the Inf in x"):
        ops.softmax(ops.where([False, False], scores, -math.inf))


def test_a_backward_that_makes_a_nan_of_a_mask_is_a_fault():
    x = leaf(1.0)
    with accused("the backward of multiply made 1 -Inf in the gradient by a"):
        (x * np.array([-np.inf])).sum().backward()


def test_the_infinity_of_a_parameter_is_never_meant():
    layer = nn.Linear(1, 1)
    layer.bias.data[...] = -np.inf
    with accused("Inf came into linear in Linear with bias (bias)"):
        layer(Tensor([[1.0]]))


def test_integers_bools_and_empty_arrays_are_fine():
    with detect_anomaly():
        assert (Tensor(np.arange(3)) < 2).numpy().tolist() == [True, True, False]
        assert (Tensor(np.arange(3)) * 2).sum().item() == 6
        assert Tensor(np.zeros((0, 3))).sum().item() == 0


def test_an_op_of_a_user_is_watched_and_malformed_ones_get_their_own_message():
    @op
    def reciprocal(xp, x):
        return 1 / x, lambda dy: -dy / x**2

    @op
    def bare(xp, x):
        return x

    @op
    def taped(xp, x):
        return Tensor(x, requires_grad=True), None

    with detect_anomaly():
        with pytest.raises(AnomalyError, match="reciprocal made 1 \\+Inf"):
            reciprocal([0.0])
        with pytest.raises(TypeError, match="op bare must return its output and a rule"):
            bare(Tensor([1.0]))
        with pytest.raises(TypeError, match="op taped returned a Tensor"):
            taped(Tensor([1.0]))


SAFE = {"exp", "negative", "abs", "sigmoid", "tanh", "relu", "gelu", "softplus"}


@given(st.data())
def test_in_a_random_chain_the_op_with_the_fault_is_blamed(data):
    """Oracle: the same chain, op by op, by numpy alone."""
    names = data.draw(st.lists(st.sampled_from(sorted(SAFE | {"log", "sqrt"})), max_size=6))
    values = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3))
    x, expected = Tensor(np.array(values)), None
    y = x.data
    with np.errstate(all="ignore"):
        for name in names:
            y = OPS[name].reference(np, y)[0]
            if not np.isfinite(y).all():
                expected = name
                break
    try:
        with detect_anomaly():
            for name in names:
                x = OPS[name](x)
    except AnomalyError as error:
        assert str(error).startswith(f"{expected} made ")
    else:
        assert expected is None


# -- no false alarms -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_op_is_accused_over_its_own_samples(name, dtype):
    """Neither of a NaN, nor of a change of what it saved; float64 runs without faster variants."""

    @given(op_cases(OPS[name]))
    def run(cases):
        for inputs, params in cases:
            arrays = [x.astype(dtype) if is_floating(x) else x for x in inputs]
            leaves = [Tensor(x, requires_grad=True) if is_floating(x) else x for x in arrays]
            y = OPS[name](*leaves, **params)
            if y.requires_grad:
                y.backward(np.ones_like(y.data), retain_graph=True)
                y.backward(np.ones_like(y.data))

    variants = threads.tiny_pieces() if dtype == "float32" else reference_kernels()
    with variants, detect_anomaly():
        run()


def is_floating(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def training_step(network, optimizer, images, labels):
    loss = softmax_cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def batches(count, size):
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.random((size, 1, 28, 28), np.float32), random.integers(0, 10, size)


@pytest.mark.parametrize(("make", "size"), [(MLP, 64), (CNN, 24)], ids=["mlp", "cnn"])
def test_training_is_not_accused_and_learns_the_same(make, size, monkeypatch):
    """With fast kernels, threads and reused memory: the activations are large enough for it."""
    monkeypatch.setattr(threads, "_chosen", 3)
    weights = []
    for watched in (False, True):
        manual_seed(0)
        network = make()
        optimizer = optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for images, labels in batches(4, size):
            if watched:
                with detect_anomaly():
                    training_step(network, optimizer, images, labels)
            else:
                training_step(network, optimizer, images, labels)
        weights.append(network.state_dict())
    for name, expected in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], expected)


def test_batch_norm_moves_its_statistics_without_an_alarm():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(2704, 10)
    )
    optimizer = optim.AdamW(network.parameters(), lr=1e-3)
    with detect_anomaly():
        for images, labels in batches(2, 4):
            training_step(network.train(), optimizer, images, labels)
            training_step(network.eval(), optimizer, images, labels)


# -- memory that was changed -----------------------------------------------------------------------


def changed(error):
    """What the message says was changed."""
    return str(error.value).partition(" was changed after the forward, and the backward needs it")[
        0
    ]


@pytest.mark.parametrize("name", OPS)
def test_every_change_of_what_a_rule_saved_is_found(name):
    """Of every array that the rules of every op saved, over its samples."""

    @given(st.data())
    def run(data):
        for inputs, params in data.draw(op_cases(OPS[name])):
            arrays = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
            leaves = [Tensor(x, requires_grad=True) if is_floating(x) else x for x in arrays]
            with detect_anomaly():
                y = OPS[name](*leaves, **params)
            if y.node is None:
                continue
            saved = registry.captured_arrays([rule for rule in y.node.rules if rule])
            saved = [x for x in saved if x.size and x.flags.writeable]
            if not saved:
                continue
            changed = data.draw(st.sampled_from(saved))
            place = data.draw(st.tuples(*(st.integers(0, n - 1) for n in changed.shape)))
            changed[place] = 1 - changed[place] if changed.dtype.kind == "b" else changed[place] + 1
            with pytest.raises(AnomalyError, match=rf" of {name} was changed"):
                y.backward(np.ones_like(y.data))

    run()


def test_what_was_changed_is_shown_as_the_user_knows_it():
    # fast convolutions save images that lie channels last as (n, h, w, c)
    images = np.ones((2, 6, 5, 16), np.float32).transpose(0, 3, 1, 2)
    with detect_anomaly():
        y = conv2d(images, Tensor(np.ones((16, 16, 3, 3), np.float32), requires_grad=True))
    images[0] = 3
    with pytest.raises(AnomalyError, match=r"(?s)x of conv2d was .* now: float32 \(2, 16, 6, 5\)"):
        y.backward(np.ones(y.shape, np.float32))


def small_network():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return network, optim.SGD(network.parameters(), lr=0.1)


def test_a_step_of_the_optimizer_between_forward_and_backward():
    network, optimizer = small_network()
    images, labels = np.ones((5, 3), np.float32), np.zeros(5, int)
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        training_step(network, optimizer, images, labels)
        loss = softmax_cross_entropy(network(images), labels)  # too early
        optimizer.step()
        loss.backward()  # too late
    assert changed(error) == "weight (2.weight) of linear in Sequential, layer 2 (Linear),"
    assert f"\n  forward called at {line_of('too early')}" in str(error.value)
    assert f"\n  backward called at {line_of('too late')}" in str(error.value)


def test_a_weight_that_no_rule_needs_may_change():
    network = nn.Linear(3, 2)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    with detect_anomaly():
        for rows in (1, 5):
            images = np.ones((rows, 3), np.float32)
            network(images).sum().backward()
            expected = network.weight.grad.numpy().copy()
            loss = network(images).sum()  # of its input no gradient is asked
            optimizer.step()
            optimizer.zero_grad()
            loss.backward()
            np.testing.assert_array_equal(network.weight.grad.numpy(), expected)
            optimizer.zero_grad()


def test_load_state_dict_between_forward_and_backward():
    network, _ = small_network()
    state = {name: value * 2 for name, value in network.state_dict().items()}
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        loss = network(np.ones((5, 3), np.float32)).sum()
        network.load_state_dict(state)
        loss.backward()
    assert changed(error) == "weight (2.weight) of linear in Sequential, layer 2 (Linear),"


def test_a_loader_that_fills_the_same_array_again():
    network, _ = small_network()
    images, labels = np.ones((5, 3), np.float32), np.zeros(5, int)
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        loss = softmax_cross_entropy(network(Tensor(images)), labels)
        images[...] = 2
        loss.backward()
    assert changed(error) == "x of linear in Sequential, layer 0 (Linear),"
    assert "\n  now: float32 (5, 3), all 2\n" in str(error.value)


def test_an_alias_of_a_result():
    x = leaf(1.0, 2.0)
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        y = x.exp()
        y.numpy()[...] = 0
        y.sum().backward()
    assert changed(error) == "the result of exp"


def test_something_in_between_that_the_rule_saved():
    x = leaf(*range(20))
    with pytest.raises(AnomalyError) as error, detect_anomaly():
        y = ops.dropout(x, p=0.5, key=(0, 0))
        registry.captured_arrays(y.node.rules)[0][...] ^= True
        y.sum().backward()
    assert changed(error) in ("an array that the forward saved of dropout", "x of dropout")


def test_a_rule_that_changes_what_another_needs():
    @op
    def greedy(xp, a, b):
        saved = a * 1

        def da(dy):
            saved[...] = 0
            return dy

        return a + b, da, lambda dy: dy * saved

    with accused("an array that the forward saved of greedy was changed"):
        greedy(leaf(1.0), leaf(2.0)).backward()


def test_what_no_rule_needs_may_change():
    network, _ = small_network()
    buffer = np.ones((2, 5, 3), np.float32)
    with detect_anomaly():
        loss = network(buffer[0]).sum()
        buffer[1] = 7  # the same memory block, but not what was used
        network[2].bias.data[...] = 0
        loss.backward()
    x = leaf(1.0)
    with detect_anomaly():
        y = x + 1
        x.data[...] = 5
        y.backward()
        with no_grad():
            x.exp()
        x.data[...] = 6


# -- scope of the context --------------------------------------------------------------------------


def test_a_backward_is_watched_after_the_context_if_its_forward_was_inside():
    with detect_anomaly():
        y = leaf(0.0).sqrt()
    with pytest.raises(AnomalyError, match="the backward of sqrt made"):
        y.backward()
    with np.errstate(all="ignore"):
        y = leaf(0.0).sqrt()
        with detect_anomaly():
            y.backward()


@pytest.mark.parametrize("outer", [profile, detect_anomaly])
@pytest.mark.parametrize("inner", [profile, detect_anomaly])
def test_nests(outer, inner):
    x = leaf(1.0, 2.0)
    y = Tensor(np.array([3.0, 4.0]))
    with outer(), inner():
        z = x + y
        y.data[...] = 0  # an input, but nothing that a rule needs
        (z * z).sum().backward()
        np.testing.assert_array_equal(x.grad.data, [8, 12])
        if detect_anomaly in (outer, inner):
            with pytest.raises(AnomalyError, match="log made"):
                Tensor([0.0]).log()
            z = x * x
            x.data[...] = 0
            with pytest.raises(AnomalyError, match=r"a of multiply was changed"):
                z.sum().backward()


def test_as_a_decorator():
    @detect_anomaly()
    def logarithm(x):
        return ops.log(x)

    for _ in range(2):
        with pytest.raises(AnomalyError):
            logarithm([0.0])


def test_threads_are_watched_each_on_its_own():
    found = []

    def work(i):
        try:
            network, optimizer = small_network()
            for step in range(20):
                images = np.full((5, 3), i + 1, np.float32)
                if i == 2 and step == 10:
                    images[0] = np.nan
                training_step(network, optimizer, images, np.zeros(5, int))
        except AnomalyError as error:
            found.append((i, str(error)))

    with detect_anomaly():
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    ((i, message),) = found
    assert i == 2
    assert message.startswith("NaN came into linear in Sequential, layer 0 (Linear), with x\n")


def test_an_op_that_began_before_the_context():
    """In another thread: `recorded` is then told of an op that was not called here."""
    entered = detect_anomaly()

    @op
    def slow(xp, x):
        entered.__enter__()
        return x * 1, lambda dy: dy

    y = slow(leaf(1.0))
    entered.__exit__(None, None, None)
    y.backward()


def test_memory_is_freed_by_backward_alone():
    gc.disable()
    try:
        with detect_anomaly():
            x = leaf(1.0, 2.0)
            y = x.exp().exp()
            alive = weakref.ref(y.node.inputs[0].rules[0].args[1].output)
            y.sum().backward()
            assert alive() is None
    finally:
        gc.enable()


# -- what is shown of arrays -----------------------------------------------------------------------


@given(
    st.lists(st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf]), max_size=8),
    st.booleans(),
)
def test_counts_and_ranges(values, strided):
    x = np.array(values, np.float32)
    x = np.repeat(x, 2)[::-2] if strided else x
    kinds = {"NaN": np.isnan, "+Inf": np.isposinf, "-Inf": np.isneginf}
    counts = {name: int(kind(x).sum()) for name, kind in kinds.items()}
    assert count(x) == ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    finite = x[np.isfinite(x)]
    shown = describe(x)
    assert shown.startswith(f"float32 ({len(x)},), ")
    assert shown.endswith(count(x))
    if finite.size:
        assert f"{finite.max():.4g}" in shown
        assert f"{finite.min():.4g}" in shown


def test_a_rule_may_return_a_scalar_of_numpy():
    @op
    def total(xp, x):
        return x.sum(), lambda dy: dy * np.float64(np.nan)

    with accused("the backward of total made 1 NaN in the gradient by x out of finite inputs"):
        total(Tensor(np.array(1.0), requires_grad=True)).backward()


def test_what_is_no_floating_array_is_described_too():
    assert describe(np.arange(6).reshape(2, 3)) == "int64 (2, 3), 0 to 5"
    assert describe(np.array([True, True])) == "bool (2,), all True"
    assert describe(0.5) == "0.5"
    assert describe(np.zeros((0, 2))) == "float64 (0, 2), no elements"


@given(st.data())
def test_fingerprints_see_every_bit_in_every_memory_order(data):
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    wide = np.random.default_rng(0).standard_normal((*shape[:2], 2 * shape[2]))
    x = wide[:, ::-1, ::2].transpose(data.draw(st.permutations(range(3))))
    before = fingerprint(x)
    assert fingerprint(x) == before
    place = data.draw(st.tuples(*(st.integers(0, n - 1) for n in x.shape)))
    x.reshape(-1)  # a copy: not needed
    x[place] = np.nextafter(x[place], np.inf)
    assert fingerprint(x) != before


def test_fingerprints_of_arrays_without_elements_or_axes():
    assert fingerprint(np.zeros((0, 3))) == 0
    assert fingerprint(np.array(1.0)) != fingerprint(np.array(2.0))


# -- the docs --------------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"


def test_the_docs_show_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed, compared = "", 0
    page = (DOCS / "debugging.md").read_text()
    for kind, block in re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL):
        if kind == "python" and "\n...\n" not in block:
            Path("example.py").write_text(block)
            linecache.clearcache()
            manual_seed(0)  # as in a process of its own
            exec(compile(block, "example.py", "exec"), {"__name__": "__main__"})
            printed = capsys.readouterr().out
        elif kind == "text" and printed:
            assert printed == block
            compared, printed = compared + 1, ""
    assert compared == 2


def test_the_example_draws_gradient_norms(tmp_path, monkeypatch):
    script = runpy.run_path(str(DOCS / "examples" / "gradient_norms.py"))
    script["draw"](tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    norms = script["gradient_norms"](script["deep"](script["Sigmoid"]), steps=20)
    assert list(norms) == ["1.weight", "3.weight", "5.weight", "7.weight", "9.weight"]
    assert np.mean(norms["9.weight"]) > 10 * np.mean(norms["1.weight"])
