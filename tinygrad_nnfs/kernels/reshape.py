"""reshape where it must rearrange memory (flatten after a convolution) on numpy: in kept memory."""

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.ops.shape import reshape


def _is_rearranged(x, *, shape):
    return not x.flags.c_contiguous and threads.is_large(4 * x.size)


@reshape.on(np, when=_is_rearranged)
def reshape_rearranged(xp, x, *, shape):
    before, order = x.shape, backend.axes_by_stride(x.strides)
    y = memory.empty(before, x.dtype)
    y[...] = x

    def dx(dy):
        gradient = memory.empty_in_order(before, order, dy.dtype)
        gradient[...] = dy.reshape(before)
        return gradient

    return y.reshape(shape), dx
