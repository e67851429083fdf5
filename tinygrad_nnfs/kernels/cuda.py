"""The ops that networks for images need, on an NVIDIA GPU: the kernels of cuda.cu, and cuBLAS.

Images lie channels last in memory, so that a convolution's products need nothing rearranged.
Every op runs on cupy without these, too: ROCm's GPUs run them all so.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.kernels.cublas import gpu_precision, matmul
from tinygrad_nnfs.ops.activation import leaky_relu
from tinygrad_nnfs.ops.convolution import Geometry, check_precision, conv2d, output_size, pair
from tinygrad_nnfs.ops.dropout import check_dropout, dropout
from tinygrad_nnfs.ops.loss import check_labels, labels_out_of_range, softmax_cross_entropy
from tinygrad_nnfs.ops.pooling import max_pool2d, pooling_geometry

xp = backend.cupy
THREADS = 256  # of a block; kernels that are launched as one block count on them
BLOCKS = 4096  # at most: enough for every GPU, and each thread then takes several elements
LARGE = 2**31  # elements: from here on the kernels' indices need 64 bits
REALS = {"float32": "float", "float64": "double"}

# structs of cuda.cu, passed by value
SIDES = ("height", "width")
WINDOW = np.dtype(
    [(name, np.int32) for name in ("channels", *SIDES)]
    + [(f"{name}_{side}", np.int32) for name in ("out", "kernel") for side in SIDES]
    + [(f"{name}_{way}", np.int32) for name in ("stride", "padding", "dilation") for way in "yx"]
)
AT_ONCE = 32  # tensors in one launch of an optimiser's step
_POINTER, _NUMBER = (np.uint64, AT_ONCE), (np.float64, AT_ONCE)
TENSORS = np.dtype(
    [(name, *_POINTER) for name in ("theta", "gradient", "velocity")]
    + [("size", np.int64, AT_ONCE)]
    + [(name, *_NUMBER) for name in ("lr", "weight_decay", "momentum")]
    + [("nesterov", np.int32, AT_ONCE), ("count", np.int32)],
    align=True,
)
MOMENTS = np.dtype(
    [(name, *_POINTER) for name in ("theta", "gradient", "mean", "square")]
    + [("size", np.int64, AT_ONCE)]
    + [(n, *_NUMBER) for n in ("lr", "beta1", "beta2", "eps", "weight_decay")]
    + [(n, *_NUMBER) for n in ("correction1", "correction2")]
    + [("decoupled", np.int32, AT_ONCE), ("count", np.int32)],
    align=True,
)
WORDS = 64  # in one launch of write_live
VALUES = np.dtype([("word", np.uint64, WORDS)])


@functools.cache
def _kernel(cupy: Any, name: str, real: str, index: str = "unsigned") -> Any:
    """A function of cuda.cu, compiled for these types (cupy keeps the outcome on disk)."""
    return _module(cupy, real, index).get_function(name)


@functools.cache
def _module(cupy: Any, real: str, index: str) -> Any:
    source = Path(__file__).with_name("cuda.cu").read_text()
    types = f"-DREAL={real}", f"-DINDEX={index}"
    return cupy.RawModule(code=source, options=("--std=c++17", *types))


def launch(name: str, size: int, *args: Any, real: Any = "float32", blocks: int = 0) -> None:
    """Run a kernel on `size` elements, or on so many blocks."""
    if size:
        index = "unsigned" if size < LARGE else "size_t"
        kernel = _kernel(backend.load_cupy(), name, REALS[str(real)], index)
        kernel((blocks or min(-(-size // THREADS), BLOCKS),), (THREADS,), args)


def _computes(x: Any, *_: Any, **__: Any) -> bool:
    """On NVIDIA's GPUs, with the dtypes that cuda.cu is compiled for."""
    return x.dtype.name in REALS and x.size > 0 and not xp.cuda.runtime.is_hip


# -- memory order ----------------------------------------------------------------------------------


def _channels_last(images: Any) -> Any:
    """(n, c, h, w) as dense (n, h, w, c): a view where images lie so."""
    return xp.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _channels_first(images: Any) -> Any:
    """The view (n, c, h, w) of (n, h, w, c)."""
    return images.transpose(0, 3, 1, 2)


def _dense(x: Any) -> Any:
    """The elements of x in one stretch of memory; those of images channels last."""
    return _channels_last(x) if x.ndim == 4 else xp.ascontiguousarray(x)


def _shaped(dense: Any) -> Any:
    """What `_dense` was given, again."""
    return _channels_first(dense) if dense.ndim == 4 else dense


# -- ops -------------------------------------------------------------------------------------------


def _window(shape: Sequence[int], kernel, size, stride, padding, dilation=(1, 1)) -> Any:
    """The struct Window for images of `shape` (n, c, h, w)."""
    numbers = (*shape[1:], *size, *kernel, *stride, *padding, *dilation)
    return np.array([numbers], WINDOW)


def _is_one_group(x, weight, bias=None, *, groups=1, **_):
    return _computes(x) and groups == 1 and weight.size > 0


@conv2d.on(xp, when=_is_one_group)
def conv2d_by_cublas(
    _, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, precision="fast"
):
    check_precision(precision)
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    n, o, (oh, ow) = len(x), geometry.outputs, geometry.output_size
    c, h, w = x.shape[1:]
    kh, kw = geometry.kernel
    window = _window(
        x.shape,
        geometry.kernel,
        geometry.output_size,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
    )
    real = x.dtype
    images = _channels_last(x)
    kernels = _channels_last(weight).reshape(o, kh * kw * c)

    def columns():  # (n oh ow, kh kw c)
        made = xp.empty((n * oh * ow, kh * kw * c), real)
        launch("im2col", made.size, images, made, window, n, real=real)
        return made

    def product(a, b):
        with gpu_precision("float32") if precision == "exact" else contextlib.nullcontext():
            return matmul(a, b)

    def rows(dy):  # (n, o, oh, ow) -> (n oh ow, o)
        return _channels_last(dy).reshape(n * oh * ow, o)

    y = product(columns(), kernels.T)
    if bias is not None:
        launch("add_bias", y.size, y, xp.ascontiguousarray(bias), len(y), np.int32(o), real=real)

    def dx(dy):
        spread = product(rows(dy), kernels)  # (n oh ow, kh kw c)
        gradient = xp.empty((n, h, w, c), real)
        launch("col2im", gradient.size, spread, gradient, window, n, real=real)
        return _channels_first(gradient)

    def dweight(dy):
        # the columns are made again rather than kept: they are kh kw times the images
        gradient = product(rows(dy).T, columns()).reshape(o, kh, kw, c)
        return _channels_first(gradient).copy()  # no view: the weight then keeps it as it is

    def dbias(dy):
        return _sum_rows(rows(dy))

    y = _channels_first(y.reshape(n, oh, ow, o))
    return y, dx, dweight, None if bias is None else dbias


def _sum_rows(x: Any) -> Any:
    """The sum over the rows of a dense matrix: those of each chunk first, then those sums."""
    rows, outputs = x.shape
    chunk = max(64, math.isqrt(rows))
    chunks = -(-rows // chunk)
    partial, total = xp.empty((chunks, outputs), x.dtype), xp.empty(outputs, x.dtype)
    kernel, across = (
        _kernel(backend.load_cupy(), "sum_rows", REALS[x.dtype.name]),
        -(-outputs // 32),
    )
    kernel((across, chunks), (32, 8), (x, partial, rows, np.int32(outputs), chunk))
    kernel((across, 1), (32, 8), (partial, total, chunks, np.int32(outputs), chunks))
    return total


@leaky_relu.on(xp, when=_computes)
def leaky_relu_by_cuda(_, x, *, slope=0.01):
    x = _dense(x)
    y = xp.empty_like(x)
    launch("leaky_relu", x.size, x, y, x.size, float(slope), real=x.dtype)
    signed = y if slope >= 0 else x  # positive where x is; with y saved, x can die

    def dx(dy):
        gradient = xp.empty_like(signed)
        args = signed, _dense(dy), gradient, signed.size, float(slope)
        launch("leaky_relu_gradient", signed.size, *args, real=signed.dtype)
        return _shaped(gradient)

    return _shaped(y), dx


def _pools(x, *, kernel_size, **_):
    return _computes(x) and x.ndim == 4 and math.prod(pair("kernel_size", kernel_size, 1)) <= 256


@max_pool2d.on(xp, when=_pools)
def max_pool2d_by_cuda(_, x, *, kernel_size, stride=None, padding=0):
    kernel, stride, padding = pooling_geometry(kernel_size, stride, padding)
    oh, ow = size = output_size(x.shape, kernel, stride, padding, (1, 1))
    window = _window(x.shape, kernel, size, stride, padding)
    images = _channels_last(x)
    n, shape = len(images), images.shape
    y = xp.empty((n, oh, ow, shape[3]), x.dtype)
    winner = xp.empty(y.shape, np.uint8)  # the place in the window of its first maximum
    launch("max_pool", y.size, images, y, winner, window, n, real=x.dtype)

    def dx(dy):
        gradient = xp.empty(shape, dy.dtype)
        args = _channels_last(dy), winner, gradient, window, n
        launch("max_pool_gradient", gradient.size, *args, real=dy.dtype)
        return _channels_first(gradient)

    return _channels_first(y), dx


@dropout.on(xp, when=_computes)
def dropout_by_cuda(_, x, *, p, key):
    check_dropout(p, key)
    least, scale = np.uint32(round(p * 2**16)), 1 / (1 - p) if p < 1 else 0.0
    # while a step is captured the key is an array on the GPU, written anew before each replay
    live = key if backend.is_array(key) else None
    words = (np.uint64(0), np.uint64(0)) if live is not None else map(np.uint64, key)
    settings = least, float(scale), *words, live

    def drop(values):
        values = _dense(values)
        kept = xp.empty_like(values)
        blocks = -(-values.size // 16)  # of random bits; a thread makes one
        launch("dropout", blocks, values, kept, values.size, *settings, real=values.dtype)
        return _shaped(kept)

    return drop(x), drop  # nothing is saved: the mask is drawn again


def _reduces(logits, labels, *, reduction="mean", **_):
    return _computes(logits) and logits.ndim == 2 and reduction in ("mean", "sum")


@softmax_cross_entropy.on(xp, when=_reduces)
def softmax_cross_entropy_by_cuda(_, logits, labels, *, label_smoothing=0.0, reduction="mean"):
    check_labels(logits, labels, label_smoothing)
    n, k = logits.shape
    real, classes = logits.dtype, np.int32(k)
    labels = xp.ascontiguousarray(labels.astype(np.int64, copy=False))
    softmax, loss = xp.empty((n, k), real), xp.empty((), real)
    wrong = backend.report_flag(labels_out_of_range(k))
    inputs = xp.ascontiguousarray(logits), labels
    settings = n, classes, float(label_smoothing), np.int32(reduction == "mean"), wrong
    launch("softmax_cross_entropy", n, *inputs, softmax, loss, *settings, real=real, blocks=1)

    def dlogits(dy):
        gradient = xp.empty((n, k), real)
        settings = n, classes, float(label_smoothing), float(n if reduction == "mean" else 1)
        args = softmax, labels, dy, gradient, *settings
        launch("softmax_cross_entropy_gradient", gradient.size, *args, real=real)
        return gradient

    return loss, dlogits, None


# -- what a training needs besides the ops ---------------------------------------------------------


def gather_batch(
    images: Any,
    labels: Any,
    order: Any,
    first: Any,
    n: int,
    *,
    rows: Any = None,
    columns: Any = None,
    mirrored: Any = None,
) -> tuple[Any, Any, Any]:
    """The n images from place `first` of `order` on: float32 (n, 1, h, w) in [0, 1], labels, order.

    Of images uint8 (count, h, w), labels and order int64 (count), all on the GPU. `first` is a
    number, or uint64 (1) on the GPU. The pixel (p, q) is that at (p + rows, q + columns), 0 outside
    the image; then the images that are `mirrored` are. These belong to the places in the order,
    int64 and bool (count); None: no image is moved, or mirrored.
    """
    h, w = images.shape[1:]
    x, batch_labels, chosen = (
        xp.empty(shape, dtype) for shape, dtype in (((n, 1, h, w), "f4"), (n, "i8"), (n, "i8"))
    )
    begin = (0, first) if backend.is_array(first) else (first, None)
    where = rows, columns, mirrored, *begin
    sizes = n, np.int32(h), np.int32(w)
    launch("gather_batch", x.size, images, labels, order, *where, x, batch_labels, chosen, *sizes)
    return x, batch_labels, chosen


def add_metrics(totals: Any, logits: Any, labels: Any, loss: Any) -> None:
    """Add a step to `totals`, float64 (4): the loss times n, correct images, steps with a finite
    loss before the first that was not, and 1 after such a one."""
    n, k = logits.shape
    args = xp.ascontiguousarray(logits), labels, loss, totals, n, np.int32(k)
    launch("metrics", n, *args, real=logits.dtype, blocks=1)


def write_live(slots: Any, words: np.ndarray) -> None:
    """Put 64-bit words into `slots`, on the GPU, in the order of the stream, without waiting."""
    for i in range(0, len(words), WORDS):
        some = words[i : i + WORDS]
        values = np.zeros(1, VALUES)
        values["word"][0, : len(some)] = some
        launch("write_live", len(some), slots[i : i + WORDS], values, np.int32(len(some)), blocks=1)


def takes_update(data: Any, gradient: Any) -> bool:
    """Whether `momentum_step` and `adam_step` can update this parameter."""
    return (
        backend.device_of(data) == "cuda"
        and data.dtype.name in REALS
        and gradient.dtype == data.dtype
        and data.flags.c_contiguous
        and not xp.cuda.runtime.is_hip
    )


def momentum_step(updates: Sequence[dict[str, Any]], numbers: Any) -> None:
    """SGD's step for all parameters at once.

    An update has fields of the struct Tensors: theta, gradient and velocity (None: no momentum) are
    dense arrays, the others numbers. `numbers` are the learning rates: floats, or float64 on the
    GPU.
    """
    _update("momentum_step", TENSORS, updates, ("lr",), numbers)


def adam_step(updates: Sequence[dict[str, Any]], numbers: Any) -> None:
    """Adam's step for all parameters at once; the fields are those of the struct Moments.

    `numbers` are lr, correction1 and correction2 of each: floats, or float64 on the GPU.
    """
    _update("adam_step", MOMENTS, updates, ("lr", "correction1", "correction2"), numbers)


def _update(
    name: str,
    struct: np.dtype,
    updates: Sequence[dict[str, Any]],
    fields: tuple[str, ...],
    numbers: Any,
) -> None:
    """Launch an optimiser's kernel for each AT_ONCE parameters, which must have one dtype."""
    real, each = REALS[updates[0]["theta"].dtype.name], len(fields)
    for begin in range(0, len(updates), AT_ONCE):
        chosen = updates[begin : begin + AT_ONCE]
        mine = numbers[begin * each : (begin + len(chosen)) * each]
        table, copies = np.zeros(1, struct), []
        for place, update in enumerate(chosen):
            if not backend.is_array(mine):
                update = update | dict(zip(fields, mine[place * each :]))
            for field, value in update.items():
                if backend.is_array(value):
                    copies.append(xp.ascontiguousarray(value))  # lives until the launch
                    value = copies[-1].data.ptr
                if value is not None:
                    table[field][0, place] = value
            table["size"][0, place] = update["theta"].size
        table["count"] = len(chosen)
        blocks = -(-int(table["size"].max()) // THREADS)
        if blocks:
            live = mine if backend.is_array(mine) else None
            kernel = _kernel(backend.load_cupy(), name, real)
            kernel((min(blocks, BLOCKS), len(chosen)), (THREADS,), (table, live))
