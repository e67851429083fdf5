"""Memory for large results, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault every 4 KiB, as much time as filling it, and the system's allocator
gives large blocks back to the operating system at every chance. So the blocks of large results are
remembered here and get the next result when nobody else has them: their reference counts tell, for
an array holds its block, and a view of it the array.
"""

import math
import sys
from typing import Any, Literal

import numpy as np

from tinygrad_nnfs import backend

SMALLEST = 2**17  # bytes: below this, the system's allocator keeps what is freed
KEPT = 2**29  # bytes remembered at most, the blocks in use included
ALIGNMENT = 64  # bytes of a cache line: products with a matrix that begins with one take less time

_lock = backend.lock()
_blocks: dict[int, list[backend.Block]] = {}  # by size


def _references(blocks: list[backend.Block], i: int) -> int:
    return sys.getrefcount(blocks[i])


_UNUSED = _references([backend.Block(0)], 0)  # of a block that only its list has


def empty(shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """An array with any content, like np.empty's."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype, order)
    with _lock:
        return _array_in(_unused(size + ALIGNMENT), shape, dtype, order)


def aligned(shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """An array with any content, for a long life, which begins with a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _array_in(_block(size + ALIGNMENT), shape, dtype, order)


def _array_in(
    block: backend.Block, shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"]
) -> np.ndarray:
    return np.ndarray(shape, dtype, block, block.begin, order=order)


def _block(size: int) -> backend.Block:
    block = backend.Block(size, np.uint8)
    block.begin = -block.ctypes.data % ALIGNMENT
    return block


def _unused(size: int) -> backend.Block:
    """A block of `size` bytes, remembered if there is room for it."""
    blocks = _blocks.setdefault(size, [])
    for i in range(len(blocks)):
        if _references(blocks, i) == _UNUSED:
            return blocks[i]
    if _remembered() + size > KEPT:
        _forget_unused()
    block = _block(size)
    if _remembered() + size <= KEPT:
        blocks.append(block)
    return block


def _remembered() -> int:
    return sum(block.nbytes for blocks in _blocks.values() for block in blocks)


def _forget_unused() -> None:
    for blocks in _blocks.values():
        used = [i for i in range(len(blocks)) if _references(blocks, i) > _UNUSED]
        blocks[:] = [blocks[i] for i in used]


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
