"""SGD's update on numpy: one pass by numba, or pieces that fit a cache."""

from typing import Any

import numpy as np

from tinygrad_nnfs.kernels import loops, threads
from tinygrad_nnfs.registry import kernel_mode

SIZE = 2**16  # elements of a piece


def applies(theta: Any, gradient: Any) -> bool:
    return (
        kernel_mode.enabled
        and type(theta) is type(gradient) is np.ndarray
        and (loops.numba_is_installed() or theta.size > SIZE)
        and theta.flags.forc
        and theta.strides == gradient.strides
    )


def _flat(array: Any) -> Any:
    """All elements of an array in C or Fortran order, as a view."""
    return array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)


def step(theta: Any, gradient: Any, velocity: Any, *settings: float) -> None:
    """Update theta in place, and velocity where there is one; settings: see `loops`."""
    arrays = [_flat(theta), _flat(gradient)]
    update = loops.best().gradient_step
    if velocity is not None:
        arrays.append(_flat(velocity))
        update = loops.best().momentum_step
    if not threads.is_large(theta.size):
        update(*arrays, *settings)
        return

    def work(piece: slice) -> None:
        update(*(a[piece] for a in arrays), *settings)

    threads.run(work, threads.pieces(theta.size, SIZE))
