"""cupy's matmul, by cuBLAS with a handle of our own.

cupy refuses cuBLAS while a step is captured (see replay.py), and always computes stacks of float32
matrices in full precision. The library itself allows both, so it is called here by ctypes.
"""

import contextlib
import ctypes
import importlib
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinygrad_nnfs import backend

xp = backend.cupy

# cublasComputeType_t. The last two take float32 matrices, round them to 7 or 10 bits of mantissa,
# multiply on tensor cores and add up in float32.
COMPUTE_TYPES = {"float32": 68, "float64": 70, "bf16": 75, "tf32": 77}
PRECISIONS = ("float32", "tf32", "bf16")
WORKSPACE = 32 * 2**20  # bytes; what NVIDIA recommends for Hopper


class _Precision(threading.local):
    """Each thread multiplies float32 matrices on a GPU with a precision of its own."""

    name = os.environ.get("NNFS_GPU_PRECISION", "float32")


_precision = _Precision()


def check_gpu_precision(name: str) -> None:
    if name not in PRECISIONS:
        raise ValueError(f"GPU precision must be one of {', '.join(PRECISIONS)}, found {name!r}")


@contextlib.contextmanager
def gpu_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices on a GPU, those of convolutions too, with this precision.

    "float32" (the default), or on tensor cores "tf32" (relative errors of 5e-4) or "bf16" (4e-3);
    sums are float32 in each. For this thread, as a `with` block or as a decorator; the
    environment's NNFS_GPU_PRECISION says it for a whole process. On the CPU it changes nothing.
    """
    check_gpu_precision(name)
    before, _precision.name = _precision.name, name
    try:
        yield
    finally:
        _precision.name = before


class _Handle:
    """A handle of cuBLAS, for one thread."""

    def __init__(self) -> None:
        self.cublas = load_cublas()
        self.pointer = ctypes.c_void_p()
        _check(self.cublas.cublasCreate_v2(ctypes.byref(self.pointer)))
        self.workspace = xp.empty(WORKSPACE, "uint8")
        self.stream: int | None = None

    def follow(self, stream: int) -> None:
        """Work on `stream`, in memory given beforehand, as capturing asks for."""
        if stream != self.stream:
            _check(self.cublas.cublasSetStream_v2(self.pointer, ctypes.c_void_p(stream)))
            workspace = ctypes.c_void_p(self.workspace.data.ptr), ctypes.c_size_t(WORKSPACE)
            _check(self.cublas.cublasSetWorkspace_v2(self.pointer, *workspace))
            self.stream = stream


_here = threading.local()


def handle_in_use() -> Any:
    """What a graph that this thread has captured needs: its products work in the handle's memory,
    which is the thread's own, and would go with the thread."""
    return getattr(_here, "handle", None)


def load_cublas() -> Any:
    """The C library that cupy itself uses. Raises RuntimeError where there is none."""
    try:
        return ctypes.CDLL(_path_of_cublas())
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"device 'cuda' needs the library cuBLAS ({' '.join(str(error).split())}): "
            "pip install 'tinygrad_nnfs[gpu]'"
        ) from None


def _path_of_cublas() -> str:
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
    except ImportError:  # a cupy older than 14, such as Kaggle's, is linked to the system's
        return f"libcublas.so.{xp.cuda.runtime.runtimeGetVersion() // 1000}"
    path: str = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
    return path


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS refused a matrix product: status {status}")


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """The matrix product of cupy arrays, as numpy's: (..., n, i) @ (..., i, o) -> (..., n, o)."""
    if a.dtype != b.dtype or a.dtype.name not in COMPUTE_TYPES or a.ndim < 2 or b.ndim < 2:
        return backend.load_cupy().matmul(a, b, out=out)  # integers, float16, vectors
    if xp.cuda.runtime.is_hip:
        return backend.load_cupy().matmul(a, b, out=out)
    (n, inner), outputs = a.shape[-2:], b.shape[-1]
    if b.shape[-2] != inner:
        raise ValueError(f"matrices of {a.shape} and {b.shape} have no product")
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    direct = out is not None and out.flags.c_contiguous
    y = out if direct else xp.empty((*stack, n, outputs), a.dtype)
    if not inner:
        y.fill(0)
    elif y.size:
        _multiply(_as_stack(a, stack), _as_stack(b, stack), y.reshape(-1, n, outputs))
    if out is None or direct:
        return y
    out[...] = y
    return out


xp.matmul = matmul


def _as_stack(matrices: Any, stack: tuple[int, ...]) -> Any:
    """(..., n, i) as (b, n, i) for all b of `stack`: a view where its strides can say it."""
    n, i = matrices.shape[-2:]
    if matrices.size == n * i:  # one matrix for all of them
        return xp.broadcast_to(matrices.reshape(1, n, i), (math.prod(stack), n, i))
    return xp.broadcast_to(matrices, (*stack, n, i)).reshape(-1, n, i)


def _multiply(a: Any, b: Any, y: Any) -> None:
    """y = a @ b for stacks (b, n, i), (b, i, o) and dense (b, n, o)."""
    if not hasattr(_here, "handle"):
        _here.handle = _Handle()
    handle: _Handle = _here.handle
    handle.follow(xp.cuda.get_current_stream().ptr)
    number = ctypes.c_double if a.dtype.name == "float64" else ctypes.c_float
    kind = 1 if a.dtype.name == "float64" else 0  # CUDA_R_64F, CUDA_R_32F
    check_gpu_precision(_precision.name)
    compute = COMPUTE_TYPES["float64" if kind else _precision.name]
    # cuBLAS's matrices are column by column, so that y row by row is, to it, y^T = b^T a^T
    b, b_form, b_lead, b_step = _layout(b)
    a, a_form, a_lead, a_step = _layout(a)
    count, n, outputs = y.shape
    left = ctypes.c_void_p(b.data.ptr), kind, b_lead
    right = ctypes.c_void_p(a.data.ptr), kind, a_lead
    result = ctypes.c_void_p(y.data.ptr), kind, outputs
    common = handle.pointer, b_form, a_form, outputs, n, a.shape[2], ctypes.byref(number(1))
    zero = ctypes.byref(number(0))
    if count == 1:  # it may divide a long sum among blocks, as convolutions' dweight asks for
        function = handle.cublas.cublasGemmEx
        _check(function(*common, *left, *right, zero, *result, compute, -1))
        return
    function = handle.cublas.cublasGemmStridedBatchedEx
    to_b, to_a, to_y = map(ctypes.c_longlong, (b_step, a_step, n * outputs))  # the next matrix
    _check(function(*common, *left, to_b, *right, to_a, zero, *result, to_y, count, compute, -1))


def _layout(x: Any) -> tuple[Any, int, int, int]:
    """A stack as cuBLAS takes it: the array, 0 or 1 for transposed, leading dimension, step."""
    n, i = x.shape[1:]
    step, row, column = (stride // x.itemsize for stride in x.strides)
    if x.shape[0] == 1:
        step = 0
    if (column == 1 or i == 1) and (row >= i or n == 1):  # row by row: transposed, to cuBLAS's eyes
        return x, 0, max(row, i) if n > 1 else i, step
    if (row == 1 or n == 1) and (column >= n or i == 1):
        return x, 1, max(column, n) if i > 1 else n, step
    return _layout(xp.ascontiguousarray(x))
