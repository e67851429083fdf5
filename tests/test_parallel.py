"""Loops of compiled kernels on several threads."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_nnfs import set_num_threads
from tinygrad_nnfs.kernels import helpers, loops, threads

pytest.importorskip("numba", reason="numba is not installed (extra: fast)")

from tinygrad_nnfs.kernels.compiled_parallel import parallel_for
from tinygrad_nnfs.kernels.compiler import kernel

LARGE = 2**20  # elements: worth sharing


@kernel
def _note(done, by, worker, first, last):
    """Who did what, slowly enough for others to come."""
    for i in range(first, last):
        done[i] += 1
        by[i] = worker
        _spend_time(by)


@kernel
def _spend_time(by):
    total = 1.0
    for k in range(4_000):
        total += total / (k + 1)
    if total < 0:  # never, which the compiler does not know
        by[0] = -1


@kernel
def note(team, step, done, by):
    parallel_for(team, _note, (done, by), len(done), step)


@kernel
def _fail(at, by, worker, first, last):
    by[first] = worker
    _spend_time(by)
    if first <= at < last:
        raise ValueError("this piece")


@kernel
def fail(team, at, by):
    parallel_for(team, _fail, (at, by), len(by), 1)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    threads._chosen = None


def noted(length, step, helped=None):
    done, by = np.zeros(length, np.int64), np.full(length, -2, np.int64)
    note(helped or helpers.team(LARGE), step, done, by)
    return done, by


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 5))
def test_every_piece_is_done_once(length, step, workers):
    set_num_threads(workers)
    done, by = noted(length, step)
    assert (done == 1).all()
    assert all(0 <= worker < workers for worker in by)
    for first in range(0, length, step):
        assert len(set(by[first : first + step])) == 1


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one core")
@pytest.mark.parametrize("pause", [0, 0.2])
def test_helpers_take_pieces_from_the_end(pause):
    set_num_threads(2)
    by, end = np.zeros(200, np.int64), time.monotonic() + 30
    while 1 not in by:  # a busy machine may leave a helper no time
        assert time.monotonic() < end
        time.sleep(pause)  # long enough to fall asleep
        _, by = noted(200, 1)
    others = np.flatnonzero(by == 1)
    assert others.tolist() == list(range(others[0], 200))


def test_nobody_else_is_asked_for_small_loops():
    assert helpers.team(helpers.LARGE - 1) == helpers.ALONE
    set_num_threads(1)
    assert helpers.team(LARGE)[1] == 1
    set_num_threads(3)
    assert helpers.team(LARGE)[1] == 3
    assert (noted(10, 1, helpers.ALONE)[1] == 0).all()


def helper_threads():
    return [t for t in threading.enumerate() if t.name.startswith("tinygrad_nnfs helper")]


def test_there_are_as_many_helpers_as_wanted():
    for workers in (4, 2, 3, 1, 2):
        set_num_threads(workers)
        assert (noted(20, 1)[0] == 1).all()
        assert len(helper_threads()) == workers - 1


@pytest.mark.parametrize("workers", [1, 4])
def test_a_piece_that_fails_is_not_kept_quiet(workers):
    set_num_threads(workers)
    by = np.zeros(100, np.int64)
    for at in (0, 7, 99):
        with pytest.raises(MemoryError, match="a piece of a compiled kernel failed"):
            fail(helpers.team(LARGE), at, by)
        fail(helpers.team(LARGE), 100, by)  # and none fails
        assert (noted(20, 1)[0] == 1).all()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one core")
def test_a_helper_s_piece_that_fails_is_not_kept_quiet():
    set_num_threads(2)
    by, end = np.zeros(100, np.int64), time.monotonic() + 30
    while not by[99]:  # a busy machine may leave a helper no time
        assert time.monotonic() < end
        with pytest.raises(MemoryError, match="a piece of a compiled kernel failed"):
            fail(helpers.team(LARGE), 99, by)


def test_threads_of_the_user_have_loops_at_once():
    set_num_threads(3)
    results, together = [], threading.Barrier(4)

    def work():
        for _ in range(50):
            together.wait(timeout=30)
            results.append(noted(50, 1))

    users = [threading.Thread(target=work) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(results) == 200
    assert all((done == 1).all() for done, _ in results)


def test_the_number_may_change_meanwhile():
    """Workspace is for the workers that the loop was given."""
    stop = threading.Event()

    def change():
        workers = 1
        while not stop.is_set():
            workers = workers % 4 + 1
            set_num_threads(workers)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(100):
            helped = helpers.team(LARGE)
            done, by = noted(12, 1, helped)
            assert (done == 1).all()
            assert by.max() < helped[1]
    finally:
        stop.set()
        changing.join()


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


USE = (
    "import os, warnings, numpy as np, tinygrad_nnfs as t\n"
    "warnings.simplefilter('ignore')\n"
    "t.set_num_threads(3)\n"
    "def use():\n"
    "    x = np.ones((512, 512), np.float32)\n"
    "    assert (t.ops.leaky_relu(x).numpy() == 1).all()\n"
    "use()\n"
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_has_helpers_of_its_own():
    code = USE + (
        "import threading\n"
        "pid = os.fork()\n"
        "use()\n"
        "helpers = sum('helper' in thread.name for thread in threading.enumerate())\n"
        "if not pid: os._exit(helpers != 2)\n"
        "raise SystemExit(os.waitpid(pid, 0)[1] != 0 or helpers != 2)\n"
    )
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_process_ends_while_helpers_wait():
    for _ in range(3):
        done = run(USE)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- the loops that are shared ---------------------------------------------------------------------


def arguments_of(name, n, rng, dtype):
    """What a loop of n rows or elements is called with."""
    floats = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    keep = rng.random(n) < 0.5
    images, winner = floats(n, 4, 6, 5), rng.integers(0, 4, (n, 2, 3, 5)).astype(np.int8)
    return {
        "leaky_relu": lambda: [floats(n), floats(n), keep, 0.1],
        "leaky_relu_gradient": lambda: [keep, floats(n), floats(n), 0.1],
        "keep_scaled": lambda: [floats(n), keep, floats(n), 1.25],
        "dropout": lambda: [floats(n), keep, floats(n), 3, -4, 20_000, 1.25, 0, n],
        "add_row_product": lambda: [floats(n), floats(n, 5), floats(5)],
        "add_column_product": lambda: [floats(5), floats(n, 5), floats(n)],
        "outer": lambda: [floats(n), floats(n, 5), floats(5)],
        "gradient_step": lambda: [floats(n), floats(n), 0.1, 0.01],
        "momentum_step": lambda: [floats(n), floats(n), floats(n), 0.1, 0.01, 0.9],
        "max_pool": lambda: [images, floats(n, 2, 3, 5), winner],
        "max_pool_gradient": lambda: [floats(n, 2, 3, 5), winner, images],
    }[name]()


ELEMENTWISE = ["leaky_relu", "leaky_relu_gradient", "keep_scaled", "dropout"]
PRODUCTS = ["add_row_product", "add_column_product", "outer"]
STEPS = ["gradient_step", "momentum_step"]
POOLING = ["max_pool", "max_pool_gradient"]
SHARED = ELEMENTWISE + PRODUCTS + STEPS + POOLING


def test_no_shared_loop_is_left_out():
    from tinygrad_nnfs.kernels import parallel_loops

    public = [name for name, value in vars(parallel_loops).items() if hasattr(value, "py_func")]
    assert {name for name in public if name[0] != "_"} - {"parallel_for", "equal_pieces"} == {
        *SHARED
    }


@pytest.mark.parametrize("name", SHARED)
@given(st.integers(1, 70), st.integers(0, 2**16), st.sampled_from([np.float32, np.float64]))
def test_shared_loops_are_the_loops(name, n, seed, dtype):
    set_num_threads(3)
    expected, found = (arguments_of(name, n, np.random.default_rng(seed), dtype) for _ in range(2))
    getattr(loops, name)(*expected)
    with threads.tiny_pieces():
        loops.run(name, LARGE, *found)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
