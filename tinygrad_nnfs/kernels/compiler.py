"""How numba compiles the kernels."""

import numba

inline = numba.njit(inline="always")


def kernel(function, **options):
    """Compile at the first call, to run without the interpreter lock; kept in a file.

    numba makes that file anew when the one that the kernel is in has changed. After a change to
    what kernels call in other files (compiled_lanes, compiled_transforms), `make clean`.
    """
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # there is no folder to write to: each process compiles anew
        return numba.njit(function, **options)


def kernel_in_any_order(function):
    """A kernel whose sums may be taken in another order than is written, for vector instructions.

    The order is the same for all arrays of a shape, on one processor.
    """
    return kernel(function, fastmath={"reassoc"})
