"""`capture`: a whole training step as one CUDA graph, replayed without Python in between.

A small network's step is bound by the launches of its kernels. `capture(step)` runs the step a few
times as it is, then once while the GPU records what it is told, and from then on replays that
record. What Python does in the step is not done again, so numbers that change from step to step
(the learning rate, the keys of dropout) are read through `live`.
"""

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tinygrad_nnfs import backend, kernels
from tinygrad_nnfs.tensor import Tensor, make_tensor

Step = TypeVar("Step", bound=Callable[..., Any])
SLOTS = 1024  # numbers that one captured step can read through `live`
WARM_UP = 2  # steps before capture: they load kernels and make what an optimiser remembers

xp = backend.cupy


class _Capturing(threading.local):
    record: "_Record | None" = None  # what this thread is capturing


_capturing = _Capturing()


def live(read: Callable[[], Sequence[float] | Sequence[int]]) -> Any:
    """What `read()` returns: numbers, all float or all int, that are others in every step.

    While a step is captured: an array on the GPU with them, float64 or uint64, which gets what
    `read()` then returns before each replay.
    """
    record = _capturing.record
    return read() if record is None else record.follow(read)


def live_number(read: Callable[[], float], dtype: Any) -> Any:
    """`read()`; while a step is captured, a 0-d array that follows it."""
    if _capturing.record is None:
        return read()
    return live(lambda: [float(read())]).astype(dtype).reshape(())


def capture(step: Step, device: str = "cuda", *, warm_up: int = WARM_UP) -> Step:
    """`step` as a CUDA graph: the same function, faster on a GPU; on "cpu" `step` itself.

        @capture
        def step(images, labels):
            loss = softmax_cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

    N calls do what N calls of `step` would do. For each new combination of shapes and dtypes the
    first `warm_up` calls run as they are; the next one is captured; all further ones replay it.
    Dropout draws new masks, and the learning rate may change in between.

    Tensors that are passed are copied into memory of the graph. Those that are returned, off the
    tape, are in its memory too: the next call overwrites them, so copy what is to be kept. Anything
    else that Python does in `step`, such as counting steps, is done in the first calls alone; what
    else is passed is a constant, and a new value another capture.

    A step cannot be captured if it waits for the GPU: by item(), numpy(), float(), a condition on
    a value, a move between devices. Then the call that would capture raises RuntimeError.
    """
    if device not in backend.DEVICES:
        expected = ", ".join(backend.DEVICES)
        raise ValueError(f"capture: device {device!r} is not known: use one of {expected}")
    if warm_up < 1:
        raise ValueError(f"capture: warm_up must be at least 1, found {warm_up}")
    if device == "cpu":
        return step
    backend.load_cupy()
    records: dict[Any, _Record] = {}

    @functools.wraps(step)
    def captured(*inputs: Any) -> Any:
        if _capturing.record is not None:  # a captured step within another is a part of that
            return step(*inputs)
        kind = tuple(_kind(place, value) for place, value in enumerate(inputs))
        if kind not in records:
            records[kind] = _Record(step, warm_up)
        return records[kind](inputs)

    return captured  # type: ignore[return-value]


def _kind(place: int, value: Any) -> Any:
    """What another capture is needed for if it changes: shape and dtype, or a constant's value."""
    array = value.data if isinstance(value, Tensor) else value
    if not backend.is_array(array):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"capture: input {place} is a {type(value).__name__}: it takes Tensors, arrays, "
                "and constants such as numbers and strings"
            ) from None
        return type(value), value
    if backend.device_of(array) != "cuda":
        raise ValueError(
            f"capture: input {place} is on the CPU: move it to 'cuda' before, or capture for 'cpu'"
        )
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(
            f"capture: input {place} requires a gradient: let the step use it from outside"
        )
    return type(value), array.shape, array.dtype.str


class _Record:
    """A step with inputs of one kind: run as it is, then captured, then replayed."""

    def __init__(self, step: Callable[..., Any], warm_up: int) -> None:
        self.step, self.to_warm_up = step, warm_up
        # Memory that the graph uses must not be given to anybody else between replays, so it comes
        # from a pool of its own. What the first steps make, they leave there for the graph.
        self.pool, self.stream = xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
        self.graph: Any = None
        self.inputs: list[Any] = []
        self.outputs: Any = None
        self.reads: list[Callable[[], Any]] = []
        self.words: list[np.ndarray] = []  # of each read, as 64-bit words
        self.slots: Any = None
        self.products: Any = None  # what the matrix products of the graph need

    def __del__(self) -> None:
        # a pool that is dropped keeps its free blocks from everybody (cupy 14): all go back first
        with contextlib.suppress(Exception):
            self.graph, self.inputs, self.outputs, self.slots = None, [], None, None
            self.pool.free_all_blocks()

    def __call__(self, inputs: Sequence[Any]) -> Any:
        if self.graph is None and self.to_warm_up:
            self.to_warm_up -= 1
            with self.at_work():
                return _off_the_tape(self.step(*inputs))
        if self.graph is None:
            with self.at_work():
                self.capture(inputs)
        else:
            self.words = [_words(read()) for read in self.reads]
        for mine, given in zip(self.inputs, inputs):
            if backend.is_array(_array(mine)) and _array(given) is not _array(mine):
                xp.copyto(_array(mine), _array(given))
        if self.words:
            kernels.cuda.write_live(self.slots, np.concatenate(self.words))
        self.graph.launch(xp.cuda.get_current_stream())
        return self.outputs

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """On this record's own stream and memory, with nothing else at work on either side."""
        xp.cuda.get_current_stream().synchronize()
        with self.stream, xp.cuda.using_allocator(self.pool.malloc):
            yield
        self.stream.synchronize()

    def capture(self, inputs: Sequence[Any]) -> None:
        self.inputs = [_own(value) for value in inputs]
        self.slots = xp.empty(SLOTS, np.uint64)
        collects = gc.isenabled()
        gc.collect()  # arrays that die in cycles must not be freed while the stream records
        gc.disable()
        _capturing.record = self
        try:
            self.stream.begin_capture()
            self.outputs = _off_the_tape(self.step(*self.inputs))
        except BaseException as error:  # Ctrl-C, too, must not leave the stream recording
            with contextlib.suppress(Exception):  # it ends the capture, and says that it failed
                self.stream.end_capture()
            self.reads, self.words = [], []
            if _is_refusal(error):
                reason = " ".join(str(error).split())
                raise RuntimeError(
                    "capture: this step cannot be captured: it waits for the GPU (item(), numpy(), "
                    "float(), a condition on a value, data from the CPU), or does what a graph "
                    f"cannot hold ({reason}); the traceback above says where. Return the tensor and"
                    " read it after the call, or do not capture"
                ) from error
            raise
        finally:
            _capturing.record = None
            if collects:
                gc.enable()
        self.graph = self.stream.end_capture()
        self.products = kernels.cublas.handle_in_use()

    def follow(self, read: Callable[[], Any]) -> Any:
        """The place on the GPU of what `read` returns, from now on."""
        values = read()
        begin = sum(map(len, self.words))
        if begin + len(values) > SLOTS:
            raise RuntimeError(f"capture: a step can follow {SLOTS} numbers, this one has more")
        self.reads.append(read)
        self.words.append(_words(values))
        place = self.slots[begin : begin + len(values)]
        return place.view(np.float64) if isinstance(values[0], float) else place


def _is_refusal(error: BaseException) -> bool:
    """Whether CUDA, or cupy before it asks CUDA, has refused what a graph cannot hold."""
    said = str(error)
    return isinstance(error, NotImplementedError) or (
        isinstance(error, RuntimeError)
        and any(words in said for words in ("StreamCapture", "STREAM_CAPTURE", "is capturing"))
    )


def _words(values: Any) -> np.ndarray:
    """Numbers, all float or all int, as 64-bit words."""
    dtype = np.float64 if isinstance(values[0], float) else np.uint64
    return np.array(values, dtype).view(np.uint64)


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _own(value: Any) -> Any:
    """A copy of an array or a Tensor; a constant as it is."""
    array = _array(value)
    if not backend.is_array(array):
        return value
    mine = array.copy()
    return make_tensor(mine) if isinstance(value, Tensor) else mine


def _off_the_tape(value: Any) -> Any:
    """What a step returned, without the tape behind it."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(_off_the_tape(part) for part in value)
    return value
