"""SGD's update on numpy: one pass by numba, or pieces that fit a cache."""

from typing import Any

import numpy as np
from numpy import ndarray

from tinygrad_nnfs.kernels import loops, threads
from tinygrad_nnfs.registry import kernel_mode

SIZE = 2**16  # elements of a piece


def take(updates: list[Any]) -> list[Any]:
    """Do those updates, (theta, gradient, state, group), that a kernel is for; return the rest."""
    if not kernel_mode.enabled:
        return updates
    kernels: Any = loops.best()
    smallest = SIZE if kernels is loops else 0
    rest = []
    for update in updates:
        theta, gradient, state, group = update
        momentum, strides, flags = group["momentum"], theta.strides, theta.flags
        velocity = None
        if momentum:
            velocity = state.get("velocity")
            if velocity is None:
                velocity = state["velocity"] = np.zeros_like(theta)
        if (
            theta.size < smallest
            or group["nesterov"]
            or theta.dtype not in loops.COMPILED
            or not (flags.forc and flags.writeable)
            or type(gradient) is not ndarray
            or gradient.strides != strides
            or (velocity is not None and velocity.strides != strides)
        ):
            rest.append(update)
            continue
        arrays = [theta.ravel("K"), gradient.ravel("K")]
        settings = [group["lr"], group["weight_decay"]]
        step = kernels.gradient_step
        if velocity is not None:
            arrays.append(velocity.ravel("K"))
            settings.append(momentum)
            step = kernels.momentum_step
        if threads.is_large(theta.size):
            _in_pieces(step, arrays, settings)
        else:
            step(*arrays, *settings)
    return rest


def _in_pieces(step: Any, arrays: Any, settings: Any) -> None:
    pieces = threads.pieces(arrays[0].size, SIZE)
    threads.run(lambda piece: step(*[a[piece] for a in arrays], *settings), pieces)
