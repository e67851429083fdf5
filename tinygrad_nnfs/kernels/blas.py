"""The BLAS library that numpy computes with: its threads, and its matrix product.

OpenBLAS is what numpy's wheels bring along, and the one whose threads can be told from here. Where
numpy computes with something else (MKL, Accelerate) that keeps its threads, and there are no pieces
on several threads of ours.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_nnfs import backend


class OpenBlas:
    """What is called in numpy's own OpenBLAS, and who wants it at one thread."""

    def __init__(self, handle: ctypes.CDLL, prefix: str) -> None:
        self.get_num_threads: Callable[[], int] = handle[f"{prefix}openblas_get_num_threads64_"]
        self.set_num_threads: Callable[[int], None] = handle[f"{prefix}openblas_set_num_threads64_"]
        self.lock = backend.lock()
        self.users = 0
        self.before = 1
        backend.after_fork(self._forget_users)

    def _forget_users(self) -> None:
        """In a forked child: the threads that wanted it at one thread are not here."""
        if self.users and self.before > 1:
            self.set_num_threads(self.before)
        self.users = 0


@functools.cache
def openblas() -> OpenBlas | None:
    """None where numpy computes with something else (MKL, Accelerate): it keeps its threads."""
    with contextlib.suppress(AttributeError, OSError):
        handle = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
        for prefix in ("scipy_", ""):  # of all names; the 64_ behind them: sizes are 64-bit
            if hasattr(handle, f"{prefix}openblas_set_num_threads64_"):
                return OpenBlas(handle, prefix)
    return None


class single_threaded:  # noqa: N801, used like a function
    """BLAS at one thread inside; the last to leave puts back what was there before the first.

    Threads of ours are woken by pieces of work. BLAS's own would go on spinning after each product
    for milliseconds, on the very cores that the next pieces need; and how BLAS cuts a product
    depends on the number of its threads, which changes the last bits of the result.
    """

    def __enter__(self) -> None:
        blas = openblas()
        if blas is not None:
            with blas.lock:
                if not blas.users:
                    blas.before = blas.get_num_threads()
                    if blas.before > 1:
                        blas.set_num_threads(1)
                blas.users += 1

    def __exit__(self, *_: object) -> None:
        blas = openblas()
        if blas is not None:
            with blas.lock:
                blas.users -= 1
                if not blas.users and blas.before > 1:
                    blas.set_num_threads(blas.before)


# multiply-adds of products with a vector, and of two matrices, for fewer of which OpenBLAS itself
# takes one thread
SMALL, SMALL_MATRICES = 2**13, 2**18


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """np.matmul with BLAS at one thread."""
    of_matrices = a.ndim > 1 and b.ndim > 1 and a.shape[-2] > 1 and b.shape[-1] > 1
    if a.size * b.shape[-1] < (SMALL_MATRICES if of_matrices else SMALL):
        return np.matmul(a, b, out=out)
    with single_threaded():
        return np.matmul(a, b, out=out)


def row_product(row: Any, matrix: Any) -> Any:
    """(1, i) @ (i, o) likewise, by dot: it starts sooner than matmul."""
    if matrix.size < SMALL:
        return row.dot(matrix)
    with single_threaded():
        return row.dot(matrix)
