"""The threads that help compiled kernels: see compiled_parallel."""

import atexit
import contextlib
import threading
from queue import SimpleQueue

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import memory, threads

LARGE = 2**16  # elements: below this, a loop takes less time than threads need to meet
ALONE = 0, 1, 0


def team(size: int) -> tuple[int, int, int]:
    """The team for a loop over `size` elements, with as many workers as `num_threads` says.

    Its helpers are awake; ALONE if the loop is small.
    """
    if size < LARGE >> threads.shift:
        return ALONE
    workers = threads.num_threads()
    helpers = _helpers
    if helpers is None or helpers.workers != workers:
        helpers = _called(workers)
    if helpers.sleeping:
        helpers.wake()
    return helpers.address, workers, threads.shift


class _Helpers:
    """There is one in a process, and its address is good for as long as that lives."""

    def __init__(self) -> None:
        from tinygrad_nnfs.kernels import compiled_parallel as parallel  # numba: only when used

        self._parallel = parallel
        self._words = memory.aligned((parallel.WORDS,), np.int64)
        self._words[...] = 0
        self.address = self._words.ctypes.data
        self.workers = 1
        self.sleeping: list[SimpleQueue[None]] = []  # what wakes each of them
        self._threads: list[threading.Thread] = []

    def resize(self, workers: int) -> None:
        self.workers = workers
        self.wake()
        while len(self._threads) >= workers:
            self._threads.pop().join()
        for worker in range(len(self._threads) + 1, workers):
            name = f"tinygrad_nnfs helper {worker}"
            helper = threading.Thread(target=self._help, args=(worker,), name=name, daemon=True)
            helper.start()
            self._threads.append(helper)

    def _help(self, worker: int) -> None:
        bell: SimpleQueue[None] = SimpleQueue()
        while True:
            self._parallel.help_until_idle(self.address, worker)
            self.sleeping.append(bell)
            if worker >= self.workers:  # after the line before: whoever resizes wakes those it sees
                return
            bell.get()

    def wake(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may wake them at the same time
            while True:
                self.sleeping.pop().put(None)


_helpers: _Helpers | None = None
_lock = backend.lock()


def _called(workers: int) -> _Helpers:
    global _helpers
    with _lock:
        if _helpers is None:
            _helpers = _Helpers()
        if _helpers.workers != workers:
            _helpers.resize(workers)
        return _helpers


def _dismiss() -> None:
    """At the end: no thread is at work when the interpreter goes."""
    if _helpers is not None:
        _helpers.resize(1)


def _forget() -> None:
    """In a forked child, which has none of the helpers."""
    global _helpers
    _helpers = None


atexit.register(_dismiss)
backend.after_fork(_forget)
