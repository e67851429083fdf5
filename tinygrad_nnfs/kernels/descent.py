"""SGD's update on numpy: one pass by numba, or pieces that fit a cache."""

from typing import Any

import numpy as np
from numpy import ndarray

from tinygrad_nnfs.kernels import loops
from tinygrad_nnfs.registry import kernel_mode

SIZE = 2**16  # elements: below this, numpy's three passes are in a cache anyway


def take(updates: list[Any]) -> list[Any]:
    """Do those updates, (theta, gradient, state, group), that a kernel is for; return the rest."""
    if not kernel_mode.enabled:
        return updates
    compiled = loops.numba_is_installed()
    smallest = 0 if compiled else SIZE
    rest = []
    for update in updates:
        theta, gradient, state, group = update
        momentum, flags = group["momentum"], theta.flags
        arrays = [theta, gradient]
        if momentum:
            velocity = state.get("velocity")
            if velocity is None:
                velocity = state["velocity"] = np.zeros_like(theta)
            arrays.append(velocity)
        if (
            theta.size < smallest
            or group["nesterov"]
            or theta.dtype not in loops.COMPILED
            or not (flags.forc and flags.writeable)
            or type(gradient) is not ndarray
            or gradient.strides != theta.strides
            or (momentum and velocity.strides != theta.strides)
        ):
            rest.append(update)
            continue
        if not (compiled and flags.c_contiguous and theta.ndim):  # compiled loops flatten these
            arrays = [array.ravel("K") for array in arrays]
        settings = group["lr"], group["weight_decay"]
        if momentum:
            loops.run_in_pieces("momentum_step", theta.size, arrays, *settings, momentum)
        else:
            loops.run_in_pieces("gradient_step", theta.size, arrays, *settings)
    return rest
