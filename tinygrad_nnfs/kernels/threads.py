"""Pieces of one op on several threads, with the BLAS library at one thread meanwhile.

Python's threads are enough: numpy, BLAS and compiled kernels let go of the interpreter lock while
they compute. Work is cut by shape, never by the number of threads, so results do not depend on it.
"""

import contextlib
import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

Piece = TypeVar("Piece")

_chosen: int | None = None


def num_threads() -> int:
    """How many threads an op may use: what was set, or as many as numpy's own BLAS library uses."""
    if _chosen is not None:
        return _chosen
    given = os.environ.get("NNFS_NUM_THREADS")
    if given is None:
        blas = _blas()
        if blas is None:
            return 1
        return blas.before if blas.users else blas.get_num_threads()
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"NNFS_NUM_THREADS must be an integer >= 1, found {given!r}")
    return int(given)


def set_num_threads(count: int) -> None:
    """Let each op of this process use up to `count` threads. Results do not depend on it.

    Without it the environment's NNFS_NUM_THREADS counts, or else what numpy's BLAS library was
    told (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS) or took: one thread a core. Other libraries keep
    their own settings.
    """
    global _chosen
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"set_num_threads: expected an integer >= 1, found {count!r}")
    _chosen = count


_blas_threads = False


def use_blas_threads(allowed: bool = True) -> None:
    """Let BLAS use its own threads for products that are too small to be handed to ours.

    This is for networks of dense layers alone: BLAS's threads start ten times sooner than ours, but
    go on spinning after each product, which makes convolutions beside them half as fast again. And
    the last bits of a product depend on how many they are (OPENBLAS_NUM_THREADS).
    """
    global _blas_threads
    _blas_threads = allowed


def run(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """`work(piece)` for every piece, this thread and the pool's taking the next one each time."""
    pieces = list(pieces)
    helpers = min(num_threads(), len(pieces)) - 1
    left = iter(pieces)
    job = [work]

    def take() -> None:
        for piece in left:  # one piece to one thread: next() of a list's iterator is atomic
            job[0](piece)

    with single_threaded_blas():
        if helpers < 1 or _blas() is None:
            take()
            return
        futures = [_pool().submit(take) for _ in range(helpers)]
        try:
            take()
        finally:
            for future in futures:
                # one that has not begun has nothing to do: all pieces are taken
                if not future.cancel():
                    future.result()
            job.clear()  # the pool forgets `take` in its own time: what `work` holds dies now


LARGE = 2**18  # elements: below this, handing work to another thread takes longer than the work

_shift = 0  # see tiny_pieces


def is_large(size: int) -> bool:
    """Is an op on so many elements worth cutting up?"""
    return size >= LARGE >> _shift


def pieces(length: int, size: int) -> list[slice]:
    """0..length in slices of `size`, the last one perhaps shorter."""
    size = max(1, size >> _shift)
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


@contextlib.contextmanager
def tiny_pieces() -> Iterator[None]:
    """For tests: from 16 elements on arrays are large, and are cut up like large ones."""
    global _shift
    before, _shift = _shift, 14
    try:
        yield
    finally:
        _shift = before


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tinygrad_nnfs")


if hasattr(os, "register_at_fork"):  # a forked child has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


# -- the BLAS library ------------------------------------------------------------------------------


class _Blas:
    """The thread count of the OpenBLAS that numpy itself computes with."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.get_num_threads: Callable[[], int] = getattr(library, name.format("get"))
        self.set_num_threads: Callable[[int], None] = getattr(library, name.format("set"))
        self.lock = threading.Lock()
        self.users = 0
        self.before = 1


@functools.cache
def _blas() -> _Blas | None:
    """None where numpy computes with something else (MKL, Accelerate): it keeps its threads."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return None
    for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"):
        if hasattr(library, name.format("set")):
            return _Blas(library, name)
    return None


class single_threaded_blas:  # noqa: N801, used like a function
    """BLAS at one thread inside; the last to leave puts back what was there before the first.

    Threads of ours are woken by pieces of work. BLAS's own would go on spinning after each product
    for milliseconds, on the very cores that the next pieces need; and how BLAS cuts a product
    depends on the number of its threads, which changes the last bits of the result.
    """

    def __enter__(self) -> None:
        blas = _blas()
        if blas is not None:
            with blas.lock:
                if not blas.users:
                    blas.before = blas.get_num_threads()
                    if blas.before > 1:
                        blas.set_num_threads(1)
                blas.users += 1

    def __exit__(self, *_: object) -> None:
        blas = _blas()
        if blas is not None:
            with blas.lock:
                blas.users -= 1
                if not blas.users and blas.before > 1:
                    blas.set_num_threads(blas.before)


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """np.matmul with BLAS at one thread, unless `use_blas_threads` allows more."""
    # BLAS itself takes one thread for the smallest ones
    if _blas_threads or a.size * b.shape[-1] < 2**17:
        return np.matmul(a, b, out=out)
    with single_threaded_blas():
        return np.matmul(a, b, out=out)


# -- memory ----------------------------------------------------------------------------------------

_memory = threading.local()
ALIGNMENT = 64  # bytes of a cache line: BLAS is some 5 % faster on matrices that begin with one


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array with any content, for use until this thread next asks for `name`.

    Fresh memory of this size costs a page fault every 4 KiB, as much time as filling it. Only what
    dies inside one piece may live here. A thread keeps its largest block of each name until it
    ends.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    block = getattr(_memory, name, None)
    if block is None or block.nbytes < size:
        block = np.empty(size + ALIGNMENT, np.uint8)
        block = block[-block.ctypes.data % ALIGNMENT :]
        setattr(_memory, name, block)
    return block[:size].view(dtype).reshape(shape)
