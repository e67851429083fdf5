"""CUDA kernels on the CPU: the same .cu text, compiled by g++ with cuda_shim.hpp in front of it.

    kernels = load("float")
    kernels.launch("add_bias", 2, 64, [y, bias, rows, np.int32(outputs)])

Arguments are what cupy.RawKernel takes, with numpy arrays in the place of cupy's: arrays (a pointer
to their memory), None (a null pointer), ints (long long), floats (double), numpy scalars as they
are, and structured arrays of one element, which go by value. An argument that does not fit its
parameter is a TypeError, where a GPU would read whatever is there.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import tinygrad_nnfs

SOURCE = Path(tinygrad_nnfs.__file__).parent / "kernels" / "cuda.cu"
SHIM = Path(__file__).with_name("cuda_shim.hpp")
COMPILER = "g++"
OPTIONS = [
    *("-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
    "-ffp-contract=off",  # every operation rounded, as numpy does
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    # packs off their alignment, integers that overflow: they end the process, and name the test
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
]
MAX_THREADS = 1024  # in a block
FOLDER = None  # where to keep what is compiled; None: nowhere


def compiler_is_installed():
    """g++ itself: what other systems than Linux call so knows other options."""
    return sys.platform == "linux" and shutil.which(COMPILER) is not None


def kernel_names(text):
    return re.findall(r'extern "C" __global__ void (\w+)\(', text)


def kernels_with_barriers(text):
    """Those that call __syncthreads, or a function that does. Only they need fibers."""
    functions = re.findall(
        r"^(?:extern \"C\" __global__|__device__)[^{;]*?(\w+)\([^{;]*\{(.*?)^\}", text, re.M | re.S
    )
    with_barriers = {"__syncthreads"}
    for name, body in functions:  # a function stands before those that call it
        if any(f"{other}(" in body for other in with_barriers):
            with_barriers.add(name)
    return with_barriers


class Parameter(ctypes.Structure):
    """`Parameter` of cuda_shim.hpp."""

    _fields_ = [
        ("size", ctypes.c_longlong),
        ("alignment", ctypes.c_longlong),
        ("kind", ctypes.c_char),
        ("element_size", ctypes.c_longlong),
        ("element_kind", ctypes.c_char),
        ("element_is_constant", ctypes.c_bool),
    ]


def load(real, index="unsigned", folder=None, source=SOURCE):
    """The kernels of `source` with REAL and INDEX so; what is compiled stays in `folder`."""
    text = source.read_text()
    names = kernel_names(text)
    barriers = kernels_with_barriers(text)
    kernels = ", ".join(
        f'describe("{name}", {str(name in barriers).lower()}, {name})' for name in names
    )
    program = (
        f'#include "{SHIM}"\n#include "{source}"\n'
        f"namespace shim {{ const std::vector<Kernel> kernels = {{{kernels}}}; }}\n"
    )
    types = f"-DREAL={real}", f"-DINDEX={index}"
    parts = [program, text, SHIM.read_text(), *types, *OPTIONS]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(folder or FOLDER or temporary) / f"cuda-{digest}.so"
        if not target.exists():
            _compile(program, types, target)
        library = ctypes.CDLL(str(target))  # stays loaded when its file is gone
    return Kernels(library, names)


def _compile(program, types, target):
    # other processes may compile the same: each into a file of its own, and the last one stays
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [COMPILER, *OPTIONS, *types, "-x", "c++", "-", "-o", name],
            input=program,
            capture_output=True,
            text=True,
            check=True,
        )
        os.replace(name, target)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{COMPILER} refuses the kernels:\n{error.stderr}") from None
    finally:
        Path(name).unlink(missing_ok=True)


class Kernels:
    """The kernels of one library."""

    def __init__(self, library, names):
        library.shim_parameters.restype = ctypes.POINTER(Parameter)
        library.shim_launch.restype = ctypes.c_bool
        self._launch = library.shim_launch
        self._numbers = {name: i for i, name in enumerate(names)}
        self.parameters = {}
        for name, i in self._numbers.items():
            count = ctypes.c_int()
            parameters = library.shim_parameters(i, ctypes.byref(count))
            self.parameters[name] = parameters[: count.value]

    def launch(self, name, grid, block, args, seed=0):
        """Run a kernel. `seed` decides in which order its blocks and threads run."""
        grid, block = _dimensions(grid), _dimensions(block)
        if min(*grid, *block) < 1 or np.prod(block) > MAX_THREADS:
            raise ValueError(f"{name}: no launch with grid {grid} and block {block} is possible")
        parameters = self.parameters[name]
        if len(args) != len(parameters):
            raise TypeError(f"{name} takes {len(parameters)} arguments, found {len(args)}")
        values = []
        for i, (argument, parameter) in enumerate(zip(args, parameters, strict=True)):
            try:
                values.append(_value(argument, parameter))
            except TypeError as error:
                raise TypeError(f"{name}, argument {i}: {error}") from None
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = [(ctypes.c_uint * 3)(*dimensions) for dimensions in (grid, block)]
        done = self._launch(self._numbers[name], *sizes, pointers, ctypes.c_ulonglong(seed))
        if not done:
            raise RuntimeError(f"{name}: a barrier was not reached by all threads of a block")


def _dimensions(size):
    size = size if isinstance(size, tuple) else (size,)
    return (*size, 1, 1)[:3]


def _value(argument, parameter):
    """The bytes that the kernel gets, as an array of one element."""
    if argument is None or (isinstance(argument, np.ndarray) and argument.dtype.names is None):
        kind, value = "p", np.array([0 if argument is None else argument.ctypes.data], np.uintp)
    elif isinstance(argument, np.ndarray):
        if argument.size != 1:
            raise TypeError("structures go one by one")
        kind, value = "s", argument.reshape(1)
    elif isinstance(argument, np.generic):
        kind, value = _kind(argument.dtype), np.array([argument])
    elif type(argument) is int:
        kind, value = "i", np.array([argument], np.int64)
    elif type(argument) is float:
        kind, value = "f", np.array([argument], np.float64)
    else:
        raise TypeError(f"a {type(argument).__name__} cannot be passed")
    wanted = parameter.kind.decode()
    if (kind, value.itemsize) != (wanted, parameter.size):
        raise TypeError(
            f"found {value.itemsize} bytes of kind {kind}, expected {parameter.size} of {wanted}"
        )
    if kind == "p" and argument is not None:
        element = parameter.element_kind.decode()
        if (_kind(argument.dtype), argument.itemsize) != (element, parameter.element_size):
            raise TypeError(f"the array is {argument.dtype}")
        if not argument.flags.writeable and not parameter.element_is_constant:
            raise TypeError("the array is read-only")
    return value


def _kind(dtype):
    return "f" if dtype.kind == "f" else "i"
