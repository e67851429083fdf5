"""The stand-in for cupy is strict where cupy is, and captures graphs as CUDA does."""

import ctypes
import importlib.util
import json
import subprocess
import sys
import types

import cupy_stand_in
import numpy as np
import pytest
from cupy_stand_in import CUDARuntimeError, FakeCublas
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_nnfs import backend


@pytest.fixture
def cupy(monkeypatch):
    return cupy_stand_in.install(monkeypatch)


@pytest.fixture
def stream(cupy):
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def same(found, expected):
    assert type(found).__module__ == "cupy", "not on the GPU"
    assert found.shape == np.shape(expected)
    assert found.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(found.get(), expected)


# -- strictness ------------------------------------------------------------------------------------


def test_it_is_what_the_framework_takes_for_cupy(cupy):
    import cupy as imported

    assert imported is cupy
    assert backend.load_cupy() is cupy
    x = backend.move(np.ones(3), "cuda")
    assert backend.is_array(x)
    assert backend.device_of(x) == "cuda"
    assert backend.of(x) is backend.cupy
    assert type(backend.move(x, "cpu")) is np.ndarray


def test_it_is_gone_after_the_test():
    with pytest.MonkeyPatch.context() as monkeypatch:
        cupy = cupy_stand_in.install(monkeypatch)
        assert backend.load_cupy() is cupy
    assert backend.cupy_if_installed() is None or backend.load_cupy() is not cupy


def test_arrays_of_the_host_are_refused(cupy):
    x, host = cupy.ones(3), np.ones(3)
    operations = [
        lambda: x + host,
        lambda: host + x,
        lambda: x < host,
        lambda: x == host,
        lambda: x @ host,
        lambda: x.__iadd__(host),
        lambda: cupy.add(x, host),
        lambda: cupy.add(host, x),
        lambda: cupy.add(x, 1, out=host),
        lambda: cupy.where(x > 0, host, 0),
        lambda: cupy.matmul(host, x),
        lambda: cupy.concatenate([x, host]),
        lambda: cupy.sum(host),
        lambda: cupy.expand_dims(host, 0),
        lambda: cupy.sort(host),
        lambda: host.__iadd__(x),
        lambda: x * [1.0, 2.0, 3.0],
        lambda: x == [1.0, 1.0, 1.0],
        lambda: cupy.where(True, x, 0),
    ]
    for operation in operations:
        with pytest.raises((TypeError, AttributeError)):
            operation()
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray"):
        x[:] = host
    same(x, np.ones(3))


def test_numpys_functions_are_refused(cupy):
    x = cupy.ones(3)
    for function in (np.asarray, np.array, np.exp, np.sum, np.shape, np.zeros_like):
        with pytest.raises(TypeError):
            function(x)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError):
        np.concatenate([x, x])


def test_numbers_are_taken(cupy):
    x = cupy.asarray(np.float32([1, 2, 3]))
    host = np.float32([1, 2, 3])
    same(x + 1, host + 1)
    same(2 / x, 2 / host)
    same(np.float64(3) * x, np.float64(3) * host)  # not weak: float64
    same(np.float32(3) * x, 3 * host)
    same(x > np.float32(1), host > 1)
    same(2**x, 2**host)
    same(x**2, host**2)
    same(x**-1, host**-1)
    same(cupy.maximum(x, 2), np.maximum(host, 2))
    same(cupy.where(x > 1, x, 0), np.where(host > 1, host, np.float32(0)))
    same(x == None, np.zeros(3, bool))  # noqa: E711


def test_names_that_cupy_lacks_are_refused(cupy):
    for name in ("errstate", "nditer", "ndindex", "may_share", "_kernel"):
        with pytest.raises(AttributeError):
            getattr(cupy, name)
    with pytest.raises(AttributeError):
        _ = cupy.ones(1).flags.writeable
    with pytest.raises(AttributeError):
        _ = cupy.ones(1).ctypes
    with pytest.raises(TypeError):
        range(cupy.ones((), int))


REAL = importlib.util.find_spec("cupy")
ASK_THE_REAL_ONE = """
import cupy, functools, json, sys
for name in json.load(sys.stdin):
    try:
        functools.reduce(getattr, name.split("."), cupy)
    except AttributeError:
        print(name)
"""


def promised_names(cupy):
    public = {name for name in vars(cupy) if not name.startswith("_")}
    for names in ("UFUNCS", "METHODS", "VIEWS", "COPIES", "NUMPYS_OWN"):
        public |= getattr(cupy_stand_in, names)
    arrays = {f"ndarray.{name}" for name in vars(cupy.ndarray)}
    arrays -= {"ndarray._host", "ndarray._viewed", "ndarray._reduced", "ndarray._copied_if"}
    arrays -= {"ndarray.__weakref__", "ndarray.__module__", "ndarray.__slots__"}
    cuda = {f"cuda.{name}" for name in vars(cupy.cuda) if not name.startswith("_")}
    for kind in ("Stream", "Graph", "Event", "Device", "MemoryPool", "MemoryPointer"):
        public_names = [n for n in vars(getattr(cupy.cuda, kind)) if not n.startswith("_")]
        cuda |= {f"cuda.{kind}.{name}" for name in public_names}
    cuda |= {f"cuda.runtime.{n}" for n in vars(cupy.cuda.runtime) if not n.startswith("_")}
    return sorted(public | arrays | cuda)


@pytest.mark.skipif(REAL is None, reason="needs cupy, if no GPU")
def test_the_real_cupy_has_all_names(cupy):
    run = subprocess.run(
        [sys.executable, "-c", ASK_THE_REAL_ONE],
        input=json.dumps(promised_names(cupy)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == []


# -- results ---------------------------------------------------------------------------------------


def test_reductions_and_elements_are_0d_arrays(cupy):
    host = numbers(2, 3)
    x = cupy.asarray(host)
    for name in ("sum", "mean", "max", "min", "argmax", "prod", "var", "std", "all", "any"):
        same(getattr(x, name)(), getattr(host, name)())
        same(getattr(x, name)(axis=1, keepdims=True), getattr(host, name)(axis=1, keepdims=True))
    same(x[1, 2], host[1, 2])
    same(x.sum() + 1, host.sum() + 1)
    same(cupy.exp(x.sum()), np.exp(host.sum()))
    same(cupy.add(2, 3), 5)
    same(cupy.count_nonzero(x), np.count_nonzero(host))


def test_results_lie_row_by_row(cupy):
    x = cupy.asarray(np.asfortranarray(numbers(3, 4)))
    assert x.flags.fnc
    assert (x + x).flags.c_contiguous
    assert x.sum(axis=1, keepdims=True).flags.c_contiguous
    assert x.copy().flags.c_contiguous
    assert x.copy("K").flags.fnc
    assert x.astype(np.float32).flags.fnc
    assert cupy.empty_like(x).flags.fnc


def test_views_share_memory_and_copies_do_not(cupy):
    x = cupy.asarray(numbers(4, 6))
    views = [
        x[1:, ::2], x[::-1], x[2, 3], x[..., None], x.T, x.transpose(1, 0), x.swapaxes(0, 1),
        x.reshape(2, 12), x.ravel(), x.view(), cupy.expand_dims(x, 1), cupy.flip(x, 0),
        cupy.broadcast_to(x, (2, 4, 6)), x.T.reshape(3, 2, 4),
    ]  # fmt: skip
    for view in views:
        assert view.base is x
        assert cupy.may_share_memory(view, x)
        assert not view.flags.owndata
    copies = [x.copy(), x.T.ravel(), x.T.reshape(4, 6), x[[0, 1]], x[x > 0], x + 0, x.flatten()]
    for copy in copies:
        assert copy.base is None
        assert not cupy.may_share_memory(copy, x)
    assert x[1:][1:].base is x
    assert cupy.asarray(x) is x
    assert x.astype(float, copy=False) is x
    row = x[0]
    assert row.T is row
    first = x[::-1][0]
    assert first.data.ptr == x.data.ptr + 3 * 6 * 8
    cupy.broadcast_to(x[:1], (3, 6))[...] = 7  # which cupy allows
    same(x[0], np.full(6, 7.0))


def test_indices_wrap_around(cupy):
    same(cupy.arange(3)[[1, 3, -1]], np.array([1, 0, 2]))
    x = cupy.zeros(3)
    cupy.add.at(x, [0, 4, 0], cupy.asarray([1.0, 2.0, 3.0]))
    same(x, np.array([4.0, 2.0, 0.0]))
    with pytest.raises(TypeError, match="only supports"):
        cupy.subtract.at(x, [0], 1.0)
    with pytest.raises(IndexError):
        _ = x[3]


def test_new_memory_is_no_zeros(cupy):
    assert np.isnan(cupy.empty(3).get()).all()
    assert cupy.empty(3, int).get().all()
    assert not cupy.zeros(3).get().any()


# -- capture ---------------------------------------------------------------------------------------


def capture(stream, function):
    stream.begin_capture()
    result = function()
    return stream.end_capture(), result


def test_capture_executes_nothing_and_launches_all_of_it_in_order(cupy, stream):
    x, total = cupy.ones((2, 3)), cupy.zeros(())
    untouched = x.get()

    def step():
        nonlocal x
        y = x * 2
        y[:, 0] = 5
        x += y
        total[...] = x.sum()
        return y

    graph, y = capture(stream, step)
    assert np.isnan(y.get()).all()
    np.testing.assert_array_equal(x.get(), untouched)
    assert total.item() == 0
    for expected in ([[6, 3, 3]] * 2, [[11, 9, 9]] * 2):
        graph.launch()
        np.testing.assert_array_equal(x.get(), expected)
        assert total.item() == np.sum(expected)


PIECES = {
    "double": lambda xp, a, b: xp.multiply(a, 2),
    "add": lambda xp, a, b: a + b,
    "exp": lambda xp, a, b: xp.exp(-xp.abs(b)),
    "in place": lambda xp, a, b: a.__iadd__(b * 0.5),
    "out": lambda xp, a, b: xp.maximum(a, b, out=a),
    "mean": lambda xp, a, b: a - b.mean(axis=0),
    "sum": lambda xp, a, b: a + b.sum() / 8,
    "slice": lambda xp, a, b: a.__setitem__((slice(None), slice(1, None)), b[:, :-1]),
    "reverse": lambda xp, a, b: a[::-1, ::-1] + b,
    "transpose": lambda xp, a, b: (a.T * 1.5).reshape(a.shape),
    "where": lambda xp, a, b: xp.where(a > b, a, 0),
    "fill": lambda xp, a, b: a[0].fill(0.25),
    "gather": lambda xp, a, b: a[xp.arange(4) % 3] + b,
    "scatter": lambda xp, a, b: xp.add.at(a, (slice(None), xp.arange(2)), 0.5),
    "stack": lambda xp, a, b: xp.stack([a, b]).max(axis=0),
    "cast": lambda xp, a, b: a.astype("float32").astype("float64") + b,
}


def run_program(xp, names, state):
    """Pieces that update the first of two arrays, the second from it, and so on."""
    a, b = state
    for name in names:
        result = PIECES[name](xp, a, b)
        if result is not None and result is not a:
            a[...] = result
        a, b = b, a


@given(st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=8))
def test_a_graph_gives_the_eager_results_time_after_time(names):
    with pytest.MonkeyPatch.context() as monkeypatch:
        cupy = cupy_stand_in.install(monkeypatch)
        host = [numbers(4, 4), numbers(4, 4) - 1]
        arrays = [cupy.asarray(x) for x in host]
        with cupy.cuda.Stream(non_blocking=True) as stream:
            pool = cupy.cuda.MemoryPool()
            with cupy.cuda.using_allocator(pool.malloc):
                graph, _ = capture(stream, lambda: run_program(cupy, names, arrays))
            for _ in range(3):
                run_program(np, names, host)
                graph.launch()
                _ = cupy.ones((4, 4))  # other work in between
                for array, expected in zip(arrays, host, strict=True):
                    np.testing.assert_array_equal(array.get(), expected)


def test_what_cannot_be_captured(cupy, stream):
    x, labels = cupy.ones((2, 2)), cupy.zeros(2, int)
    event = cupy.cuda.Event()
    copies = [
        lambda: cupy.asarray(np.ones(3)),
        lambda: cupy.array([1.0, 2.0]),
        lambda: x[[0, 1]],
        lambda: x.get(),
        lambda: cupy.asnumpy(x),
        lambda: x.sum().item(),
        lambda: float(x.sum()),
        lambda: int(labels.min()),
        lambda: bool((x > 0).all()),
        lambda: x.tolist(),
        lambda: str(x),
        lambda: x.set(np.ones((2, 2))),
        lambda: x[x > 0],
        lambda: x.__setitem__(x > 0, 0),
        lambda: x.nonzero(),
        lambda: cupy.where(x > 0),
        lambda: cupy.concatenate([x] * 9),
    ]
    for operation in copies:  # which cupy itself refuses
        operation()
        stream.begin_capture()
        x.sum()
        with pytest.raises(RuntimeError, match=r"stream is capturing, so (H2D|D2H) tra"):
            operation()
        _ = x + 1
        stream.end_capture()
    forbidden = [
        lambda: stream.synchronize(),
        lambda: cupy.cuda.Device().synchronize(),
        lambda: cupy.cuda.runtime.deviceSynchronize(),
    ]
    for operation in forbidden:
        operation()
        stream.begin_capture()
        x.sum()
        with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported"):
            operation()
        with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            _ = x + 1
        with pytest.raises(RuntimeError, match="error has invalidated the capture sequence"):
            x.get()
        with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()
        assert not stream.is_capturing()
    for operation in (lambda: x @ x, lambda: cupy.matmul(x, x), lambda: x.dot(x)):
        operation()
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            operation()
        with pytest.raises(CUDARuntimeError):
            stream.end_capture()
    stream.begin_capture()
    event.record()
    with pytest.raises(CUDARuntimeError, match="cudaErrorCapturedEvent"):
        event.synchronize()


def test_what_can_be_captured(cupy, stream):
    def step():
        return cupy.zeros(3) + cupy.arange(3) + cupy.full(3, 0.5) + cupy.asarray(2.0)

    graph, y = capture(stream, step)
    graph.launch(stream)
    same(y, np.arange(3) + 2.5)


def test_streams(cupy):
    null = cupy.cuda.get_current_stream()
    with pytest.raises(RuntimeError, match="legacy"):
        null.begin_capture()
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    same(cupy.ones(2) + 1, np.full(2, 2.0))  # the current stream does not capture
    with stream:
        assert cupy.cuda.get_current_stream() is stream
        y = cupy.ones(2) + 1
        graph = stream.end_capture()
    assert cupy.cuda.get_current_stream() is null
    graph.launch()
    same(y, np.full(2, 2.0))
    blocking = cupy.cuda.Stream()
    blocking.begin_capture()
    with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
        cupy.ones(2)
    with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        blocking.end_capture()
    with pytest.raises(CUDARuntimeError, match="cudaErrorIllegalState"):
        blocking.end_capture()


def test_memory_that_was_freed_is_used_again(cupy, stream):
    """A graph whose memory is not its own writes into that of others."""
    x = cupy.ones(100)

    def forgetful():
        (x * 2).sum()

    graph, _ = capture(stream, forgetful)
    victims = [cupy.zeros(100) for _ in range(3)]
    graph.launch()
    assert any(victim.get().any() for victim in victims)

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        graph, total = capture(stream, lambda: (x * 2).sum())
    victims = [cupy.zeros(100) for _ in range(3)]
    graph.launch()
    assert not any(victim.get().any() for victim in victims)
    assert total.item() == 200
    assert pool.used_bytes() == 512
    pool.free_all_blocks()
    with pytest.raises(CUDARuntimeError, match="cudaErrorIllegalAddress"):
        graph.launch()


# -- kernels ---------------------------------------------------------------------------------------


@pytest.fixture
def fake_kernels(monkeypatch):
    """cuda_on_cpu with one kernel, which adds its value to its array."""
    calls = []

    class Kernels:
        def launch(self, name, grid, block, args):
            calls.append((name, grid, block, args))
            array, value = args[:2]
            array += value["by"][0] if isinstance(value, np.ndarray) else value

    def load(real, index):
        calls.append((real, index))
        return Kernels()

    monkeypatch.setitem(sys.modules, "cuda_on_cpu", types.SimpleNamespace(load=load))
    return calls


def test_kernels(cupy, stream, fake_kernels):
    module = cupy.RawModule(code="...", options=("--std=c++17", "-DREAL=float", "-DINDEX=unsigned"))
    kernel = module.get_function("increase")
    x = cupy.zeros(4, np.float32)
    kernel((1,), (128,), (x, 2))
    assert fake_kernels[0] == ("float", "unsigned")
    assert fake_kernels[1][:3] == ("increase", (1, 1, 1), (128, 1, 1))
    same(x, np.full(4, 2, np.float32))

    by_value = np.array([(3,)], [("by", np.int32)])
    graph, _ = capture(stream, lambda: kernel((1,), (128,), (x, by_value)))
    by_value["by"] = 100  # frozen at capture
    same(x, np.full(4, 2, np.float32))
    graph.launch()
    graph.launch()
    same(x, np.full(4, 8, np.float32))
    with pytest.raises(RuntimeError, match="is capturing, so D2H transfers are disallowed"):
        capture(stream, x.get)
    stream._capture = None

    for wrong in (np.ones(1), np.ones(4), "text", [1], True, x.data):
        with pytest.raises(TypeError):
            kernel((1,), (1,), (x, wrong))
    with pytest.raises(TypeError):
        kernel(1, 128, (x, 2))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        kernel((1,), (2048,), (x, 2))


# -- cuBLAS ----------------------------------------------------------------------------------------

REAL32, REAL64, FULL32, FULL64, BF16, TF32 = 0, 1, 68, 70, 75, 77


class Blas:
    """Products by the library on row-major arrays: c = alpha op(a) op(b) + beta c."""

    def __init__(self, stream):
        self.cublas, self.handle = FakeCublas(), ctypes.c_void_p()
        assert self.cublas.cublasCreate_v2(ctypes.byref(self.handle)) == 0
        assert self.cublas.cublasSetStream_v2(self.handle, ctypes.c_void_p(stream.ptr)) == 0

    def gemm(self, sizes, a, b, c, transposed=(0, 0), lds=None, strides=None, batch=1, **options):
        """In cuBLAS's own terms: by columns."""
        (m, n, k), double = sizes, c.dtype == np.float64
        number = ctypes.c_double if double else ctypes.c_float
        alpha, beta = number(options.get("alpha", 1)), number(options.get("beta", 0))
        compute = options.get("compute", FULL64 if double else FULL32)
        lda, ldb, ldc = lds or (k if transposed[0] else m, n if transposed[1] else k, m)
        stride_a, stride_b, stride_c = strides or (m * k, k * n, m * n)
        kind = int(double)
        pointer = ctypes.c_void_p
        if strides is None and batch == 1:
            return self.cublas.cublasGemmEx(
                self.handle, *transposed, m, n, k, ctypes.byref(alpha),
                pointer(a.data.ptr), kind, lda, pointer(b.data.ptr), kind, ldb,
                ctypes.byref(beta), pointer(c.data.ptr), kind, ldc, compute, -1,
            )  # fmt: skip
        return self.cublas.cublasGemmStridedBatchedEx(
            self.handle, *transposed, m, n, k, ctypes.byref(alpha),
            pointer(a.data.ptr), kind, lda, stride_a, pointer(b.data.ptr), kind, ldb, stride_b,
            ctypes.byref(beta), pointer(c.data.ptr), kind, ldc, stride_c, batch, compute, -1,
        )  # fmt: skip


def by_columns(cupy, batch, dtype):
    """Matrices (batch, rows, columns) as cuBLAS wants them."""
    return cupy.asarray(np.ascontiguousarray(batch.swapaxes(1, 2)).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_gemm_is_numpys_product(cupy, stream, dtype, transposed, batch):
    m, n, k = 3, 4, 5
    a, b, c = numbers(batch, m, k), numbers(batch, k, n), numbers(batch, m, n)
    stored = [x.swapaxes(1, 2) if t else x for x, t in zip((a, b), transposed, strict=True)]
    device = [by_columns(cupy, x, dtype) for x in (*stored, c)]
    blas = Blas(stream)
    options = {"transposed": transposed, "batch": batch, "alpha": 0.5, "beta": 2.0}
    assert blas.gemm((m, n, k), *device, **options) == 0
    expected = 0.5 * a @ b + 2 * c
    found = device[2].get().swapaxes(1, 2)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == np.float32 else 1e-13)


def test_gemm_of_parts_of_matrices_and_of_one_factor_for_all(cupy, stream):
    whole, b = numbers(1, 7, 5), numbers(3, 5, 4)
    a = whole[:, 2:5]  # rows in the middle: a leading dimension of 7
    device_a, device_b = by_columns(cupy, whole, float), by_columns(cupy, b, float)
    c = cupy.empty((3, 4, 6))  # NaN; two rows of each column are not part of the result
    status = Blas(stream).gemm(
        (3, 4, 5), device_a.reshape(-1)[2:], device_b, c,
        lds=(7, 5, 6), strides=(0, 20, 24), batch=3,
    )  # fmt: skip
    assert status == 0
    found = c.get().swapaxes(1, 2)
    np.testing.assert_allclose(found[:, :3], a @ b)
    assert np.isnan(found[:, 3:]).all()


def test_gemm_does_not_read_what_beta_0_replaces(cupy, stream):
    c = cupy.empty((1, 2, 2))
    ones = cupy.ones((1, 2, 2))
    assert Blas(stream).gemm((2, 2, 2), ones, ones, c) == 0
    same(c, np.full((1, 2, 2), 2.0))


def test_gemm_refuses_what_cublas_refuses(cupy, stream):
    blas, x = Blas(stream), cupy.ones((8, 8))
    assert blas.gemm((3, 2, 4), x, x, x, lds=(2, 4, 3)) == 7
    assert blas.gemm((3, 2, 4), x, x, x, lds=(3, 3, 3)) == 7
    assert blas.gemm((3, 2, 4), x, x, x, lds=(3, 4, 2)) == 7
    assert blas.gemm((3, 2, 4), x, x, x, (1, 0), lds=(3, 4, 3)) == 7  # a is stored as (4, 3)
    assert blas.gemm((3, 2, 4), x, x, x, (0, 1), lds=(3, 1, 3)) == 7
    assert blas.gemm((-1, 2, 4), x, x, x) == 7
    assert blas.gemm((3, 2, 4), x, x, x, batch=2, strides=(0, 0, 0)) == 7  # results in one place
    assert blas.gemm((3, 2, 4), x, x, x, compute=FULL32) == 15
    assert blas.gemm((8, 8, 9), x, x, x) == 13  # beyond the end
    assert blas.gemm((0, 2, 4), x, x, x, lds=(1, 4, 1)) == 0
    blas.cublas.cublasDestroy_v2(blas.handle)
    assert blas.gemm((3, 2, 4), x, x, x) == 1


def test_gemm_shows_its_precision(cupy, stream):
    value = np.float32(1 + 2**-9 + 2**-12)
    a, b = cupy.full((1, 1, 1), value), cupy.ones((1, 1, 1), np.float32)
    blas, c = Blas(stream), cupy.empty((1, 1, 1), np.float32)
    for compute, expected in ((FULL32, value), (TF32, 1 + 2**-9), (BF16, 1.0)):
        assert blas.gemm((1, 1, 1), a, b, c, compute=compute) == 0
        assert c.item() == expected
    a.fill(1 + 2**-10 + 2**-11)  # rounds to the nearest, a half to even
    assert blas.gemm((1, 1, 1), a, b, c, compute=TF32) == 0
    assert c.item() == 1 + 2**-9
    blas.cublas.cublasSetMathMode(blas.handle, 3)
    assert blas.gemm((1, 1, 1), a, b, c) == 0
    assert c.item() == 1 + 2**-9


def test_gemm_in_a_graph(cupy, stream):
    a, b = cupy.asarray(numbers(1, 2, 2)), cupy.asarray(numbers(1, 2, 2) + 1)
    c, blas = cupy.zeros((1, 2, 2)), Blas(stream)
    stream.begin_capture()
    assert blas.gemm((2, 2, 2), a, b, c) == 15  # it has no workspace
    stream.end_capture()
    workspace = cupy.cuda.alloc(1 << 16)
    cublas = blas.cublas
    assert cublas.cublasSetWorkspace_v2(blas.handle, ctypes.c_void_p(workspace.ptr), 1 << 16) == 0
    graph, status = capture(stream, lambda: blas.gemm((2, 2, 2), a, b, c))
    assert status == 0
    assert not c.get().any()
    a *= 2
    graph.launch()
    np.testing.assert_allclose(c.get()[0].T, a.get()[0].T @ b.get()[0].T)
    assert cublas.cublasSetStream_v2(blas.handle, ctypes.c_void_p(stream.ptr)) == 0
    assert capture(stream, lambda: blas.gemm((2, 2, 2), a, b, c))[1] == 15  # SetStream forgets it
    with cupy.cuda.Stream(non_blocking=True):
        assert blas.gemm((2, 2, 2), a, b, c) == 14  # that is not the handle's stream


def test_pointers_need_argtypes(cupy, stream):
    blas = Blas(stream)
    with pytest.raises(OverflowError, match="cut to 32 bits"):
        blas.cublas.cublasSetWorkspace_v2(blas.handle, cupy.cuda.alloc(512).ptr, 512)
    blas.cublas.cublasSetWorkspace_v2.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_size_t]
    pointer = cupy.cuda.alloc(512)
    assert blas.cublas.cublasSetWorkspace_v2(blas.handle, pointer.ptr, 512) == 0
    with pytest.raises(ctypes.ArgumentError):
        blas.cublas.cublasSetWorkspace_v2(blas.handle, pointer.ptr, 512.0)
