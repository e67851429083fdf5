"""Memory for large results, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault every 4 KiB, as much time as filling it, and the system's allocator
gives large blocks back to the operating system at every chance. So arrays of large results are
remembered here and handed out again when nobody else has them: their reference counts tell, for
whoever holds an array, or a view of it, is counted.
"""

import math
import sys
from typing import Any, Literal

import numpy as np

from tinygrad_nnfs import backend

SMALLEST = 2**17  # bytes: below this, the system's allocator keeps what is freed
KEPT = 2**29  # bytes remembered at most, the arrays in use included

_lock = backend.lock()
_arrays: dict[Any, list[np.ndarray]] = {}  # by shape, dtype and order


def _references(arrays: list[np.ndarray], i: int) -> int:
    return sys.getrefcount(arrays[i])


_UNUSED = _references([np.empty(0)], 0)  # of an array that only its list has


def empty(shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """An array with any content, like np.empty's."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype, order)
    key = (shape, np.dtype(dtype), order)
    with _lock:
        arrays = _arrays.setdefault(key, [])
        for i in range(len(arrays)):
            if _references(arrays, i) == _UNUSED and _is_as_made(arrays[i], *key):
                return arrays[i]
        if _remembered() + size > KEPT:
            _forget_unused()
        array = np.empty(shape, dtype, order)
        if _remembered() + size <= KEPT:
            arrays.append(array)
        return array


def _is_as_made(array: np.ndarray, shape: tuple[int, ...], dtype: Any, order: str) -> bool:
    """Whoever had the array may have set its shape, dtype or flags."""
    in_order = array.flags.c_contiguous if order == "C" else array.flags.f_contiguous
    return in_order and array.flags.writeable and (array.shape, array.dtype) == (shape, dtype)


def _remembered() -> int:
    return sum(array.nbytes for arrays in _arrays.values() for array in arrays)


def _forget_unused() -> None:
    for arrays in _arrays.values():
        used = [i for i in range(len(arrays)) if _references(arrays, i) > _UNUSED]
        arrays[:] = [arrays[i] for i in used]


def empty_like(x: Any, dtype: Any = None) -> np.ndarray:
    """An array with any content, of x's shape and in its memory order."""
    if x.nbytes < SMALLEST:
        return np.empty_like(x, dtype)
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if x.flags.forc:  # owns its memory: a gradient for a leaf need not be copied
        return empty(x.shape, dtype, "C" if x.flags.c_contiguous else "F")
    return empty_in_order(x.shape, backend.axes_by_stride(x.strides), dtype)


def empty_in_order(shape: tuple[int, ...], order: list[int], dtype: Any) -> np.ndarray:
    """An array with any content, its axes in memory in `order`."""
    return empty(tuple(shape[axis] for axis in order), dtype).transpose(np.argsort(order))
