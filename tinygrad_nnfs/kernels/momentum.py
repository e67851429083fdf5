"""The update of SGD with momentum on numpy: one pass by numba, or pieces that fit a cache."""

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
        and theta.flags.c_contiguous
        and gradient.flags.c_contiguous
    )


def step(
    theta: Any, velocity: Any, gradient: Any, lr: float, momentum: float, weight_decay: float
) -> None:
    """v = momentum v + lr (g + weight_decay theta), then theta = theta - v: both in place."""
    theta, velocity, gradient = theta.reshape(-1), velocity.reshape(-1), gradient.reshape(-1)

    def work(piece):
        loops.best().momentum_step(
            theta[piece], velocity[piece], gradient[piece], lr, momentum, weight_decay
        )

    if threads.is_large(theta.size):
        threads.run(work, threads.pieces(theta.size, SIZE))
    else:
        work(slice(None))
