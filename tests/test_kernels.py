"""The faster variants: threads, memory, precision, and that they can be turned off."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import (
    Parameter,
    Tensor,
    backend,
    num_threads,
    ops,
    optim,
    profile,
    reference_kernels,
    set_num_threads,
)
from tinygrad_nnfs.checking import Case, run_checks
from tinygrad_nnfs.kernels import blas, loops, memory, threads, transforms
from tinygrad_nnfs.nn import Linear
from tinygrad_nnfs.ops import conv2d, softmax_cross_entropy

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed (extra: fast)"
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(autouse=True)
def default_threads():
    yield
    threads._chosen = None


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, n)


def losses_and_weights(network, steps=2, n=16, lr=0.05):
    optimizer = optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        images, labels = batch(n, seed=step)
        loss = softmax_cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.numpy().copy() for p in network.parameters()]


def variants_of(p):
    return {row.variant for row in p.rows}


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [CNN, MLP])
def test_results_do_not_depend_on_the_number_of_threads(network):
    from tinygrad_nnfs import manual_seed

    results = []
    for count in (1, 2, 3, 4, 2):
        set_num_threads(count)
        manual_seed(3)
        results.append(losses_and_weights(network()))
    for losses, weights in results[1:]:
        assert losses == results[0][0]
        for found, expected in zip(weights, results[0][1], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_run_does_every_piece_once_and_passes_errors_on():
    done = []
    set_num_threads(4)
    threads.run(done.append, range(100))
    assert sorted(done) == list(range(100))

    def fail(piece):
        if piece == 7:
            raise ZeroDivisionError(piece)

    with pytest.raises(ZeroDivisionError, match="7"):
        threads.run(fail, range(20))
    threads.run(done.append, range(3))  # and the pool still works
    assert len(done) == 103


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the pool has a thread for each core")
def test_nothing_is_at_work_after_an_error():
    set_num_threads(3)
    everybody, at_work = threading.Barrier(3), []

    def work(piece):
        everybody.wait(timeout=10)
        if threading.current_thread() is not threading.main_thread() and not at_work:
            at_work.append(piece)
            time.sleep(0.05)
            at_work.clear()
        else:
            raise ZeroDivisionError(piece)

    for _ in range(8):  # which helper fails is chance
        with pytest.raises(ZeroDivisionError):
            threads.run(work, range(3))
        assert not at_work
        assert blas.openblas() is None or not blas.openblas().users


def test_run_inside_run_does_not_wait_for_itself():
    set_num_threads(4)
    inner = []
    threads.run(lambda i: threads.run(lambda j: inner.append((i, j)), range(4)), range(8))
    assert sorted(inner) == [(i, j) for i in range(8) for j in range(4)]


def test_what_the_work_holds_dies_with_the_call():
    class Held:
        pass

    set_num_threads(4)
    for _ in range(20):
        held = Held()
        alive = weakref.ref(held)
        threads.run(lambda _, held=held: None, range(2))
        del held
        assert alive() is None


def test_blas_gets_its_threads_back():
    library = blas.openblas()
    if library is None:
        pytest.skip("numpy's BLAS is not OpenBLAS")
    before = library.get_num_threads()
    seen = []
    threads.run(lambda _: seen.append(library.get_num_threads()), range(8))
    assert set(seen) == {1}
    assert library.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda _: 1 // 0, range(2))
    assert library.get_num_threads() == before


@pytest.mark.parametrize(
    ("a", "b", "at_one_thread"),
    [
        ((64, 64), (64, 63), False),  # OpenBLAS takes one thread by itself
        ((64, 64), (64, 64), True),
        ((3, 64, 8), (3, 8, 64), False),
        ((1, 64), (64, 127), False),
        ((1, 64), (64, 128), True),
        ((512, 16), (16, 1), True),
        ((512, 16), (16,), True),  # products with vectors take more threads sooner
        ((16,), (16, 512), True),
        ((1, 16), (16, 512), True),
        ((2, 1, 16), (16, 512), True),
    ],
)
def test_blas_is_told_to_take_one_thread_for_what_is_not_small(monkeypatch, a, b, at_one_thread):
    told = []

    @contextlib.contextmanager
    def single_threaded():
        told.append(True)
        yield

    monkeypatch.setattr(blas, "single_threaded", single_threaded)
    x, y = np.ones(a, np.float32), np.ones(b, np.float32)
    np.testing.assert_array_equal(blas.matmul(x, y), x @ y)
    assert bool(told) == at_one_thread


def test_one_row_does_not_depend_on_the_threads_of_blas():
    library = blas.openblas()
    if library is None:
        pytest.skip("numpy's BLAS is not OpenBLAS")
    before = library.get_num_threads()
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(s).astype(np.float32) for s in ((1, 1000), (1000, 1000)))
    leaf = Tensor(x, requires_grad=True)
    results = []
    try:
        for count in (1, 2, 3):
            library.set_num_threads(count)
            leaf.grad = None
            with profile() as p:
                y = ops.linear(leaf, weight)
            assert variants_of(p) == {"linear_of_one_row"}
            y.backward(x)
            results.append((y.numpy(), leaf.grad.numpy()))
    finally:
        library.set_num_threads(before)
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


def test_several_threads_of_the_user_at_once():
    """Each with its own network; BLAS's setting is shared, and right again at the end."""
    library = blas.openblas()
    before = library and library.get_num_threads()
    images, labels = batch(4)
    network = CNN().eval()
    expected = network(images).numpy()
    found = [None] * 4

    def work(i):
        for _ in range(3):
            softmax_cross_entropy(network(images), labels).backward()
        found[i] = network(images).numpy()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for y in found:
        np.testing.assert_array_equal(y, expected)
    assert (library and library.get_num_threads()) == before


@pytest.mark.parametrize("count", [0, -1, 1.5, "2"])
def test_bad_thread_counts_are_refused(count):
    with pytest.raises(ValueError, match="set_num_threads: expected an integer >= 1"):
        set_num_threads(count)


def test_environment_sets_the_number_of_threads():
    def run(code, **environment):
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    show = "import tinygrad_nnfs as t; print(t.num_threads())"
    assert run(show, NNFS_NUM_THREADS="3").stdout == "3\n"
    refused = run(show, NNFS_NUM_THREADS="many")
    assert "NNFS_NUM_THREADS must be an integer >= 1, found 'many'" in refused.stderr
    if blas.openblas() is not None:
        assert run(show, OPENBLAS_NUM_THREADS="1").stdout == "1\n"


@needs_fork
def test_forked_child_computes():
    code = (
        "import os, warnings, numpy as np, tinygrad_nnfs as t\n"
        "warnings.simplefilter('ignore')\n"
        "from tinygrad_nnfs.kernels import threads\n"
        "t.set_num_threads(2)\n"
        "threads.run(lambda i: None, range(4))\n"
        "pid = os.fork()\n"
        "threads.run(lambda i: None, range(4))\n"
        "if not pid: os._exit(0)\n"
        "raise SystemExit(os.waitpid(pid, 0)[1] != 0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@needs_fork
def test_forked_child_has_none_of_the_locks_of_other_threads():
    code = (
        "import os, signal, threading, warnings, numpy as np, tinygrad_nnfs as t\n"
        "warnings.simplefilter('ignore')\n"
        "from tinygrad_nnfs.kernels import blas, memory\n"
        "from tinygrad_nnfs.backend import _drawing\n"
        "forked = threading.Event()\n"
        "held = threading.Event()\n"
        "def hold():\n"
        "    with memory._lock, _drawing, blas.single_threaded():\n"
        "        held.set(); forked.wait(30)\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait(30)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    signal.alarm(20)\n"
        "    t.nn.Dropout()(t.nn.LeakyReLU()(np.ones((512, 512), np.float32)))\n"
        "    library = blas.openblas()\n"
        "    os._exit(library is not None and library.get_num_threads() != library.before)\n"
        "forked.set()\n"
        "raise SystemExit(os.waitpid(pid, 0)[1] != 0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@needs_numba
@pytest.mark.parametrize("rows, panels", [(6, 1), (8, 2)])
def test_products_by_the_blocks_of_other_processors(rows, panels):
    from tinygrad_nnfs.kernels.compiled_products import multiply_by

    multiply = multiply_by(rows, panels)
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    for n, k, o in [(1, 1, 16), (5, 3, 48), (6, 2, 32), (8, 9, 16), (9, 4, 64), (17, 5, 80)]:
        a, b, start = draw(n, k), draw(k, o), draw(n, o)
        in_panels = b.reshape(k, -1, 16).swapaxes(0, 1).ravel()
        for flat_a, a_steps in ((a.ravel(), (k, 1)), (a.T.ravel(), (1, n))):
            for flat_b, b_steps in ((b.ravel(), (16, o)), (in_panels, (16 * k, 16))):
                out = start.flatten()
                multiply((n, k, o), flat_a, a_steps, flat_b, b_steps, out, o, out, o)
                np.testing.assert_allclose(out.reshape(n, o), start + a @ b, rtol=1e-4, atol=1e-5)
                multiply((n, k, o), flat_a, a_steps, flat_b, b_steps, start[0], 0, out, o)
                np.testing.assert_allclose(
                    out.reshape(n, o), start[0] + a @ b, rtol=1e-4, atol=1e-5
                )


# -- memory ----------------------------------------------------------------------------------------

LARGE = (memory.SMALLEST // 4,)  # of float32


def test_memory_is_used_again_only_when_nobody_has_it():
    first = memory.empty(LARGE, np.float32)
    second = memory.empty(LARGE, np.float32)
    assert not np.shares_memory(first, second)
    view, address = first[3:], first.ctypes.data
    del first
    third = memory.empty(LARGE, np.float32)
    assert third.ctypes.data != address  # the view still looks at it
    del view
    fourth = memory.empty(LARGE, np.float32)
    assert fourth.ctypes.data == address
    assert backend.owns_memory(fourth)
    assert not backend.owns_memory(fourth[:])


def test_memory_of_a_tensor_is_safe_while_the_tensor_lives():
    x = Tensor(np.ones((512, 1024), np.float32))
    kept = [ops.leaky_relu(x * i) for i in range(6)]
    for i, y in enumerate(kept):
        assert (y.numpy() == i).all()


def test_what_was_done_to_an_array_is_not_handed_on_with_its_memory():
    def as_integers(array):
        array.dtype = np.int32

    def as_rows(array):
        array.shape = (4, -1)

    def read_only(array):
        array.flags.writeable = False

    for change in (as_integers, as_rows, read_only):
        first = memory.empty(LARGE, np.float32)
        address = first.ctypes.data
        change(first)
        del first
        again = memory.empty(LARGE, np.float32)
        assert again.ctypes.data == address
        assert (again.shape, again.dtype) == (LARGE, np.float32)
        assert again.flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("make", [memory.empty, memory.aligned])
def test_large_arrays_begin_with_a_cache_line(make, order):
    held = [make((n, 300), np.float32, order) for n in range(200, 220)]
    assert all(array.ctypes.data % memory.ALIGNMENT == 0 for array in held)
    assert all(array.flags[f"{order}_CONTIGUOUS"] for array in held)


def test_no_more_memory_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(memory, "_blocks", {})
    monkeypatch.setattr(memory, "KEPT", 4 * memory.SMALLEST)
    held = [memory.empty((memory.SMALLEST + i,), np.uint8) for i in range(20)]
    del held[10:]
    kept = [block for blocks in memory._blocks.values() for block in blocks]
    assert 0 < sum(a.nbytes for a in kept) <= memory.KEPT
    del kept, held
    memory.empty((memory.KEPT - memory.ALIGNMENT - 5,), np.uint8)
    assert memory._remembered() == memory.KEPT - 5  # the unused made room for it


@given(st.permutations(range(3)), st.integers(2, 80))  # the stride of an axis of 1 is any
def test_empty_like_keeps_the_memory_order(order, size):
    shape = tuple(np.array([size, 40, 30])[list(order)])
    x = np.empty(shape, np.float32).transpose(np.argsort(order))
    y = memory.empty_like(x)
    assert (y.shape, y.strides, y.dtype) == (x.shape, x.strides, x.dtype)
    assert memory.empty_like(x, dtype=bool).shape == x.shape


def test_a_weights_gradient_lies_in_memory_as_the_weight_does():
    """So that an optimiser's pass over both goes straight through memory."""
    for inputs, outputs, n in ((5, 3, 4), (5, 3, 1), (600, 400, 64)):
        weight = Linear(inputs, outputs).weight
        assert weight.numpy().flags.f_contiguous
        ops.linear(np.ones((n, inputs), np.float32), weight).sum().backward()
        gradient = weight.grad.numpy()
        assert gradient.strides == weight.numpy().strides
        assert backend.owns_memory(gradient)
        np.testing.assert_array_equal(gradient, np.full((outputs, inputs), n))


# -- which kernel runs -----------------------------------------------------------------------------


@needs_numba
def test_winograd_runs_where_it_applies_and_exact_does_without():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 16, 9, 9)), rng.normal(size=(32, 16, 3, 3))
    exact = conv2d(x, weight).numpy()
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    errors = {}
    for precision in ("fast", "exact"):
        with profile() as p:
            y = conv2d(x, weight, precision=precision).numpy()
        errors[precision] = abs(y - exact).max() / abs(exact).max()
        assert ("conv2d_winograd" in variants_of(p)) == (precision == "fast")
    assert errors["exact"] < 1e-6
    assert errors["fast"] < 1e-5
    with profile() as p:
        conv2d(x.astype(np.float64), weight.astype(np.float64))
        conv2d(x, weight, stride=2)
        conv2d(x[:, :5], weight[:, :5])
    assert not {"conv2d_winograd", "conv2d_winograd_products"} & variants_of(p)


def test_the_most_special_convolution_runs(monkeypatch):
    x = np.ones((64, 32, 20, 20), np.float32)
    weight = np.ones((32, 32, 3, 3), np.float32)
    compiled = loops.numba_is_installed()

    def variants(x, weight, **options):
        with profile() as p:
            conv2d(x, weight, **options)
        return variants_of(p)

    plain, products = {"conv2d_shared_columns"}, {"conv2d_winograd_products"}
    assert variants(x, weight) == ({"conv2d_winograd"} if compiled else products)
    assert variants(x[:, :31], weight[:, :31]) == plain  # too few channels,
    odd = np.ones((33, 32, 3, 3), np.float32)
    assert variants(x, odd) == products
    assert variants(x[:2], odd) == plain  # or images, to be worth it
    assert variants(x[:, :1], weight[:, :1]) == ({"conv2d_direct"} if compiled else plain)
    assert variants(x, weight, precision="exact") == plain
    assert variants(x, weight, stride=2) == {"conv2d_in_pieces"}
    monkeypatch.setattr(blas, "openblas", lambda: None)  # numpy with MKL, or Apple's Accelerate
    assert variants(x, weight) == ({"conv2d_winograd"} if compiled else products)


@pytest.mark.parametrize("outputs", [4, 5])
def test_the_transforms_make_products_of_a_convolution(outputs):
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=outputs + 2), rng.normal(size=3)
    m = transforms.matrices(outputs)
    y = m["A"].T @ ((m["B^T"] @ d) * (m["G"] @ g))
    np.testing.assert_allclose(y, np.correlate(d, g), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [pytest.param(16, marks=needs_numba), 17])
@given(height=st.integers(1, 21), width=st.integers(1, 21), padding=st.integers(0, 3))
def test_winograd_of_images_of_any_size(channels, height, width, padding):
    size = max(height, 3 - 2 * padding), max(width, 3 - 2 * padding)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, channels, *size)), rng.normal(size=(32, channels, 3, 3))
    dy = rng.normal(size=conv2d(x, weight, padding=padding).shape)

    def gradients(dtype):
        tensors = [Tensor(a.astype(dtype), requires_grad=True) for a in (x, weight)]
        with profile() as p:
            y = conv2d(*tensors, padding=padding)
        y.backward(dy)
        return variants_of(p), [y.numpy(), *(t.grad.numpy() for t in tensors)]

    with threads.tiny_pieces():
        variant, found = gradients(np.float32)
    assert variant == {"conv2d_winograd" if channels == 16 else "conv2d_winograd_products"}
    for a, exact in zip(found, gradients(np.float64)[1], strict=True):
        assert abs(a - exact).max() < 2e-5 * abs(exact).max()


def test_the_tiles_that_need_fewer_products_are_taken():
    assert transforms.tile_size(24, 24) == (4, 36)
    assert transforms.tile_size(10, 10) == (5, 4)
    assert transforms.tile_size(1, 1) == (4, 1)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be 'fast' or 'exact', found 'low'"):
        conv2d(np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 3, 3)), precision="low")


def test_reference_kernels_runs_the_ops_themselves_in_this_thread():
    images, labels = batch(8)
    network = CNN()
    with reference_kernels(), profile() as p:
        softmax_cross_entropy(network(images), labels).backward()
    assert all(row.variant == row.op for row in p.rows)
    with profile() as p:
        network(images)
        other = []
        with reference_kernels():
            worker = threading.Thread(target=lambda: other.append(network(images)))
            worker.start()
            worker.join()
    assert "conv2d" not in variants_of(p)


def test_environment_turns_the_variants_off():
    code = (
        "import numpy as np\n"
        "from tinygrad_nnfs import ops, profile\n"
        "with profile() as p: ops.conv2d(np.ones((2, 1, 9, 9)), np.ones((2, 1, 3, 3)))\n"
        "print(p.rows[0].variant)\n"
    )
    for value, expected in (("1", "conv2d"), ("0", "conv2d_shared_columns")):
        environment = {**os.environ, "NNFS_REFERENCE": value}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


def test_training_by_kernels_and_by_the_ops_themselves_is_the_same():
    from tinygrad_nnfs import manual_seed

    # steps so small that the loss falls: those that overshoot make much of the last bits
    manual_seed(1)
    losses, _ = losses_and_weights(CNN(), steps=4, lr=0.002)
    manual_seed(1)
    with reference_kernels():
        expected, _ = losses_and_weights(CNN(), steps=4, lr=0.002)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("numba", [False, pytest.param(True, marks=needs_numba)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("size", [7, 2**18 + 3])
def test_descent_is_the_update_that_its_docstring_states(
    monkeypatch, numba, momentum, weight_decay, size
):
    monkeypatch.setattr(loops, "numba_is_installed", lambda: numba)
    loops.best.cache_clear()
    rng = np.random.default_rng(0)
    theta = rng.normal(size=size)
    parameter = Parameter(theta.copy())
    optimizer = optim.SGD([parameter], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    velocity = np.zeros(size)
    for _ in range(3):
        gradient = rng.normal(size=size)
        parameter.grad = Tensor(gradient)
        optimizer.step()
        velocity = momentum * velocity + 0.1 * (gradient + weight_decay * theta)
        theta -= velocity
    loops.best.cache_clear()
    np.testing.assert_allclose(parameter.numpy(), theta, rtol=1e-12, atol=1e-14)


# -- numba's own loops and numpy's -----------------------------------------------------------------


@needs_numba
@given(st.integers(0, 2**16), st.sampled_from([0.01, 0.0, 0.5, 2.0, -0.5]))
def test_compiled_loops_are_the_loops(seed, slope):
    from tinygrad_nnfs.kernels import compiled_loops

    rng = np.random.default_rng(seed)
    x, dy = rng.normal(size=37).astype(np.float32), rng.normal(size=37).astype(np.float32)
    x[::5] = 0
    keep = rng.random(37) < 0.5
    images = rng.integers(0, 3, (2, 4, 6, 5)).astype(np.float32)  # with equal elements
    results = []
    for compute in (loops, compiled_loops):
        out = np.empty((3, 37), np.float32)
        compute.keep_scaled(x, keep, out[2], 1.25)
        positive = np.empty(37, bool)
        compute.leaky_relu(x, out[0], positive, slope)
        compute.leaky_relu_gradient(positive, dy, out[1], slope)
        y, winner = np.empty((2, 2, 3, 5), np.float32), np.empty((2, 2, 3, 5), np.int8)
        compute.max_pool(images, y, winner)
        dx = np.empty_like(images)
        compute.max_pool_gradient(y, winner, dx)
        results.append([out, positive, y, winner, dx])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0, -0.5])
def test_leaky_relu_of_infinities(slope):
    """As IEEE's arithmetic has it: slope x, where slope 0 makes a NaN of -inf."""
    x = np.float32([np.inf, -np.inf, np.nan, 1.0])
    y, positive = np.empty_like(x), np.empty(4, bool)
    with np.errstate(invalid="ignore"):
        expected = np.where(x > 0, x, x * np.float32(slope))
        loops.leaky_relu(x, y, positive, slope)
        found = [y, ops.leaky_relu(x, slope=slope).numpy()]
        with reference_kernels():
            found.append(ops.leaky_relu(x, slope=slope).numpy())
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_labels_may_change_before_backward():
    """A kernel that wrote where the new ones say would write outside of its memory."""
    for kernels in (contextlib.nullcontext, reference_kernels):
        labels, logits = np.zeros(4, np.int64), Tensor(np.zeros((4, 2)), requires_grad=True)
        with kernels():
            loss = softmax_cross_entropy(logits, labels)
            labels[:] = 10**9
            loss.backward()
        assert logits.grad.numpy().tolist() == [[-0.125, 0.125]] * 4


def odd_inputs(dtype):
    x = np.linspace(-1, 1, 32).reshape(1, 2, 4, 4).transpose(0, 3, 1, 2).astype(dtype)
    return x, x.reshape(2, 16)


@pytest.mark.parametrize("dtype", ["float16", "longdouble", ">f4", ">f8"])
def test_dtypes_that_numba_does_not_know(dtype):
    images, rows = odd_inputs(dtype)
    weight = np.ones((3, 16), dtype)
    calls = [
        lambda: ops.leaky_relu(rows),
        lambda: ops.dropout(rows, p=0.5, key=(1, 2)),
        lambda: ops.max_pool2d(images, kernel_size=2),
        lambda: ops.linear(rows[:1], weight),
        lambda: softmax_cross_entropy(rows, np.array([3, 0], ">i4")),
    ]
    for call in calls:
        found = call()
        with reference_kernels():
            expected = call()
        assert found.dtype == expected.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3)


def test_a_network_in_half_precision_trains():
    network = MLP().astype("float16")
    optimizer = optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    images, labels = batch(1)
    losses = []
    for _ in range(4):
        loss = softmax_cross_entropy(network(images.astype("float16")), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert loss.dtype == "float16"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_a_class_that_is_masked(smoothing):
    logits = np.array([[0, -np.inf, 1], [2, 1, 0]], np.float32)
    call = Case((logits, np.array([0, 1])), {"label_smoothing": smoothing})
    loss = softmax_cross_entropy(*call.inputs, **call.params).item()
    with reference_kernels():
        assert loss == pytest.approx(softmax_cross_entropy(*call.inputs, **call.params).item())
    assert np.isfinite(loss) == (smoothing == 0)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("numba", [False, pytest.param(True, marks=needs_numba)])
def test_the_gradient_of_a_window_with_a_nan_goes_to_it(place, numba, monkeypatch):
    monkeypatch.setattr(loops, "numba_is_installed", lambda: numba)
    loops.best.cache_clear()
    window = np.array([3.0, 1.0, 2.0, 4.0], np.float32)
    window[place] = np.nan
    x = Tensor(window.reshape(1, 2, 2, 1).transpose(0, 3, 1, 2), requires_grad=True)
    for context in (reference_kernels, threads.tiny_pieces):
        x.grad = None
        with context():
            y = ops.max_pool2d(x, kernel_size=2)
        y.backward(np.full(y.shape, 5.0))
        assert np.isnan(y.numpy()).all()
        assert x.grad.numpy().reshape(-1)[place] == 5
        assert x.grad.numpy().sum() == 5
    loops.best.cache_clear()


def test_nan_goes_through_dropout():
    x = Tensor(np.full(64, np.nan, np.float32), requires_grad=True)
    y = ops.dropout(x, p=0.5, key=(1, 2))
    y.backward(np.full(64, np.nan))
    assert np.isnan(y.numpy()).all()
    assert np.isnan(x.grad.numpy()).all()


def test_numba_that_cannot_be_imported_is_not_used(monkeypatch):
    def refuse(name):
        raise ImportError("Numba needs NumPy 2.2 or less")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(loops.importlib, "import_module", refuse)
    with pytest.warns(UserWarning, match="numba is installed but not used: Numba needs NumPy"):
        assert not loops.numba_is_installed.__wrapped__()


@needs_numba
def test_kernels_are_compiled_anew_where_nothing_can_be_written(monkeypatch):
    import numba

    from tinygrad_nnfs.kernels.compiler import kernel

    compiler = numba.njit

    def without_a_folder(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(function, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert kernel(lambda x: x + 1)(2) == 3


def test_descent_leaves_a_read_only_parameter_to_numpys_words():
    p = Parameter(np.ones(4, np.float32))
    p.grad = Tensor(np.ones(4, np.float32))
    p.data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optim.SGD([p], lr=0.1).step()


# -- profile ---------------------------------------------------------------------------------------


def test_profile_counts_calls_bytes_and_operations():
    x = Tensor(np.ones((4, 6), np.float32), requires_grad=True)
    weight = Parameter(np.ones((3, 6), np.float32))
    with profile() as p:
        y = ops.linear(x, weight)
        y = ops.linear(x, weight)
        y.sum().backward()
    row = next(row for row in p.rows if row.op == "linear")
    assert row.calls == 2
    assert row.bytes == 2 * 4 * (4 * 6 + 3 * 6 + 4 * 3)
    assert row.forward_flops == 2 * 2 * 4 * 6 * 3
    assert row.backward_flops == 2 * 2 * 4 * 6 * 3
    assert row.forward > 0
    assert row.backward > 0
    assert p.elapsed >= row.forward + row.backward
    assert "linear" in str(p)
    assert "all ops" in str(p)
    assert p.as_dicts()[0]["calls"]


def test_profiles_end_and_nest():
    with profile() as outer:
        ops.exp(np.ones(3))
        with profile() as inner:
            ops.log(np.ones(3))
    ops.sqrt(np.ones(3))
    assert {row.op for row in outer.rows} == {"exp", "log"}
    assert [row.op for row in inner.rows] == ["log"]
    with profile() as p, pytest.raises(ValueError, match="broadcast"):
        Tensor([1.0, 2.0]) + Tensor([1.0, 2.0, 3.0])
    assert p.rows == []


def test_threads_are_counted_from_the_setting():
    set_num_threads(3)
    assert num_threads() == 3


def test_helpers_go_by_the_errstate_of_the_caller():
    set_num_threads(2)
    big = np.full(8, 1e300)
    with np.errstate(over="ignore"):  # a warning would be an error
        threads.run(lambda i: (time.sleep(0.001), big * big), range(20))


def test_pieces_of_a_convolution_share_one_copy_of_the_weight():
    random = np.random.default_rng(0)
    weight = np.asfortranarray(random.normal(size=(16, 16, 3, 3)))
    run_checks(ops.conv2d, Case((random.normal(size=(2, 16, 3, 3)), weight), {}))
