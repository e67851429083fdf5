"""Pieces of one op on several threads, with the BLAS library at one thread meanwhile.

Python's threads are enough for numpy and BLAS, which let go of the interpreter lock while they
compute; compiled kernels have helpers. Work is cut by shape, never by the number of threads, so
results do not depend on it.
"""

import contextlib
import contextvars
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import blas, memory

Piece = TypeVar("Piece")

_chosen: int | None = None


def num_threads() -> int:
    """How many threads an op may use: what was set, or as many as numpy's own BLAS library uses."""
    count = _chosen or in_environment()
    if count is not None:
        return count
    openblas = blas.openblas()
    if openblas is None:
        return 1
    return openblas.before if openblas.users else openblas.get_num_threads()


@functools.cache
def in_environment() -> int | None:
    given = os.environ.get("NNFS_NUM_THREADS")
    if given is None:
        return None
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
    if not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"set_num_threads: expected an integer >= 1, found {count!r}")
    _chosen = int(count)


def run(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """`work(piece)` for every piece, this thread and the pool's taking the next one each time."""
    pieces = list(pieces)
    helpers = min(num_threads(), len(pieces)) - 1
    left = iter(pieces)
    job = [work]

    def take() -> None:
        for piece in left:  # one piece to one thread: next() of a list's iterator is atomic
            job[0](piece)

    with blas.single_threaded():
        if helpers < 1 or blas.openblas() is None:
            take()
            return
        # each helper in a copy of this thread's context, of which np.errstate is a part
        futures = [_pool().submit(contextvars.copy_context().run, take) for _ in range(helpers)]
        try:
            take()
        finally:
            # those that have not begun have nothing to do: all pieces are taken, or one failed
            begun = [future for future in futures if not future.cancel()]
            wait(begun)  # also where one of them raises: nothing is at work after the return
            job.clear()  # the pool forgets `take` in its own time: what `work` holds dies now
            for future in begun:
                future.result()


LARGE = 2**18  # elements: below this, handing work to another thread takes longer than the work

shift = 0  # by how many bits sizes are smaller than usual: see tiny_pieces


def is_large(size: int) -> bool:
    """Is an op on so many elements worth cutting up?"""
    return size >= LARGE >> shift


def piece_size(size: int) -> int:
    """`size`, unless pieces are to be tiny."""
    return max(1, size >> shift)


def pieces(length: int, size: int) -> list[slice]:
    """0..length in slices of `size`, the last one perhaps shorter."""
    size = piece_size(size)
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def equal_pieces(length: int, size: int) -> list[slice]:
    """0..length in slices of one size, which is at most `size`: where they are few and large."""
    number = -(-length // size)
    return pieces(length, -(-length // number)) if number else []


@contextlib.contextmanager
def tiny_pieces() -> Iterator[None]:
    """For tests: from 16 elements on arrays are large, and are cut up like large ones."""
    global shift
    before, shift = shift, 14
    try:
        yield
    finally:
        shift = before


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tinygrad_nnfs")


backend.after_fork(_pool.cache_clear)  # a forked child has the pool, but none of its threads


# -- memory ----------------------------------------------------------------------------------------

_scratch = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array with any content, for use until this thread next asks for `name`.

    Fresh memory of this size costs a page fault every 4 KiB, as much time as filling it. Only what
    dies inside one piece may live here. A thread keeps its largest block of each name until it
    ends.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    block = getattr(_scratch, name, None)
    if block is None or block.nbytes < size:
        block = memory.aligned((size,), np.uint8)
        setattr(_scratch, name, block)
    return block[:size].view(dtype).reshape(shape)
