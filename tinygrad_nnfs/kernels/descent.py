"""SGD's update on numpy: one pass by numba, or pieces that fit a cache."""

from typing import Any

import numpy as np

from tinygrad_nnfs.kernels import loops, threads
from tinygrad_nnfs.registry import kernel_mode

SIZE = 2**16  # elements of a piece


def step(
    theta: Any, gradient: Any, velocity: Any, lr: float, weight_decay: float, momentum: float
) -> bool:
    """Update theta in place, and velocity where there is one; False where this does not apply."""
    if type(theta) is not np.ndarray or type(gradient) is not np.ndarray or not kernel_mode.enabled:
        return False
    if velocity is not None and velocity.strides != theta.strides:
        return False
    if theta.flags.c_contiguous and gradient.flags.c_contiguous:
        theta, gradient = theta.reshape(-1), gradient.reshape(-1)
    elif theta.flags.f_contiguous and gradient.flags.f_contiguous:
        theta, gradient = theta.T.reshape(-1), gradient.T.reshape(-1)
    else:
        return False
    if not loops.numba_is_installed() and theta.size <= SIZE:
        return False
    update: Any = loops.best().gradient_step
    arrays, settings = [theta, gradient], [lr, weight_decay]
    if velocity is not None:
        update = loops.best().momentum_step
        arrays.append(velocity.ravel(order="K"))
        settings.append(momentum)
    if threads.is_large(theta.size):
        pieces = threads.pieces(theta.size, SIZE)
        threads.run(lambda piece: update(*(a[piece] for a in arrays), *settings), pieces)
    else:
        update(*arrays, *settings)
    return True
