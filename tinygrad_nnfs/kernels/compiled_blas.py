"""BLAS's matrix product for compiled kernels, which then stay outside the interpreter lock.

The function is the one that numpy itself calls, found at its address, so results and threads are
numpy's. Its name is resolved when a kernel is loaded: kernels that call it can be cached on disk.
"""

import numpy as np
from llvmlite import binding
from numba import types

from tinygrad_nnfs.kernels import blas
from tinygrad_nnfs.kernels.compiler import inline

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # of CBLAS

_openblas = blas.openblas()
if _openblas is None:
    raise ImportError("numpy computes with another library than OpenBLAS")
binding.add_symbol("tinygrad_nnfs_sgemm", _openblas.sgemm)

_flag, _size, _factor, _matrix = types.int32, types.int64, types.float32, types.uintp
_sgemm = types.ExternalFunction(
    "tinygrad_nnfs_sgemm",
    types.void(
        *(_flag, _flag, _flag, _size, _size, _size, _factor),
        *(_matrix, _size, _matrix, _size, _factor, _matrix, _size),
    ),
)


@inline
def matmul(a, b, out):
    """out = a b: (m, k), (k, n), float32, C order."""
    _multiply(PLAIN, a, b, out)


@inline
def matmul_transposed(a, b, out):
    """out = a^T b: (k, m), (k, n), float32, C order."""
    _multiply(TRANSPOSED, a, b, out)


@inline
def _multiply(how, a, b, out):
    (m, n), k = out.shape, b.shape[0]
    one, zero, row = np.float32(1), np.float32(0), a.shape[1]
    at_a, at_b, at_out = a.ctypes.data, b.ctypes.data, out.ctypes.data
    _sgemm(ROW_MAJOR, how, PLAIN, m, n, k, one, at_a, row, at_b, n, zero, at_out, n)
