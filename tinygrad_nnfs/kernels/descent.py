"""SGD's update on numpy: one pass by numba, or pieces that fit a cache."""

from typing import Any

from numpy import ndarray

from tinygrad_nnfs.kernels import loops, threads
from tinygrad_nnfs.registry import kernel_mode

SIZE = 2**16  # elements of a piece


def step(
    theta: Any, gradient: Any, velocity: Any, lr: float, weight_decay: float, momentum: float
) -> bool:
    """Update theta in place, and velocity where there is one; False where this does not apply."""
    if type(theta) is not ndarray or type(gradient) is not ndarray or not kernel_mode.enabled:
        return False
    strides = theta.strides
    if not theta.flags.forc or gradient.strides != strides:
        return False
    kernels = loops.best()
    if kernels is loops and theta.size <= SIZE:
        return False
    if velocity is None:
        arrays = theta.ravel("K"), gradient.ravel("K")
        settings = lr, weight_decay
        update = kernels.gradient_step
    elif velocity.strides == strides:
        arrays = theta.ravel("K"), gradient.ravel("K"), velocity.ravel("K")
        settings = lr, weight_decay, momentum
        update = kernels.momentum_step
    else:
        return False
    if threads.is_large(theta.size):
        pieces = threads.pieces(theta.size, SIZE)
        threads.run(lambda piece: update(*(a[piece] for a in arrays), *settings), pieces)
    else:
        update(*arrays, *settings)
    return True
