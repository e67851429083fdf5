"""Array backends: numpy on the CPU, cupy on an NVIDIA GPU.

A backend is a namespace that speaks numpy: an op receives it as `xp` and writes `xp.exp(x)`.
There is no global device. An op runs where its arrays are.
"""

import ctypes
import functools
import importlib
import math
import operator
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np

Array: TypeAlias = (
    Any  # a numpy or cupy array: neither library's type may be required of the other's
)

DEVICES = ("cpu", "cuda")
_NUMPY = (np.ndarray, np.generic)


def of(array: Array) -> ModuleType:
    """The namespace that `array` belongs to."""
    return np if isinstance(array, _NUMPY) else cupy


def device_of(array: Array) -> str:
    """The device that `array` lives on: "cpu" or "cuda"."""
    return "cpu" if isinstance(array, _NUMPY) else "cuda"


def axes_by_stride(strides: Sequence[int]) -> list[int]:
    """The axes of an array with these strides, from the outermost in memory to the innermost."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


def is_array(value: object) -> bool:
    """True for a numpy or cupy array. Never imports cupy."""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def move(array: Array, device: str) -> Array:
    """`array` on `device`: itself where it is there already, else a copy.

    A copy from the GPU waits for it, and raises what `report_later` was told meanwhile.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is not known: use one of {', '.join(DEVICES)}")
    if device_of(array) == device:
        return array
    if device == "cuda":
        # row by row: dense layers' weights are not so on the CPU, and cupy would keep their order,
        # but kernels that update parameters take no other
        return cupy.asarray(array, order="C")
    found = cupy.asnumpy(array)
    _reports.raise_first()
    return found


def synchronize(xp: ModuleType) -> None:
    """Wait until a GPU has done all that it was told in the current stream."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


# -- cupy ------------------------------------------------------------------------------------------


class _Cupy(ModuleType):
    """cupy as a namespace that is there before cupy is: whoever asks for a name loads it.

    What is set on it stands before cupy's own.
    """

    matmul: Any  # set by kernels.cublas

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks of a module
            raise AttributeError(name)
        return getattr(load_cupy(), name)


cupy = _Cupy("cupy")


@functools.cache
def load_cupy() -> ModuleType:
    """cupy itself, on a machine where it can be used. Raises RuntimeError, in one line."""
    try:
        module = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            f"device 'cuda' needs cupy ({_one_line(error)}): pip install 'tinygrad_nnfs[gpu]'"
        ) from None
    try:
        found = module.cuda.runtime.getDeviceCount()
    except Exception as error:  # cupy's own error types cannot be named without cupy
        raise RuntimeError(f"device 'cuda' cannot be used: {_what_to_do(error, module)}") from None
    if not found:
        raise RuntimeError("device 'cuda' cannot be used: this machine has no NVIDIA GPU")
    return module


def _what_to_do(error: Exception, module: ModuleType) -> str:
    """Why CUDA does not answer, and what helps."""
    built_for = module.cuda.runtime.runtimeGetVersion() // 1000
    try:
        driver = ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
    except OSError:
        return "there is no NVIDIA driver (libcuda): install one, or use device 'cpu'"
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if 0 < version.value // 1000 < built_for:
        known = version.value // 1000
        return (
            f"the NVIDIA driver knows CUDA {known}, cupy was built for CUDA {built_for}: update "
            f"the driver, or pip install cupy-cuda{known}x in place of cupy-cuda{built_for}x"
        )
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def cupy_if_installed() -> ModuleType | None:
    """The namespace of cupy, if it is installed and finds a GPU."""
    try:
        load_cupy()
    except RuntimeError:
        return None
    return cupy


class _Reports:
    """What ops find wrong with values on a GPU, where to look means to wait for it.

    Each message has a flag on the GPU, which is read when somebody reads a result.
    """

    size = 64

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.flags: Array | None = None

    def flag(self, message: str) -> Array:
        if self.flags is None:
            self.flags = cupy.zeros(self.size, "int32")
        place = self.places.setdefault(message, min(len(self.places), self.size - 1))
        return self.flags[place : place + 1]

    def raise_first(self) -> None:
        if self.flags is None:
            return
        raised = cupy.asnumpy(self.flags)
        if raised.any():
            self.flags.fill(0)
            raise ValueError(next(m for m, place in self.places.items() if raised[place]))


_reports = _Reports()


def report_flag(message: str) -> Array:
    """An int32 on the GPU: set to 1, it raises ValueError(message) when a result is next read.

    Kernels set it; what is wrong with a value is then known without waiting for the GPU.
    """
    return _reports.flag(message)


def report_later(message: str, wrong: Array) -> None:
    """If `wrong`, a bool on the GPU, is true: raise ValueError(message) at the next read."""
    flag = report_flag(message)
    flag |= wrong


class Block(np.ndarray):
    """The memory of one array, of which it is the base, and of nothing else: kernels/memory.py."""

    begin: int  # bytes before the first whole cache line


def owns_memory(array: Any) -> bool:
    """Is an array no view of another's memory?"""
    return array.base is None or type(array.base) is Block


def after_fork(reset: Callable[[], None]) -> None:
    """Call `reset` in every forked child, which has none of the other threads."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)


def lock() -> threading.Lock:
    """A lock that is free in a forked child, whoever holds it in the parent.

    For use by a module, once: it lives as long as the process.
    """
    made = threading.Lock()
    after_fork(made._at_fork_reinit)  # type: ignore[attr-defined]
    return made


class _Random:
    """The two streams that `manual_seed` resets: initial weights and dropout keys."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generator = np.random.default_rng(seed)
        self.calls = 0


_random = _Random(0)
_drawing = lock()  # so that threads never share a key


def manual_seed(seed: int) -> None:
    """Restart every random stream: initial weights and dropout masks. `seed` is 0 to 2**64 - 1.

    A program that never calls this runs with seed 0, so it repeats itself.
    """
    try:
        number = operator.index(seed)  # a Python int of numpy's too: the state is for JSON
    except TypeError:
        raise TypeError(f"manual_seed: the seed must be an integer, found {seed!r}") from None
    if not 0 <= number < 2**64:
        raise ValueError(f"manual_seed: the seed must be in 0..2**64-1, found {number}")
    global _random
    _random = _Random(number)


def get_rng_state() -> dict[str, Any]:
    """Where every random stream is: plain numbers, for `set_rng_state` or a JSON file."""
    state = _random.generator.bit_generator.state
    return {"seed": _random.seed, "calls": _random.calls, "weights": state}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put every random stream where it was when `get_rng_state` returned `state`."""
    global _random
    restored = _Random(state["seed"])
    restored.calls = state["calls"]
    restored.generator.bit_generator.state = state["weights"]
    _random = restored


def restart_keys(seed: int, step: int) -> None:
    """Let the next keys of `random_key` follow from (seed, step) alone, up to 2**32 of them."""
    with _drawing:
        _random.seed, _random.calls = seed, step << 32


def random_key() -> tuple[int, int]:
    """A key that no earlier call returned since `manual_seed`: (seed, call number)."""
    with _drawing:
        _random.calls += 1
        return _random.seed, _random.calls - 1


def random_normal(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers from the stream of initial weights."""
    return _random.generator.standard_normal(shape, dtype=np.float32)


def random_bits(
    xp: ModuleType, key: tuple[int, int], shape: tuple[int, ...], skip: int = 0
) -> Array:
    """Uniform 16-bit integers, the same for the same key on every device: uint16 of `shape`.

    `skip`, a multiple of 16, leaves out that many at the beginning of the key's stream.

    The bits are Philox4x64-10's (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    2011), a counter-based generator: equal keys give equal bits and nothing else is remembered.
    """
    size = math.prod(shape)
    words = _philox(key, skip // 16).random_raw(-(-size // 4))
    return xp.asarray(words.view(np.uint16)[:size].reshape(shape))


_thread = threading.local()


def _philox(key: tuple[int, int], counter: int) -> np.random.Philox:
    """This thread's generator, put at block `counter`, of 256 bits, of the stream of `key`.

    Setting its state takes a tenth of the time that making a new one does.
    """
    if not hasattr(_thread, "philox"):
        _thread.philox = np.random.Philox(key=0)
        _thread.start = _thread.philox.state
    _thread.start["state"]["key"][:] = key
    _thread.start["state"]["counter"][0] = counter
    _thread.philox.state = _thread.start
    return cast(np.random.Philox, _thread.philox)
