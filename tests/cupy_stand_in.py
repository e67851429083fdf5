"""A stand-in for cupy, on numpy: what runs on it should run on a GPU, too.

    cupy = install(monkeypatch)

puts it into sys.modules for one test. It has what this framework uses of cupy 14, is as strict as
cupy where numpy is lenient, and stricter where cupy would go on and be slow or wrong in silence
(numpy's functions refuse its arrays). Names that it does not know are AttributeErrors.

It also plays CUDA's part: streams, memory pools that hand out again what was freed, and the capture
of a graph. While a stream captures, nothing is computed. What would be is recorded, on the very
memory that it was called with, and results hold garbage until the graph is launched. Nothing keeps
what was freed meanwhile from being used again, by the graph or, if it has no pool of its own, by
others: mistakes with a graph's memory show here as they do on a GPU.

Weaker than a GPU: work on any stream is done at once, so that a missing synchronisation does not
show; indices that occur twice in an assignment are taken in order; sums have numpy's rounding.
"""

import contextlib
import ctypes
import functools
import importlib
import math
import operator
import sys
import threading
import time
import types
import warnings
import weakref

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels import cublas

VERSION = "14.2.0"  # of which the rules here are

# -- names -----------------------------------------------------------------------------------------
# A name that is in none of these lists nor defined below does not exist. test_cupy_stand_in.py asks
# the real cupy, where there is one, for each of them.

UFUNCS = frozenset(
    {
        *("abs", "absolute", "add", "arctan", "bitwise_and", "bitwise_not", "bitwise_or"),
        *("bitwise_xor", "ceil", "cos", "cosh", "divide", "equal", "exp", "exp2", "expm1"),
        *("floor", "floor_divide", "fmax", "fmin", "greater", "greater_equal", "hypot", "invert"),
        *("isfinite", "isinf", "isnan", "left_shift", "less", "less_equal", "log", "log10"),
        *("log1p", "log2", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor"),
        *("maximum", "minimum", "mod", "multiply", "negative", "not_equal", "positive", "power"),
        *("reciprocal", "remainder", "right_shift", "rint", "sign", "signbit", "sin", "sinh"),
        *("sqrt", "square", "subtract", "tan", "tanh", "true_divide", "trunc"),
    }
)
METHODS = frozenset(  # functions that are methods as well
    {
        *("all", "any", "argmax", "argmin", "cumsum", "max", "mean", "min", "prod", "ravel"),
        *("repeat", "squeeze", "std", "sum", "swapaxes", "take", "var"),
    }
)
VIEWS = frozenset({"expand_dims", "flip", "moveaxis"})  # functions whose result is a view
COPIES = frozenset({"argsort", "count_nonzero", "roll", "sort", "tile", "tril", "triu"})
NUMPYS_OWN = frozenset(  # which cupy has from numpy
    {
        *("bool_", "e", "float16", "float32", "float64", "floating", "inf", "int16", "int32"),
        *("int64", "int8", "integer", "intp", "nan", "newaxis", "number", "pi", "uint16"),
        *("uint32", "uint64", "uint8", "dtype", "finfo", "iinfo", "issubdtype", "promote_types"),
    }
)

# -- errors ----------------------------------------------------------------------------------------

_ERRORS = {
    1: ("cudaErrorInvalidValue", "invalid argument"),
    401: (
        "cudaErrorIllegalState",
        "the operation cannot be performed in the present state",
    ),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    900: (
        "cudaErrorStreamCaptureUnsupported",
        "operation not permitted when stream is capturing",
    ),
    901: (
        "cudaErrorStreamCaptureInvalidated",
        "operation failed due to a previous error during capture",
    ),
    906: (
        "cudaErrorStreamCaptureImplicit",
        "operation would make the legacy stream depend on a capturing blocking stream",
    ),
    907: (
        "cudaErrorCapturedEvent",
        "operation not permitted on an event last recorded in a capturing stream",
    ),
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, detail=""):
        self.status = status
        super().__init__(": ".join([*_ERRORS[status], *([detail] if detail else [])]))


class CUDADriverError(RuntimeError):
    pass


# -- streams, events, graphs -----------------------------------------------------------------------

_thread = threading.local()  # .streams, those that were entered; .allocators
_capturing = weakref.WeakSet()  # streams, of all threads


class _Capture:
    """What a stream records."""

    def __init__(self, mode):
        self.mode, self.works, self.blocks, self.invalid = mode, [], [], False


class Stream:
    null: "Stream"
    _handles = iter(range(0x5000, 1 << 40, 16))

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if ptds:
            raise NotImplementedError("the stand-in has no per-thread default streams")
        self.ptr = 0 if null else next(Stream._handles)
        self.is_non_blocking, self.priority, self.device_id = non_blocking, priority or 0, 0
        self._capture = None

    def __enter__(self):
        _streams().append(self)
        return self

    def __exit__(self, *_):
        _streams().pop()

    def use(self):
        _streams()[-1] = self
        return self

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    @property
    def done(self):
        self._refuse()
        return True

    def synchronize(self):
        self._refuse()

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        """All work is done in the order in which it was issued anyway."""

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._capture is not None:
            raise CUDARuntimeError(401)
        self._capture = _Capture(runtime.streamCaptureModeRelaxed if mode is None else mode)
        _capturing.add(self)

    def end_capture(self):
        capture, self._capture = self._capture, None
        _capturing.discard(self)
        if capture is None:
            raise CUDARuntimeError(401)
        if capture.invalid:
            raise CUDARuntimeError(901)
        graph = object.__new__(Graph)
        graph._works, graph._blocks = capture.works, capture.blocks
        return graph

    def is_capturing(self):
        return self._capture is not None

    def _implicit(self):
        """The legacy stream waits for all streams but those that are non-blocking."""
        found = [s for s in _capturing if not s.is_non_blocking] if self.ptr == 0 else []
        for stream in found:
            stream._capture.invalid = True
        if found:
            raise CUDARuntimeError(906)

    def _submit(self, work):
        """Do `work` or, while capturing, record it."""
        self._implicit()
        if self._capture is None:
            work()
        elif self._capture.invalid:
            raise CUDARuntimeError(901)
        else:
            self._capture.works.append(work)

    def _refuse(self, detail=""):
        """Raise if this stream captures: what follows cannot be part of a graph."""
        self._implicit()
        if self._capture is not None:
            self._capture.invalid = True
            raise CUDARuntimeError(900, detail)

    def _refuse_copy(self, what):
        """The same for copies: cupy itself refuses these, so that the capture stays valid."""
        self._implicit()
        if self._capture is not None and self._capture.invalid:
            raise RuntimeError(
                "the stream was capturing, but an error has invalidated the capture sequence"
            )
        if self._capture is not None:
            raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")


Stream.null = Stream(null=True)


def _streams():
    if not hasattr(_thread, "streams"):
        _thread.streams = [Stream.null]
    return _thread.streams


def get_current_stream():
    return _streams()[-1]


def _launch(work):
    get_current_stream()._submit(work)


class Graph:
    def __init__(self):
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream "
            "capture"
        )

    def launch(self, stream=None):
        (get_current_stream() if stream is None else stream)._submit(self._replay)

    def _replay(self):
        if any(block.released for block in self._blocks):
            raise CUDARuntimeError(700, "memory of this graph went with its pool")
        for work in self._works:
            work()


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._timed, self._time, self._captured = not disable_timing, None, False

    def record(self, stream=None):
        stream = get_current_stream() if stream is None else stream
        self._captured = stream.is_capturing()
        self._time = time.perf_counter()

    @property
    def done(self):
        self.synchronize()
        return True

    def synchronize(self):
        if self._captured:
            raise CUDARuntimeError(907)


def get_elapsed_time(start_event, end_event):
    """In milliseconds."""
    for event in (start_event, end_event):
        event.synchronize()
        if event._time is None or not event._timed:
            raise CUDARuntimeError(1)
    return (end_event._time - start_event._time) * 1e3


class Device:
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)
        if self.id != 0:
            raise CUDARuntimeError(1, "there is one device")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __int__(self):
        return self.id

    def use(self):
        return self

    @property
    def mem_info(self):
        return 1 << 37, 1 << 37  # free, and all

    def synchronize(self):
        for stream in list(_capturing):
            stream._refuse()


# -- memory ----------------------------------------------------------------------------------------

UNIT = 512  # bytes: pools round sizes up to multiples, and all memory is aligned to it
_blocks = weakref.WeakValueDictionary()  # by address, to tell what a pointer points to


class _Block:
    """Device memory."""

    def __init__(self, size):
        capture = get_current_stream()._capture
        if capture is not None and capture.mode != runtime.streamCaptureModeRelaxed:
            get_current_stream()._refuse("cudaMalloc, in this mode of capture")
        memory = np.empty(size + UNIT, np.uint8)
        start = -memory.ctypes.data % UNIT
        self.bytes = memory[start : start + size]
        self.address = self.bytes.ctypes.data
        self.released = False
        _blocks[self.address] = self


class _Memory:
    """A block in use: the arrays that lie in it hold this, and with the last of them it is free."""

    def __init__(self, block, give_back=None):
        self.block, self.give_back = block, give_back
        self.ptr, self.size = (block.address, block.bytes.size) if block else (0, 0)
        capture = get_current_stream()._capture
        if capture is not None and block is not None:
            capture.blocks.append(block)

    def __del__(self):
        pool = self.give_back and self.give_back[0]()
        if pool is not None:
            pool._put(self.give_back[1], self.block)
        elif self.block is not None:
            self.block.released = True


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, 0

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)


class MemoryPool:
    """Free blocks are kept apart by the stream for which they were allocated, as cupy does it.

    Blocks are not split: one is used again for the same number of UNITs.
    """

    _lost = 0  # bytes of blocks that were free in pools that are gone: cupy never gives them back

    def __init__(self, allocator=None):
        self._free = {}
        self._sizes = {"used": 0, "free": 0}

    def malloc(self, size):
        if size == 0:
            return MemoryPointer(_Memory(None), 0)
        size = -(-size // UNIT) * UNIT
        key = get_current_stream().ptr, size
        free = self._free.setdefault(key, [])
        if free:
            block = free.pop()
            self._sizes["free"] -= size
        else:
            block = _Block(size)
        self._sizes["used"] += size
        return MemoryPointer(_Memory(block, (weakref.ref(self), key)), 0)

    def _put(self, key, block):
        self._free[key].append(block)
        self._sizes["used"] -= key[1]
        self._sizes["free"] += key[1]

    def free_all_blocks(self, stream=None):
        for key, free in self._free.items():
            if stream is None or key[0] == stream.ptr:
                for block in free:
                    block.released = True
                    self._sizes["free"] -= key[1]
                free.clear()

    def __del__(self):
        MemoryPool._lost += self.free_bytes()

    def used_bytes(self):
        return self._sizes["used"]

    def free_bytes(self):
        return self._sizes["free"]

    def total_bytes(self):
        return self.used_bytes() + self.free_bytes()

    def n_free_blocks(self):
        return sum(len(free) for free in self._free.values())


def _malloc(size):
    """Without a pool."""
    return MemoryPointer(_Memory(_Block(-(-size // UNIT) * UNIT) if size else None), 0)


_default_pool = MemoryPool()


def get_default_memory_pool():
    return _default_pool


def get_allocator():
    return getattr(_thread, "allocator", None) or _default_pool.malloc


def set_allocator(allocator=None):
    _thread.allocator = _malloc if allocator is None else allocator


@contextlib.contextmanager
def using_allocator(allocator=None):
    before = getattr(_thread, "allocator", None)
    set_allocator(allocator)
    try:
        yield
    finally:
        _thread.allocator = before


def alloc(size):
    return get_allocator()(size)


def _device_bytes(address, size):
    """The block that `size` bytes at `address` lie in, or None."""
    for start, block in list(_blocks.items()):
        if start <= address and address + size <= start + block.bytes.size:
            return None if block.released else block
    return None


# -- arrays ----------------------------------------------------------------------------------------

_SCALARS = (bool, int, float, complex, np.generic)


class _Flags:
    """No `writeable`: cupy has none."""

    def __init__(self, c_contiguous, f_contiguous, owndata):
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    @property
    def fnc(self):
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self):
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name):
        return {
            "C_CONTIGUOUS": self.c_contiguous,
            "F_CONTIGUOUS": self.f_contiguous,
            "OWNDATA": self.owndata,
        }[name]


class ndarray:  # noqa: N801 - its name in messages and pictures is cupy's
    """`_host` is the same memory as a numpy array."""

    __module__ = "cupy"
    __slots__ = ("__weakref__", "_host", "base", "data")
    __hash__ = None  # as cupy's: == compares elements
    __array_ufunc__ = None  # numpy's ufuncs refuse it, and leave operators with scalars to it

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        dtype, shape = np.dtype(dtype), tuple(shape) if np.iterable(shape) else (shape,)
        if dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {dtype}")
        if strides is None:
            strides = np.empty(shape, dtype, order or "C").strides
        self.base = None
        self.data = alloc(math.prod(shape) * dtype.itemsize) if memptr is None else memptr
        memory = self.data.mem.block.bytes if self.data.ptr else np.empty(0, np.uint8)
        offset = self.data.ptr - self.data.mem.ptr
        self._host = np.ndarray(shape, dtype, memory, offset, strides)
        if memptr is None:
            _spoil(self._host)

    def __array_function__(self, function, *_):
        raise TypeError(f"the stand-in lets no function of numpy have its arrays: {function}")

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    # -- what it is --

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    device = property(lambda self: Device(0))

    @property
    def flags(self):
        flags = self._host.flags
        return _Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "version": 3,
            "stream": get_current_stream().ptr or 1,  # 0 is not allowed
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __len__(self):
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # -- to the host --

    def get(self, stream=None, order="C", out=None, blocking=True):
        (get_current_stream() if stream is None else stream)._refuse_copy("D2H transfers")
        if out is None:
            return np.array(self._host, order=order)
        if not isinstance(out, np.ndarray) or out.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be obtained as {out!r}")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {out.shape}, actual: {self.shape}")
        out[...] = self._host
        return out

    def set(self, arr, stream=None):
        (get_current_stream() if stream is None else stream)._refuse_copy("H2D transfers")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = arr

    def item(self):
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __bool__(self):
        if self.size == 1:
            return bool(self.get())
        if self.size == 0:
            warnings.warn(
                "The truth value of an empty array is ambiguous.", DeprecationWarning, stacklevel=2
            )
            return False
        raise ValueError(
            "The truth value of an array with more than one element is ambiguous. Use a.any() or "
            "a.all()"
        )

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __complex__(self):
        return complex(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    # -- views --

    def _viewed(self, host):
        """A view of this array's memory, from numpy's view of it."""
        view = object.__new__(ndarray)
        view._host, view.base = host, self if self.base is None else self.base
        offset = host.__array_interface__["data"][0] - self._host.__array_interface__["data"][0]
        view.data = self.data + (offset if host.size else 0)
        return view

    def view(self, dtype=None, type=None):
        return self._viewed(self._host.view() if dtype is None else self._host.view(dtype))

    @property
    def T(self):
        return self if self.ndim < 2 else self._viewed(self._host.T)

    @property
    def mT(self):
        return self.swapaxes(-1, -2)

    def transpose(self, *axes):
        return self._viewed(self._host.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return self._viewed(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis=None):
        host = self._host.squeeze(axis)
        return self if host.shape == self.shape else self._viewed(host)

    def reshape(self, *shape, order="C", copy=None):
        host = self._host.reshape(*shape, order=order)
        if np.may_share_memory(host, self._host) or not host.size:
            return self._viewed(host)._copied_if(copy)
        if copy is False:
            raise ValueError("Unable to avoid creating a copy while reshaping.")
        result = self.copy(order)
        result._host = result._host.reshape(host.shape, order=order)
        return result

    def _copied_if(self, copy):
        return self.copy() if copy else self

    def ravel(self, order="C"):
        if order == "K":
            raise NotImplementedError("the stand-in does not ravel in this order")
        flat = self.reshape(-1, order=order)
        return flat if flat.flags.c_contiguous else flat.copy()

    def flatten(self, order="C"):
        result = self.copy(order)
        result._host = result._host.reshape(-1, order=order)
        return result

    # -- copies --

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        dtype = np.dtype(dtype)
        like = np.empty_like(self._host, dtype, order or "K")
        if not copy and dtype == self.dtype and (order == "K" or like.strides == self.strides):
            return self
        result, host = _like(like), self._host
        target = result._host
        _launch(lambda: _quietly(lambda: np.copyto(target, host, casting="unsafe")))
        return result

    def copy(self, order="C"):
        return self.astype(self.dtype, order=order)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def fill(self, value):
        target = self._host
        if isinstance(value, ndarray):
            if value.shape != ():
                raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
            host = value._host
            _launch(lambda: _quietly(lambda: np.copyto(target, host, casting="unsafe")))
            return
        value = np.array(value, self.dtype)
        if value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _launch(lambda: np.copyto(target, value))

    def take(self, indices, axis=None, out=None):
        if out is not None:
            raise NotImplementedError("the stand-in's take has no out")
        flat = self.ravel() if axis is None else self
        axis = (axis or 0) % max(flat.ndim, 1)
        if isinstance(indices, list | tuple | np.ndarray):
            indices = array(np.asarray(indices, int))
        return flat[(slice(None),) * axis + (indices,)]

    def repeat(self, repeats, axis=None):
        if not isinstance(repeats, int):
            raise NotImplementedError("the stand-in repeats all elements alike")
        host = self._host
        return _kernel(lambda: np.repeat(host, repeats, axis))

    def nonzero(self):
        get_current_stream()._refuse_copy("D2H transfers")  # of how many there are
        return tuple(array(part) for part in self._host.nonzero())

    def clip(self, min=None, max=None, out=None):
        low, high = (None if limit is None else _operand(limit) for limit in (min, max))
        host = self._host
        return _kernel(lambda: np.clip(host, low, high), out)

    def round(self, decimals=0, out=None):
        host = self._host
        return _kernel(lambda: np.round(host, decimals), out)

    # -- indexing --

    def __getitem__(self, index):
        index = _Index(self, index)
        if index.is_basic:
            return self._viewed(self._host[index.parts])
        index.refuse_masks()
        host = self._host
        return _kernel(lambda: host[index()])

    def __setitem__(self, index, value):
        index = _Index(self, index)
        if index.is_basic:
            target = self._viewed(self._host[index.parts])
            if not isinstance(value, ndarray):
                target.fill(value)  # refuses arrays of the host
                return
            target, value = target._host, _fitted(value._host, target.shape)
            _launch(lambda: _quietly(lambda: np.copyto(target, value, casting="unsafe")))
            return
        index.refuse_masks()
        host, value = self._host, index.values(value)
        _launch(lambda: _quietly(lambda: operator.setitem(host, index(), value)))

    # -- reductions --

    def _reduced(self, name, out=None, **options):
        function, host = getattr(np, name), self._host
        if options.get("axis") is not None and isinstance(options["axis"], list):
            options["axis"] = tuple(options["axis"])
        return _kernel(lambda: function(host, **options), out, "unsafe", exact=True)

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduced("sum", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduced("prod", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduced("mean", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def var(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return self._reduced("var", out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def std(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return self._reduced("std", out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        return self._reduced("max", out, axis=axis, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return self._reduced("min", out, axis=axis, keepdims=keepdims)

    def all(self, axis=None, out=None, keepdims=False):
        return self._reduced("all", out, axis=axis, keepdims=keepdims)

    def any(self, axis=None, out=None, keepdims=False):
        return self._reduced("any", out, axis=axis, keepdims=keepdims)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        found = self._reduced("argmax", out, axis=axis, keepdims=keepdims)
        return found if dtype is None else found.astype(dtype)

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False):
        found = self._reduced("argmin", out, axis=axis, keepdims=keepdims)
        return found if dtype is None else found.astype(dtype)

    def cumsum(self, axis=None, dtype=None, out=None):
        return self._reduced("cumsum", out, axis=axis, dtype=dtype)

    def dot(self, b, out=None):
        return dot(self, b, out)

    # -- operators; most of them are put here below --

    def __matmul__(self, other):
        return matmul(self, other) if isinstance(other, ndarray) else _refused(other)

    def __pow__(self, other):
        # cupy's own special cases
        short = {2: "square", 0.5: "sqrt", -1.0: "reciprocal"}
        if type(other) in (int, float) and other in short and (type(other), other) != (int, -1):
            dtype = None
            if self.dtype.kind not in ("ifc" if type(other) is int else "fc"):
                dtype = np.result_type(self.dtype, other)
            return _ufunc(short[other])(self, dtype=dtype)
        return _binary(_ufunc("power"), self, other)

    def __rpow__(self, other):
        return _binary(_ufunc("power"), other, self)

    def __eq__(self, other):
        if other is None or type(other).__eq__ is object.__eq__:
            return full(self.shape, False)
        return _compared(_ufunc("equal"), self, other)

    def __ne__(self, other):
        if other is None or type(other).__eq__ is object.__eq__:
            return full(self.shape, True)
        return _compared(_ufunc("not_equal"), self, other)

    def __neg__(self):
        return _ufunc("negative")(self)

    def __pos__(self):
        return _ufunc("positive")(self)

    def __abs__(self):
        return _ufunc("absolute")(self)

    def __invert__(self):
        return _ufunc("invert")(self)


def _spoil(host):
    """What memory holds that nobody has written to."""
    if host.dtype.kind in "fc":
        host.fill(np.nan)
    elif host.dtype.kind == "b":
        host.fill(True)
    else:
        host.fill(int.from_bytes(b"\x5b" * host.itemsize, "little"))


def _like(host):
    """A new array with shape, dtype and memory order of a numpy array without gaps."""
    return ndarray(host.shape, host.dtype, strides=host.strides)


def _quietly(function):
    """A GPU does not warn."""
    with np.errstate(all="ignore"):
        return function()


def _operand(x):
    """What numpy computes with in the place of x."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, _SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _refused(other):
    if isinstance(other, np.ndarray):
        raise TypeError(f"Unsupported type {type(other)}")
    return NotImplemented


def _kernel(function, out=None, casting="same_kind", exact=False):
    """Let the GPU compute `function()`, numpy arrays of numpy arrays, into a new array or `out`.

    While capturing, the call here is for shape and dtype alone: it computes with garbage.
    """
    found = np.asarray(_quietly(function))
    if out is None:
        out = ndarray(found.shape, found.dtype)  # whatever the inputs' memory order
    elif not isinstance(out, ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    elif out.shape != (found.shape if exact else np.broadcast_shapes(found.shape, out.shape)):
        raise ValueError("Out shape is mismatched")
    elif not np.can_cast(found.dtype, out.dtype, casting):
        raise TypeError(
            f"output (typecode {found.dtype.char!r}) could not be coerced to provided output "
            f"parameter (typecode {out.dtype.char!r}) according to the casting rule {casting!r}"
        )
    target = out._host

    def write(result):
        _quietly(lambda: np.copyto(target, result, casting="unsafe"))

    if get_current_stream().is_capturing():
        _launch(lambda: write(_quietly(function)))
    else:
        _launch(lambda: write(found))
    return out


def _fitted(value, shape):
    """A numpy array broadcast to `shape`; leading axes of size 1 may be too many."""
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = value[0]
    return np.broadcast_to(value, shape)


class _Index:
    """An index, made ready for numpy. Called, it gives indices of the present values.

    Integers in arrays count modulo the size: cupy wraps them around where numpy raises.
    """

    def __init__(self, array, index):
        self.host = array._host
        parts = [_index_part(part) for part in (index if isinstance(index, tuple) else (index,))]
        if not any(part is Ellipsis for part in parts):
            parts.append(Ellipsis)  # numpy, too, gives a 0-d array then, no scalar
        self.parts = tuple(parts)
        arrays = [part for part in parts if isinstance(part, ndarray)]
        self.is_basic = not arrays
        self.has_mask = any(part.dtype.kind == "b" for part in arrays)
        axes = [self._axes(part) for part in parts]
        left, axis = array.ndim - sum(axes), 0
        self._taken = []
        for part, count in zip(parts, axes, strict=True):
            if not isinstance(part, ndarray):
                self._taken.append(lambda part=part: part)
            elif part.dtype.kind == "b":
                self._taken.append(lambda host=part._host: host)
            else:
                if axis >= array.ndim:
                    raise IndexError("too many indices for array")
                size = max(array.shape[axis], 1)  # of an empty axis numpy says what is wrong
                self._taken.append(lambda host=part._host, size=size: host % size)
            axis += left if part is Ellipsis else count

    @staticmethod
    def _axes(part):
        """How many axes of the array a part stands for."""
        if part is None or part is Ellipsis:
            return 0
        return part.ndim if isinstance(part, ndarray) and part.dtype.kind == "b" else 1

    def __call__(self):
        return tuple(take() for take in self._taken)

    def refuse_masks(self):
        if self.has_mask:
            get_current_stream()._refuse_copy("D2H transfers")  # of how much it selects

    def values(self, value):
        """What is to be put there, as numpy's array."""
        if not isinstance(value, ndarray):
            value = array(value, self.host.dtype)  # from the host, if it is an array
        return _fitted(value.astype(self.host.dtype, copy=False)._host, self.host[self()].shape)


def _index_part(part):
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, list | tuple | np.ndarray | bool | np.bool_):
        empty = isinstance(part, list | tuple) and np.size(part) == 0
        part = array(np.asarray(part, np.int32 if empty else None))
    if isinstance(part, ndarray):
        if part.dtype.kind not in "biu":
            raise IndexError(
                f"arrays used as indices must be of integer or boolean type. (actual: {part.dtype})"
            )
        return part
    if isinstance(part, int | np.integer):
        return int(part)
    raise IndexError(
        "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or "
        "boolean arrays are valid indices"
    )


# -- ufuncs and operators --------------------------------------------------------------------------


class ufunc:  # noqa: N801
    # what the atomic operations of a GPU are there for
    _AT = {
        "add": "int32 int64 float16 float32 float64 uint32 uint64",
        "subtract": "int32 uint32",
        "maximum": "int32 int64 float32 float64 uint32 uint64",
        "minimum": "int32 int64 float32 float64 uint32 uint64",
    }

    def __init__(self, name):
        self.__name__, self._numpy = name, getattr(np, name)

    def __call__(self, *args, out=None, dtype=None, casting="same_kind"):
        count = self._numpy.nin
        if len(args) == count + 1 and out is None:
            *args, out = args
        if len(args) != count:
            raise TypeError(f"Wrong number of arguments for {self.__name__!r}")
        if isinstance(out, tuple):
            (out,) = out
        operands = [_operand(x) for x in args]
        return _kernel(lambda: self._numpy(*operands, dtype=dtype), out, casting)

    def at(self, a, indices, b=None):
        if self.__name__ not in self._AT:
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        if not isinstance(a, ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        index = _Index(a, indices)
        if index.is_basic:
            view = a[index.parts]
            self(view, b, out=view)
            return
        index.refuse_masks()
        if a.dtype.name not in self._AT[self.__name__].split():
            raise TypeError(
                f"cupy.{self.__name__}.at only supports {self._AT[self.__name__]} as data type"
            )
        host, value = a._host, index.values(b)
        _launch(lambda: _quietly(lambda: self._numpy.at(host, index(), value)))


@functools.cache
def _ufunc(name):
    return ufunc(name)


def _binary(function, a, b):
    """An operator: arrays of the host are refused, other classes may know what to do."""
    for x in (a, b):
        if not isinstance(x, (ndarray, *_SCALARS)):
            return _refused(x)
    return function(a, b)


def _compared(function, a, b):
    found = _binary(function, a, b)
    if found is NotImplemented and not hasattr(b, "__array_ufunc__"):
        raise TypeError(f"Unsupported type {type(b)}")  # Python would compare by identity
    return found


_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}


_COMPARISONS = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}


def _add_operators():
    for symbol, name in _OPERATORS.items():
        function = _ufunc(name)
        setattr(ndarray, f"__{symbol}__", lambda a, b, f=function: _binary(f, a, b))
        setattr(ndarray, f"__r{symbol}__", lambda a, b, f=function: _binary(f, b, a))
    for symbol, name in {**_OPERATORS, "pow": "power"}.items():
        function = _ufunc(name)
        setattr(ndarray, f"__i{symbol}__", lambda a, b, f=function: f(a, b, out=a))
    for symbol, name in _COMPARISONS.items():
        function = _ufunc(name)
        setattr(ndarray, f"__{symbol}__", lambda a, b, f=function: _compared(f, a, b))


_add_operators()

# -- functions -------------------------------------------------------------------------------------


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if subok or ndmin:
        raise NotImplementedError("the stand-in's array has neither subok nor ndmin")
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, order=order, copy=bool(copy))
    if _holds_arrays(obj):
        stacked = stack([array(x) for x in obj])
        return stacked if dtype is None else stacked.astype(dtype)
    host = np.asarray(obj, dtype)
    host = host.astype(host.dtype.newbyteorder("="), copy=False)
    by_columns = order == "F" or (order in ("K", "A", None) and host.flags.fnc)
    result = ndarray(host.shape, host.dtype, order="F" if by_columns else "C")
    if host.ndim:
        get_current_stream()._refuse_copy("H2D transfers")
        result._host[...] = host
    else:
        result.fill(host)  # a number goes along with a kernel
    return result


def _holds_arrays(obj):
    return isinstance(obj, list | tuple) and any(
        isinstance(x, ndarray) or _holds_arrays(x) for x in obj
    )


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy, "K" if order is None else order)


def ascontiguousarray(a, dtype=None):
    return asarray(a, dtype, "C")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def copy(a, order="K"):
    return _checked(a).copy(order)


def _checked(a):
    if not isinstance(a, ndarray):
        raise TypeError(f"expected cupy.ndarray, found {type(a)}")
    return a


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, fill_value, dtype=None, order="C"):
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    result = ndarray(shape, dtype, order=order)
    result.fill(fill_value)
    return result


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype, order)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    if subok is not None:
        raise TypeError("subok is not supported yet")
    return _like(np.empty_like(_checked(prototype)._host, dtype, order, shape=shape))


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    result = empty_like(a, dtype, order, subok, shape)
    result.fill(fill_value)
    return result


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 1, dtype, order, subok, shape)


def arange(start, stop=None, step=1, dtype=None):
    numbers = [x for x in (start, stop, step) if x is not None]
    if not all(isinstance(x, _SCALARS) for x in numbers):
        raise TypeError("arange takes numbers")
    found = np.arange(*((start,) if stop is None else (start, stop, step)), dtype=dtype)
    return _kernel(lambda: found)


def eye(N, M=None, k=0, dtype=float, order="C"):  # noqa: N803
    return _kernel(lambda: np.eye(N, M, k, dtype))


def copyto(dst, src, casting="same_kind", where=None):
    if where is not None:
        raise NotImplementedError("the stand-in's copyto has no where")
    source = _operand(src)
    if isinstance(src, ndarray) and not np.can_cast(src.dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast from {src.dtype} to {dst.dtype} by the rule {casting!r}")
    _kernel(lambda: np.asarray(source), _checked(dst), "unsafe")


def where(condition, x=None, y=None):
    if x is None and y is None:
        return nonzero(condition)
    if x is None or y is None:
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    chosen = _operand(condition.astype("?", copy=False))  # no bool of Python's has this
    a, b = _operand(x), _operand(y)
    return _kernel(lambda: np.where(chosen, a, b))


def nonzero(a):
    return _checked(a).nonzero()


def clip(a, a_min, a_max, out=None):
    return _checked(a).clip(a_min, a_max, out)


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    arrays = list(tup)
    if not arrays:
        raise ValueError("Cannot concatenate from empty tuple")
    if not all(isinstance(a, ndarray) for a in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    if axis is None:
        arrays, axis = [a.ravel() for a in arrays], 0
    if len(arrays) > 8:
        # cupy makes one kernel of it, and copies a table of their addresses from the host
        get_current_stream()._refuse_copy("H2D transfers")
    hosts = [a._host for a in arrays]
    return _kernel(
        lambda: np.concatenate(hosts, axis, dtype=dtype, casting=casting), out, casting, exact=True
    )


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    arrays = [_checked(a) for a in tup]
    if len({a.shape for a in arrays}) != 1:
        raise ValueError("all input arrays must have the same shape")
    views = [a._viewed(np.expand_dims(a._host, axis)) for a in arrays]
    return concatenate(views, axis, out, dtype=dtype, casting=casting)


def pad(array, pad_width, mode="constant", **kwargs):
    if mode != "constant" or not isinstance(kwargs.get("constant_values", 0), _SCALARS):
        raise NotImplementedError("the stand-in pads with one number")
    host = _checked(array)._host
    return _kernel(lambda: np.pad(host, pad_width, mode, **kwargs))


def broadcast_to(array, shape):
    host = np.broadcast_to(_checked(array)._host, shape)
    # numpy's is read-only, cupy's is not
    writeable = np.lib.stride_tricks.as_strided(array._host, host.shape, host.strides)
    return array._viewed(writeable)


def reshape(a, newshape, order="C", *, copy=None):
    return _checked(a).reshape(newshape, order=order, copy=copy)


def transpose(a, axes=None):
    return _checked(a).transpose(axes)


def matmul(a, b, out=None):
    return _product(np.matmul, a, b, out)


def dot(a, b, out=None):
    return _product(np.dot, a, b, out)


def _product(function, a, b, out):
    a, b = _checked(a)._host, _checked(b)._host
    stream = get_current_stream()
    if stream.is_capturing():
        stream._capture.invalid = True
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    return _kernel(lambda: function(a, b), out, exact=True)


def shape(a):
    return a.shape if isinstance(a, ndarray) else np.shape(a)


def ndim(a):
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


def size(a, axis=None):
    return _checked(a).size if axis is None else a.shape[axis]


def result_type(*arrays_and_dtypes):
    return np.result_type(*(x.dtype if isinstance(x, ndarray) else x for x in arrays_and_dtypes))


def may_share_memory(a, b, max_work=None):
    if max_work is not None:
        raise NotImplementedError("Only supported for `max_work` is `None`")
    return np.may_share_memory(_checked(a)._host, _checked(b)._host)


FUNCTIONS = (
    *(arange, array, asarray, ascontiguousarray, asnumpy, broadcast_to, clip, concatenate, copy),
    *(copyto, dot, empty, empty_like, eye, full, full_like, matmul, may_share_memory, ndim),
    *(nonzero, ones, ones_like, pad, reshape, result_type, shape, size, stack, transpose, where),
    *(zeros, zeros_like, get_default_memory_pool),
)


def _function(name):
    """The function of this name that the lists above promise, or None."""
    if name in UFUNCS:
        return _ufunc(name)
    if name in NUMPYS_OWN:
        return getattr(np, name)
    if name in METHODS:
        return lambda a, *args, **options: getattr(_checked(a), name)(*args, **options)
    numpys = getattr(np, name, None)
    if name in VIEWS:
        return lambda a, *args, **options: a._viewed(numpys(_checked(a)._host, *args, **options))
    if name in COPIES:

        def function(a, *args, **options):
            host = _checked(a)._host
            args = [_operand(x) if isinstance(x, ndarray | np.ndarray) else x for x in args]
            return _kernel(lambda: numpys(host, *args, **options))

        return function
    return None


# -- kernels of one's own --------------------------------------------------------------------------


@functools.cache
def _compiled(load, *types):
    """`load` is part of the key, for a test may have a fake of it."""
    return load(*types)


class RawModule:
    """Its text is run by cuda_on_cpu, which finds it by itself: `code` is not looked at."""

    def __init__(self, code=None, *, path=None, options=(), backend="nvrtc", **others):
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        unknown = others.keys() - {
            *("translate_cucomplex", "enable_cooperative_groups", "name_expressions", "jitify")
        }
        if unknown:
            raise TypeError(f"RawModule: unknown arguments {sorted(unknown)}")
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("RawModule: code must be a str, options a tuple")
        self.code, self.options, self.backend = code, options, backend

    def compile(self, log_stream=None):
        self._kernels()

    def _kernels(self):
        defined = dict(option[2:].split("=") for option in self.options if option[:2] == "-D")
        if defined.keys() != {"REAL", "INDEX"}:
            raise ValueError(f"expected -DREAL=... and -DINDEX=..., found {self.options}")
        load = importlib.import_module("cuda_on_cpu").load
        return _compiled(load, defined["REAL"], defined["INDEX"])

    def get_function(self, name):
        return RawKernel(self._kernels(), name)


class RawKernel:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, kernels, name):
        self._kernels, self.name = kernels, name

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"{self.name}: grid and block must be tuples")
        # cupy makes 1 of what is 0
        grid, block = (tuple(max(1, n) for n in (*size, 1, 1)[:3]) for size in (grid, block))
        if (
            np.prod(block) > 1024
            or block[2] > 64
            or max(grid[1:]) > 65535
            or grid[0] >= 1 << 31
            or shared_mem > self.max_dynamic_shared_size_bytes
        ):
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        if shared_mem:
            raise NotImplementedError("the stand-in has no dynamic shared memory")
        values = [_kernel_argument(x) for x in args]
        _launch(lambda: self._kernels.launch(self.name, grid, block, values))


def _kernel_argument(x):
    """As cuda_on_cpu takes it. Values are those of now, memory is read when the kernel runs."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray) and x.dtype.names and x.size == 1:
        return x.copy()
    if x is None or isinstance(x, np.generic) or type(x) in (int, float):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


# -- cuBLAS ----------------------------------------------------------------------------------------

NOT_INITIALIZED, INVALID_VALUE, EXECUTION_FAILED, INTERNAL_ERROR, NOT_SUPPORTED = 1, 7, 13, 14, 15
_ELEMENTS = {0: np.float32, 1: np.float64}  # CUDA_R_32F, CUDA_R_64F
# what each type of computation computes with, and how many bits it keeps of float32's fractions
_COMPUTE = {68: (0, 23), 69: (0, 23), 75: (0, 7), 77: (0, 10), 70: (1, 52), 71: (1, 52)}
_TF32_MODE, _PEDANTIC_MODE = 3, 2


class _Handle:
    def __init__(self):
        self.stream, self.workspace, self.mode = 0, None, 0


class _Function:
    """A function of a library, to ctypes' rules."""

    def __init__(self, function):
        self._function, self.argtypes, self.restype = function, None, ctypes.c_int
        self.__name__ = function.__name__

    def __call__(self, *args):
        if self.argtypes is None:
            for x in args:
                if isinstance(x, int) and not -(1 << 31) <= x < 1 << 32:
                    raise OverflowError(
                        f"{self.__name__}: without argtypes {x:#x} would be cut to 32 bits"
                    )
        else:
            if len(args) != len(self.argtypes):
                raise TypeError(f"{self.__name__} takes {len(self.argtypes)} arguments")
            for i, (kind, x) in enumerate(zip(self.argtypes, args, strict=True)):
                try:
                    kind.from_param(x)
                except (TypeError, ctypes.ArgumentError) as error:
                    raise ctypes.ArgumentError(f"argument {i + 1}: {error}") from None
        return self._function(*args)


class FakeCublas:
    """cuBLAS by its C functions, for what reaches it through ctypes. Each returns a status.

    Pointers to matrices must point into the stand-in's memory, as they must into a GPU's; else the
    status is EXECUTION_FAILED, where a GPU would find an illegal access, at best.
    """

    def __init__(self):
        self._handles = {}
        self.calls = []  # (function, type of computation) of all products, for tests
        for name in dir(type(self)):
            if name.startswith("cublas"):
                setattr(self, name, _Function(getattr(self, name)))

    def cublasCreate_v2(self, handle):
        value = 0x7E000 + 8 * len(self._handles)
        self._handles[value] = _Handle()
        ctypes.c_void_p.from_address(_address(handle)).value = value
        return 0

    def cublasDestroy_v2(self, handle):
        return 0 if self._handles.pop(_address(handle), None) else NOT_INITIALIZED

    def cublasSetStream_v2(self, handle, stream):
        known = self._handles.get(_address(handle))
        if known is None:
            return NOT_INITIALIZED
        known.stream, known.workspace = _address(stream), None
        return 0

    def cublasSetWorkspace_v2(self, handle, workspace, size):
        known = self._handles.get(_address(handle))
        address, size = _address(workspace), _integer(size)
        if known is None:
            return NOT_INITIALIZED
        if address % 256 or size < 0 or (size and _device_bytes(address, size) is None):
            return INVALID_VALUE
        known.workspace = address, size
        return 0

    def cublasSetMathMode(self, handle, mode):
        known = self._handles.get(_address(handle))
        if known is None:
            return NOT_INITIALIZED
        known.mode = _integer(mode)
        return 0

    def cublasGemmEx(
        self, handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype,
        ldc, compute, algo,
    ):  # fmt: skip
        return self._product(
            "cublasGemmEx", handle, (transa, transb), (m, n, k), (alpha, beta),
            ((a, atype, lda, 0), (b, btype, ldb, 0), (c, ctype, ldc, 0)), 1, compute,
        )  # fmt: skip

    def cublasGemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, a, atype, lda, stridea, b, btype, ldb,
        strideb, beta, c, ctype, ldc, stridec, batch, compute, algo,
    ):  # fmt: skip
        return self._product(
            "cublasGemmStridedBatchedEx", handle, (transa, transb), (m, n, k), (alpha, beta),
            ((a, atype, lda, stridea), (b, btype, ldb, strideb), (c, ctype, ldc, stridec)),
            batch, compute,
        )  # fmt: skip

    def _product(self, name, handle, transposed, sizes, factors, matrices, batch, compute):
        known = self._handles.get(_address(handle))
        if known is None:
            return NOT_INITIALIZED
        transposed, sizes = [_integer(t) for t in transposed], [_integer(s) for s in sizes]
        batch, compute = _integer(batch), _integer(compute)
        (m, n, k), (alpha, beta) = sizes, [_address(f) for f in factors]
        if min(m, n, k, batch) < 0 or not set(transposed) <= {0, 1, 2} or not (alpha and beta):
            return INVALID_VALUE
        if compute not in _COMPUTE:
            return NOT_SUPPORTED
        element, bits = _COMPUTE[compute]
        if compute == 68 and known.mode == _TF32_MODE:
            bits = 10
        dtype = np.dtype(_ELEMENTS[element])
        # rows and columns as they are stored, by columns
        stored = [(k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n), (m, n)]
        places = []
        for (rows, columns), (pointer, kind, ld, stride) in zip(stored, matrices, strict=True):
            if _integer(kind) != element:
                return NOT_SUPPORTED
            if _integer(ld) < max(1, rows):
                return INVALID_VALUE
            places.append(
                _Place(_address(pointer), (batch, rows, columns), _integer(ld), _integer(stride))
            )
        stream = get_current_stream()
        if known.stream != stream.ptr:
            return INTERNAL_ERROR  # it would run elsewhere
        if stream.is_capturing() and known.workspace is None:
            return NOT_SUPPORTED  # it would allocate one, because SetStream forgets the last
        if not (m and n and batch):
            return 0
        if not all(place.is_valid(dtype) for place in places[0 if k else 2 :]):
            return EXECUTION_FAILED
        if not places[2].is_apart():
            return INVALID_VALUE  # a race on a GPU
        # the factors are read now, as from any memory of the host
        number = ctypes.c_float if element == 0 else ctypes.c_double
        alpha, beta = (dtype.type(number.from_address(f).value) for f in (alpha, beta))
        self.calls.append((name, compute))

        def work():
            if not all(place.is_valid(dtype) for place in places[0 if k else 2 :]):
                raise CUDARuntimeError(700, name)
            target = places[2].array(dtype)
            result = np.zeros_like(target)
            if k:
                a, b = (_rounded(place.array(dtype), bits) for place in places[:2])
                a, b = (x.swapaxes(1, 2) if t else x for x, t in zip((a, b), transposed))
                result = _quietly(lambda: alpha * np.matmul(a, b))
            if beta:  # what is there need not be a number otherwise
                result = _quietly(lambda: result + beta * target)
            target[...] = result

        _launch(work)
        return 0


class _Place:
    """Matrices of one operand in memory, by columns."""

    def __init__(self, address, shape, ld, stride):
        self.address, self.shape, self.ld, self.stride = address, shape, ld, stride

    def _extent(self):
        """From which to which element, the last one excluded."""
        batch, rows, columns = self.shape
        far = (batch - 1) * self.stride
        return min(far, 0), max(far, 0) + (columns - 1) * self.ld + rows

    def is_valid(self, dtype):
        first, end = (n * dtype.itemsize for n in self._extent())
        aligned = self.address % dtype.itemsize == 0
        return aligned and _device_bytes(self.address + first, end - first) is not None

    def is_apart(self):
        """Each element has a place of its own."""
        batch, rows, columns = self.shape
        if batch == 1 or abs(self.stride) >= (columns - 1) * self.ld + rows:
            return True
        offsets = np.arange(batch) * self.stride
        offsets = np.add.outer(np.add.outer(offsets, np.arange(columns) * self.ld), np.arange(rows))
        return np.unique(offsets).size == offsets.size

    def array(self, dtype):
        first, end = (n * dtype.itemsize for n in self._extent())
        memory = (ctypes.c_char * (end - first)).from_address(self.address + first)
        strides = (self.stride * dtype.itemsize, dtype.itemsize, self.ld * dtype.itemsize)
        return np.ndarray(self.shape, dtype, memory, -first, strides)


def _rounded(x, bits):
    """Numbers with so many bits in their fraction, to the nearest, halves to even."""
    if bits in (23, 52):
        return x
    drop = 23 - bits
    whole = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    whole += (1 << (drop - 1)) - 1 + (whole >> drop & 1)
    rounded = (whole >> drop << drop).astype(np.uint32).view(np.float32).reshape(x.shape)
    return np.where(np.isfinite(x), rounded, x)


def _integer(x):
    return int(getattr(x, "value", x))


def _address(x):
    """What a pointer points to, in all the ways in which ctypes writes one."""
    if hasattr(x, "_obj"):  # byref
        return ctypes.addressof(x._obj)
    if isinstance(x, ctypes._Pointer):
        return ctypes.addressof(x.contents) if x else 0
    if isinstance(x, ctypes.Array):
        return ctypes.addressof(x)
    return 0 if x is None else int(getattr(x, "value", x) or 0)


# -- the module ------------------------------------------------------------------------------------


def _module(name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents)
    return module


runtime = _module(
    "cupy.cuda.runtime",
    CUDARuntimeError=CUDARuntimeError,
    is_hip=False,
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    getDeviceProperties=lambda device: {"name": b"stand-in", "major": 9, "minor": 0},
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
    deviceSynchronize=lambda: Device().synchronize(),
    memGetInfo=lambda: Device().mem_info,
)

CUDA = {
    **{
        x.__name__: x
        for x in (
            *(Device, Event, Graph, MemoryPointer, MemoryPool, Stream, alloc, get_allocator),
            *(get_current_stream, get_elapsed_time, set_allocator, using_allocator),
        )
    },
    "is_available": lambda: True,
    "runtime": runtime,
}


def install(monkeypatch):
    """Let `import cupy` find the stand-in, for as long as `monkeypatch` lives. Returns it."""
    global _default_pool
    _default_pool = MemoryPool()
    vars(_thread).clear()
    _capturing.clear()

    cuda = _module("cupy.cuda", **CUDA)
    cupy = _module(
        "cupy",
        __version__=VERSION,
        ndarray=ndarray,
        ufunc=ufunc,
        RawModule=RawModule,
        cuda=cuda,
        is_available=lambda: True,
        **{function.__name__: function for function in FUNCTIONS},
    )

    def missing(name):
        found = _function(name)
        if found is None:
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        setattr(cupy, name, found)  # the same object every time
        return found

    cupy.__getattr__ = missing
    for module in (cupy, cuda, runtime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    _forget(monkeypatch)
    return cupy


def _forget(monkeypatch):
    """Let the framework look for cupy anew, now, and when the test is over go on where it was."""
    monkeypatch.setattr(backend, "load_cupy", functools.cache(backend.load_cupy.__wrapped__))
    monkeypatch.setattr(backend, "_reports", backend._Reports())
    monkeypatch.setattr(cublas, "_here", threading.local())
    library = FakeCublas()
    monkeypatch.setattr(cublas, "load_cublas", lambda: library)
