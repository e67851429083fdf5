"""Memory for large results, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault every 4 KiB, as much time as filling it, and the system's allocator
gives large blocks back to the operating system at every chance. So arrays of large results are
remembered here and handed out again when nobody else has them: their reference counts tell, for
whoever holds an array, or a view of it, is counted.
"""

import math
import sys
import threading
from typing import Any

import numpy as np

SMALLEST = 2**18  # bytes: below this, the system's allocator keeps what is freed
KEPT = 2**29  # bytes remembered at most, the arrays in use included

_lock = threading.Lock()
_arrays: dict[Any, list[np.ndarray]] = {}  # by shape and dtype, the last used at the end


def _is_free(array: np.ndarray) -> bool:
    # 4: in its list, in the loop over it, in `array` here and in getrefcount
    return sys.getrefcount(array) == 4


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A C-contiguous array with any content, like np.empty's."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    key = (shape, np.dtype(dtype))
    with _lock:
        arrays = _arrays[key] = _arrays.pop(key, [])
        for array in arrays:
            if _is_free(array) and array.flags.writeable:
                return array
        if sum(a.nbytes for arrays in _arrays.values() for a in arrays) + size > KEPT:
            _forget()
        array = np.empty(shape, dtype)
        arrays.append(array)
        return array


def _forget() -> None:
    for key, arrays in list(_arrays.items()):
        _arrays[key] = [array for array in arrays if not _is_free(array)]


def empty_like(x: Any, dtype: Any = None) -> np.ndarray:
    """An array with any content, of x's shape and in its memory order."""
    if x.nbytes < SMALLEST:
        return np.empty_like(x, dtype)
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    dense = empty(tuple(x.shape[axis] for axis in order), x.dtype if dtype is None else dtype)
    return dense.transpose(np.argsort(order))
