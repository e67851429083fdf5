"""One 3x3 convolution, forward and backward, by loops, by im2col, by what came after it."""

import argparse
import importlib.util
import itertools
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import Column, Report, Row, fail, progress
from benchmarks.timing import at_least, interleave, quartiles, warm_up
from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.kernels.direct import conv2d_direct
from tinygrad_nnfs.kernels.im2col import conv2d_in_pieces
from tinygrad_nnfs.kernels.shared_columns import conv2d_shared_columns
from tinygrad_nnfs.kernels.winograd import conv2d_winograd
from tinygrad_nnfs.kernels.winograd_products import conv2d_winograd_products
from tinygrad_nnfs.ops import conv2d, conv2d_naive

Arrays = tuple[np.ndarray, ...]


class Case(NamedTuple):
    """n square images of c channels and `size` pixels a side, to o channels, without padding."""

    n: int
    c: int
    o: int
    size: int

    @property
    def outputs(self) -> int:
        """How many output positions an image has."""
        return (self.size - 2) ** 2

    @property
    def flops(self) -> int:
        """Of the forward by the definition; the backward takes twice as many."""
        return 2 * 9 * self.n * self.c * self.o * self.outputs

    def __str__(self) -> str:
        return ",".join(map(str, self))


CASES = [
    *(Case(1, 16, 16, size) for size in (8, 14, 28, 56)),
    *(Case(1, channels, channels, 14) for channels in (1, 4, 64, 128)),
    *(Case(n, 16, 16, 14) for n in (8, 64)),
    *(Case(64, 1, 32, 28), Case(64, 32, 64, 26), Case(64, 64, 128, 12)),  # the CNN's own
]


class Prepared(NamedTuple):
    """One method on one case. `gradients` are those by images, weight and bias."""

    forward: Callable[[], np.ndarray]
    backward: Callable[[], list[np.ndarray]]
    peak_memory: Callable[[], float | None]


# -- the methods -----------------------------------------------------------------------------------


def scipy_loops(xp: Any, x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    """What one wrote before im2col: SciPy's correlation of one channel with one kernel at a time.

    In the form of an op: (n, c, h, w), (o, c, 3, 3), (o) -> (n, o, h - 2, w - 2), and its rules.
    """
    from scipy.signal import convolve2d, correlate2d

    (n, c, h, w), o = x.shape, len(weight)

    def triples() -> Any:
        return itertools.product(range(n), range(o), range(c))

    y = np.tile(bias[:, None, None], (n, 1, h - 2, w - 2))
    for i, j, k in triples():
        y[i, j] += correlate2d(x[i, k], weight[j, k], mode="valid")

    def dx(dy: Any) -> Any:
        gradient = np.zeros_like(x)
        for i, j, k in triples():
            gradient[i, k] += convolve2d(dy[i, j], weight[j, k])
        return gradient

    def dweight(dy: Any) -> Any:
        gradient = np.zeros_like(weight)
        for i, j, k in triples():
            gradient[j, k] += correlate2d(x[i, k], dy[i, j], mode="valid")
        return gradient

    def dbias(dy: Any) -> Any:
        return dy.sum(axis=(0, 2, 3))

    return y, dx, dweight, dbias


def in_numpy(function: Callable[..., Any], channels_last: bool, arrays: Arrays) -> Prepared:
    """A method in the form of an op, on images that lie in memory as it likes them."""

    def laid_out(images: np.ndarray) -> np.ndarray:
        if not channels_last:
            return images
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    images, weight, bias, dy = arrays
    x = laid_out(images)
    rules = function(np, x, weight, bias)[1:]
    gradients = [laid_out(dy), laid_out(dy.copy())]

    def forward() -> np.ndarray:
        return function(np, x, weight, bias)[0]

    def backward() -> list[np.ndarray]:
        # in turns, for what the rules share is remembered for one array
        gradients.reverse()
        return [rule(gradients[0]) for rule in rules]

    def peak_memory() -> float:
        # scratch memory that calls share would not be seen: each call is to allocate its own
        threads._scratch = threading.local()
        memory._blocks.clear()
        tracemalloc.start()
        try:
            y, *rules = function(np, x, weight, bias)
            results = [y, *(rule(gradients[0]) for rule in rules)]
            assert len(results) == 4  # all alive until here, as in a training step
            return tracemalloc.get_traced_memory()[1] / 1e6
        finally:
            tracemalloc.stop()

    return Prepared(forward, backward, peak_memory)


def in_torch(channels_last: bool, arrays: Arrays) -> Prepared:
    import torch
    from torch.nn.functional import conv2d as torch_conv2d

    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, weights, biases, dys = map(torch.from_numpy, arrays)
    x, weight = (t.to(memory_format=layout).requires_grad_() for t in (images, weights))
    bias, dy = biases.requires_grad_(), dys.to(memory_format=layout)
    taped = torch_conv2d(x, weight, bias)

    def forward() -> np.ndarray:
        return torch_conv2d(x, weight, bias).detach().numpy()

    def backward() -> list[np.ndarray]:
        gradients = torch.autograd.grad(taped, (x, weight, bias), dy, retain_graph=True)
        return [gradient.numpy() for gradient in gradients]

    return Prepared(forward, backward, lambda: None)


METHODS: dict[str, Callable[[Arrays], Prepared]] = {
    "naive loops": partial(in_numpy, conv2d_naive.reference, False),
    "SciPy loops": partial(in_numpy, scipy_loops, False),
    "im2col": partial(in_numpy, conv2d.reference, False),
    "im2col in pieces": partial(in_numpy, conv2d_in_pieces, False),
    "shared columns": partial(in_numpy, conv2d_shared_columns, True),
    "direct": partial(in_numpy, conv2d_direct, True),
    "Winograd by BLAS": partial(in_numpy, conv2d_winograd_products, True),
    "Winograd": partial(in_numpy, conv2d_winograd, True),
    "torch": partial(in_torch, False),
    "torch-channels-last": partial(in_torch, True),
}


def why_not(method: str, case: Case, arrays: Arrays) -> str | None:
    """Why a method is skipped on a case, or None."""
    if method == "naive loops" and _seconds_naive(case) > TOO_SLOW:
        return "too slow"
    if method == "SciPy loops":
        if importlib.util.find_spec("scipy") is None:
            return "SciPy is not installed"
        if _seconds_scipy(case) > TOO_SLOW:
            return "too slow"
    if method in CONDITIONAL:
        kernel, needs, compiled = CONDITIONAL[method]
        if compiled and importlib.util.find_spec("numba") is None:
            return "numba is not installed"
        applies = next(when for when, variant in conv2d.variants[np] if variant is kernel)
        if not applies(*arrays[:3]):
            return needs
    if method.startswith("torch") and importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    return None


CONDITIONAL = {  # on what, and does it need numba
    "direct": (conv2d_direct, "more than 3 channels, or no multiple of 16 outputs", True),
    "Winograd by BLAS": (conv2d_winograd_products, "less than 32 channels, or few images", False),
    "Winograd": (conv2d_winograd, "no multiples of 16 channels", True),
}
TOO_SLOW = 0.15  # seconds, forward and backward


def _seconds_naive(case: Case) -> float:
    """Roughly: some small numpy calls for every output."""
    return case.n * case.o * case.outputs * 12e-6


def _seconds_scipy(case: Case) -> float:
    """Roughly: three correlations for every image and pair of channels."""
    return case.n * case.o * case.c * (30e-6 + case.outputs * 27e-9)


# -- measuring -------------------------------------------------------------------------------------


def case(text: str) -> Case:
    """An argparse type."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} is not n,c,o,size, as in 64,32,64,26")
    found = Case(*map(int, numbers))
    if min(found) < 1 or found.size < 3:
        raise argparse.ArgumentTypeError(f"{text}: n, c and o must be >= 1, size >= 3")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case",
        type=case,
        action="append",
        dest="cases",
        metavar="n,c,o,size",
        help="n images of c channels and size x size pixels to o channels; may be given again "
        f"(default: {len(CASES)} cases, the CNN's among them)",
    )
    parser.add_argument(
        "--rounds", type=at_least(2), default=5, metavar="N", help="turns of each (default: 5)"
    )
    parser.add_argument(
        "--calls", type=at_least(1), default=3, metavar="N", help="calls in a turn (default: 3)"
    )


def run(options: argparse.Namespace) -> Report:
    cases = list(dict.fromkeys(options.cases or CASES))
    rows: list[Row] = []
    for case in cases:
        progress(f"case {case}")
        try:
            rows += measure(case, options)
        except MemoryError:
            fail(f"case {case} does not fit into memory")
    columns = [
        Column("case", "case"),
        Column("method", "method"),
        Column("forward_ms", "forward ms", ".3f"),
        Column("backward_ms", "backward ms", ".3f"),
        Column("forward_gflops", "GFLOP/s", ".1f"),
        Column("backward_gflops", "GFLOP/s", ".1f"),
        Column("peak_memory_mb", "peak MB", ".2f"),
        Column("output_error", "error of y", ".1e"),
        Column("gradient_error", "of gradients", ".1e"),
        Column("skipped", ""),
    ]
    notes = [
        "case: n, c, o, size: n images of c channels and size x size pixels to o channels",
        "backward: the gradients by images, weight and bias together; medians",
        "GFLOP/s: forward and backward, counted as the definition's operations",
        "peak MB: the most that one forward and backward allocate, results included",
        "error: the largest, relative to the largest value, against im2col in float64",
        "images lie channels last in memory for shared columns, direct and Winograd",
    ]
    title = (
        "a 3x3 convolution, float32, default threads\n"
        f"{options.rounds} interleaved rounds, {options.calls} calls in each"
    )
    return Report(title, columns, rows, notes, partial(draw, rows))


def measure(case: Case, options: argparse.Namespace) -> list[Row]:
    """One row for each method."""
    arrays = random_arrays(case)
    y, *rules = conv2d.reference(np, *(a.astype(np.float64) for a in arrays[:3]))
    exact = [y, *(rule(arrays[3].astype(np.float64)) for rule in rules)]

    skipped = {method: why_not(method, case, arrays) for method in METHODS}
    prepared = {m: prepare(arrays) for m, prepare in METHODS.items() if not skipped[m]}
    calls = {
        (method, name): getattr(prepared[method], name)
        for method in prepared
        for name in ("forward", "backward")
    }
    times = interleave(calls, options.rounds, options.calls, warm_up(options.calls))

    rows: list[Row] = []
    for method in METHODS:
        row: Row = {"case": str(case), **case._asdict(), "method": method, "skipped": None}
        rows.append(row)
        if skipped[method]:
            row["skipped"] = f"skipped: {skipped[method]}"
            continue
        forward, backward = (quartiles(times[method, name]) for name in ("forward", "backward"))
        this = prepared[method]
        errors = [_error(a, b) for a, b in zip([this.forward(), *this.backward()], exact)]
        row |= {
            "forward_ms": 1e3 * forward[1],
            "forward_quartiles_ms": [1e3 * forward[0], 1e3 * forward[2]],
            "backward_ms": 1e3 * backward[1],
            "backward_quartiles_ms": [1e3 * backward[0], 1e3 * backward[2]],
            "forward_gflops": case.flops / forward[1] / 1e9,
            "backward_gflops": 2 * case.flops / backward[1] / 1e9,
            "peak_memory_mb": this.peak_memory(),
            "output_error": errors[0],
            "gradient_error": max(errors[1:]),
        }
    return rows


def random_arrays(case: Case) -> Arrays:
    """Images (n, c, size, size), weight (o, c, 3, 3), bias (o) and dy, the gradient of the output.

    dy is (n, o, size - 2, size - 2); all are float32.
    """
    n, c, o, size = case
    rng = np.random.default_rng(0)
    shapes = (n, c, size, size), (o, c, 3, 3), (o,), (n, o, size - 2, size - 2)
    return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(abs(found - exact).max() / abs(exact).max())


# -- the plot --------------------------------------------------------------------------------------


def draw(rows: list[Row], figure: Any) -> None:
    """Time and memory of each method as multiples of im2col's, over the size of the case."""
    measured = [row for row in rows if not row["skipped"]]
    im2col = {row["case"]: row for row in measured if row["method"] == "im2col"}
    time_axes, memory_axes = figure.subplots(1, 2)
    for method, marker in zip(METHODS, "os_xPDpv^*", strict=True):
        those = [row for row in measured if row["method"] == method and method != "im2col"]
        those.sort(key=_multiplications)
        if not those:
            continue
        sizes = [_multiplications(row) for row in those]
        ratios = [_time(row) / _time(im2col[row["case"]]) for row in those]
        drawn = time_axes.plot(sizes, ratios, marker, label=method)
        if those[0]["peak_memory_mb"] is not None:
            memories = [r["peak_memory_mb"] / im2col[r["case"]]["peak_memory_mb"] for r in those]
            memory_axes.plot(sizes, memories, marker, color=drawn[0].get_color())
    for axes, what in (time_axes, "time"), (memory_axes, "peak memory"):
        axes.axhline(1, color="black", linewidth=1, label="im2col" if what == "time" else None)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("multiplications of the definition's forward")
        axes.set_ylabel(f"{what} of forward and backward / im2col's")
        axes.grid(alpha=0.3)
    time_axes.set_title("Time: below 1 is faster than im2col")
    memory_axes.set_title("Memory: below 1 is less than im2col")
    figure.legend(loc="outside lower center", ncols=4)


def _multiplications(row: Row) -> int:
    return Case(row["n"], row["c"], row["o"], row["size"]).flops // 2


def _time(row: Row) -> float:
    return row["forward_ms"] + row["backward_ms"]
