"""Array backends: numpy on the CPU, cupy on an NVIDIA GPU.

A backend is a namespace that speaks numpy: an op receives it as `xp` and writes `xp.exp(x)`.
There is no global device. An op runs where its arrays are.
"""

import functools
import importlib
import itertools
import math
import threading
from collections.abc import Mapping
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
    return np if isinstance(array, _NUMPY) else _cupy()


def device_of(array: Array) -> str:
    """The device that `array` lives on: "cpu" or "cuda"."""
    return "cpu" if isinstance(array, _NUMPY) else "cuda"


def is_array(value: object) -> bool:
    """True for a numpy or cupy array. Never imports cupy."""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def move(array: Array, device: str) -> Array:
    """`array` on `device`: itself where it is there already, else a copy."""
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is not known: use one of {', '.join(DEVICES)}")
    if device_of(array) == device:
        return array
    return _cupy().asnumpy(array) if device == "cpu" else _cupy().asarray(array)


@functools.cache
def _cupy() -> ModuleType:
    try:
        cupy = importlib.import_module("cupy")
        found = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise RuntimeError(
            f"device 'cuda' needs cupy ({error}): pip install 'tinygrad_nnfs[gpu]'"
        ) from None
    except Exception as error:  # cupy's own error types cannot be named without a working cupy
        raise RuntimeError(f"device 'cuda' cannot be used: {error}") from None
    if not found:
        raise RuntimeError("device 'cuda' cannot be used: cupy found no CUDA device")
    return cupy


def cupy_if_installed() -> ModuleType | None:
    """cupy, if it is installed and finds a GPU."""
    try:
        return _cupy()
    except RuntimeError:
        return None


class _Random:
    """The two streams that `manual_seed` resets: initial weights and dropout keys."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generator = np.random.default_rng(seed)
        self.calls = itertools.count()  # next() is atomic, so threads never share a key


_random = _Random(0)


def manual_seed(seed: int) -> None:
    """Restart every random stream: initial weights and dropout masks. `seed` is 0 to 2**64 - 1.

    A program that never calls this runs with seed 0, so it repeats itself.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"manual_seed: the seed must be in 0..2**64-1, found {seed}")
    global _random
    _random = _Random(seed)


def get_rng_state() -> dict[str, Any]:
    """Where every random stream is: plain numbers, for `set_rng_state` or a JSON file."""
    calls = next(_random.calls)
    _random.calls = itertools.count(calls)
    state = _random.generator.bit_generator.state
    return {"seed": _random.seed, "calls": calls, "weights": state}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put every random stream where it was when `get_rng_state` returned `state`."""
    global _random
    restored = _Random(state["seed"])
    restored.calls = itertools.count(state["calls"])
    restored.generator.bit_generator.state = state["weights"]
    _random = restored


def restart_keys(seed: int, step: int) -> None:
    """Let the next keys of `random_key` follow from (seed, step) alone, up to 2**32 of them."""
    _random.seed, _random.calls = seed, itertools.count(step << 32)


def random_key() -> tuple[int, int]:
    """A key that no earlier call returned since `manual_seed`: (seed, call number)."""
    return _random.seed, next(_random.calls)


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
