"""A GPU: its limits, the kernels of the CNN's training step, and training steps against PyTorch."""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks import in_tinygrad_nnfs
from benchmarks.contenders import Contender, Step
from benchmarks.random_data import LR, images, labels
from benchmarks.report import TIMES, Column, Report, Row, Table, bars, fail, progress
from benchmarks.timing import at_least, in_ms, interleave, median_ratio, warm_up
from tinygrad_nnfs import Tensor, backend, gpu_precision, optim
from tinygrad_nnfs.kernels import cublas, cuda
from tinygrad_nnfs.kernels.cublas import PRECISIONS
from tinygrad_nnfs.ops import softmax_cross_entropy
from tinygrad_nnfs.registry import captured_memory, input_names, memory_of, observed_by

xp = backend.cupy
MOMENTUM = 0.9

OURS, EAGER = "tinygrad_nnfs-captured", "tinygrad_nnfs"
CONTENDERS = {
    EAGER: Contender("tinygrad_nnfs"),
    OURS: Contender("tinygrad_nnfs", {"captured": True}),
    "torch": Contender("torch"),
    "torch-channels-last": Contender("torch", {"channels_last": True}),
    "torch-graph": Contender("torch", {"graphed": True}),
    "torch-graph-channels-last": Contender("torch", {"graphed": True, "channels_last": True}),
    "torch-compile": Contender("torch", {"mode": "reduce-overhead"}, compiles=True),
    "torch-compile-graph": Contender("torch", {"mode": "default", "graphed": True}, compiles=True),
}
PEERS = [name for name in CONTENDERS if name not in (OURS, EAGER)]
LEGEND = [
    "steps: forward, backward and momentum step; all data stays on the GPU; a timed span is many",
    "steps and one synchronisation. ratio: tinygrad_nnfs-captured's time over this one's, the",
    "median over the rounds of the ratio of their medians in a round; below 1, it is faster",
    "tinygrad_nnfs: eager; -captured: the whole step as one CUDA graph",
    "torch: eager, NCHW; all of PyTorch's with cudnn.benchmark and SGD(fused=True)",
    "torch-graph: PyTorch's eager step, the optimiser's included, as one CUDA graph",
    'torch-compile: torch.compile(mode="reduce-overhead") of network and loss, both directions',
    "torch-compile-graph: torch.compile's kernels, and the whole step as one CUDA graph, which is",
    "PyTorch's best setting on paper; both are channels_last for the CNN",
]
SPAN = 0.015  # seconds of a timed span of steps of ours, roughly


# -- options ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    integer = {"type": at_least(1), "metavar": "N"}
    seconds = {**integer, "metavar": "SECONDS"}
    parser.add_argument(
        "--precision",
        choices=["tf32", "float32", "bf16"],
        default="tf32",
        help="of matrix products and convolutions, PyTorch's too (default: tf32)",
    )
    parser.add_argument(
        "--models", nargs="+", choices=["cnn", "mlp"], default=["cnn", "mlp"], metavar="MODEL",
        help="whose steps are timed, of cnn and mlp (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", **integer, nargs="+", default=[64, 1024],
        help="of the steps (default: 64 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--kernel-batch-size", **integer, default=64,
        help="of the step whose kernels are timed one by one (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="*", choices=PEERS, default=PEERS, metavar="NAME",
        help=f"the peers: {', '.join(PEERS)} (default: all that are installed)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", **{**integer, "type": at_least(2)}, default=7,
        help="turns of each contender, timings of each kernel (default: 7)",
    )  # fmt: skip
    parser.add_argument(
        "--calls", **integer, default=2, help="timed spans of steps in a turn (default: 2)"
    )
    parser.add_argument(
        "--steps", **integer, help=f"in a span (default: what ours does in {1e3 * SPAN:g} ms)"
    )
    parser.add_argument(
        "--repetitions", **integer, default=20, help="of a kernel in its graph (default: 20)"
    )
    parser.add_argument(
        "--megabytes", **integer, default=1024, help="of the large copy (default: 1024)"
    )
    parser.add_argument(
        "--size", **integer, default=8192, help="of the large matrix product (default: 8192)"
    )
    parser.add_argument(
        "--time-limit", **seconds, default=210,
        help="after which torch.compile is not begun any more (default: 210)",
    )  # fmt: skip


# -- the benchmark ---------------------------------------------------------------------------------


@dataclass
class Ceilings:
    """What the GPU reaches, in bytes and floating-point operations a second; None: not measured."""

    bytes: float | None = None
    flops: float | None = None


def run(options: argparse.Namespace) -> Report:
    try:
        backend.load_cupy()
    except RuntimeError as error:
        fail(str(error))
    started = time.perf_counter()
    assert options.precision in PRECISIONS
    ceilings, remarks = Ceilings(), Remarks()
    ceiling_rows: list[Row] = []
    kernel_rows: list[Row] = []
    step_rows: list[Row] = []
    # before anything else loads CUDA's libraries: it needs those that it came with
    peers = usable_peers(options, remarks)
    with gpu_precision(options.precision):
        with remarks.of("the ceilings"):
            measure_ceilings(options, ceilings, ceiling_rows)
        with remarks.of("the kernels"):
            measure_kernels(options, ceilings, kernel_rows, remarks)
        if peers:
            with remarks.of("PyTorch's product"):
                ceiling_rows.append(product_row("PyTorch", options, torchs_product(options)))
        for model in dict.fromkeys(options.models):
            for size in dict.fromkeys(options.batch_size):
                with remarks.of(f"steps of the {model}, batch {size}"):
                    step_rows += measure_steps(model, size, peers, options, started, remarks)

    facts = gpu_facts()
    gpu = facts["gpu"]
    notes = [
        *kernel_notes(options, kernel_rows, step_rows),
        *LEGEND,
        *remarks.lines,
        f"{gpu['name']}, driver for CUDA {gpu['driver']}, runtime {gpu['runtime']}, "
        f"cupy {gpu['cupy']}; {time.perf_counter() - started:.0f} s in all",
    ]
    title = (
        f"training steps, momentum {MOMENTUM}, products in {options.precision}\n"
        f"{options.rounds} interleaved rounds, {options.calls} spans in each"
    )
    before = [
        Table(f"ceilings, products in {options.precision}", CEILING_COLUMNS, ceiling_rows),
        Table(
            f"calls of the CNN's training step, batch {options.kernel_batch_size}, "
            f"products in {options.precision}",
            KERNEL_COLUMNS,
            kernel_rows,
        ),
    ]
    return Report(title, STEP_COLUMNS, step_rows, notes, partial(draw, step_rows), before, facts)


class Remarks:
    """What went wrong: a line for the notes, and the benchmark goes on."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
            progress(line)

    def failed(self, what: str, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        self.add(f"{what}: left out, it failed: {reason}")

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Whatever fails inside is left out."""
        try:
            yield
        except Exception as error:
            self.failed(what, error)

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        progress(part)
        with self.failing(part):
            yield


def gpu_facts() -> Row:
    runtime = xp.cuda.runtime

    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    return {
        "gpu": {
            "name": runtime.getDeviceProperties(runtime.getDevice())["name"].decode(),
            "driver": version(runtime.driverGetVersion()),
            "runtime": version(runtime.runtimeGetVersion()),
            "cupy": backend.load_cupy().__version__,
        }
    }


def synchronize() -> None:
    """Wait for everything on the GPU, PyTorch's work included."""
    xp.cuda.Device().synchronize()


# -- time on the GPU -------------------------------------------------------------------------------


class Stopwatch:
    """Times of calls by CUDA events, on a stream and in memory of its own.

    A call is recorded as a graph of some repetitions: launches from Python take longer than small
    kernels do. What is in a graph follows one another as closely as in a captured step.
    """

    def __init__(self, rounds: int, repetitions: int = 1, span: float = 2e-3) -> None:
        self.rounds, self.repetitions, self.span = rounds, repetitions, span
        self.stream, self.pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()

    def seconds(self, call: Callable[[], object]) -> float:
        """The median time of one call."""
        with self.stream, xp.cuda.using_allocator(self.pool.malloc):
            call()  # kernels are loaded, and memory is there, before anything is recorded
            self.stream.synchronize()
            if self.repetitions > 1:
                graph = self.recorded(call)
                launch = partial(graph.launch, self.stream)
            else:
                launch = call
            self.once(launch, 1)
            launches = min(max(round(self.span / self.once(launch, 1)), 1), 50)
            times = [self.once(launch, launches) for _ in range(self.rounds)]
        self.pool.free_all_blocks()  # for the next call, which may need other sizes
        return statistics.median(times) / launches / self.repetitions

    def recorded(self, call: Callable[[], object]) -> Any:
        self.stream.begin_capture()
        try:
            for _ in range(self.repetitions):
                call()
        except BaseException:
            with contextlib.suppress(Exception):  # it ends the capture, and says that it failed
                self.stream.end_capture()
            raise
        return self.stream.end_capture()

    def once(self, launch: Callable[[], object], launches: int) -> float:
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record(self.stream)
        for _ in range(launches):
            launch()
        end.record(self.stream)
        end.synchronize()
        return max(xp.cuda.get_elapsed_time(start, end) / 1e3, 1e-9)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Nothing on the GPU is freed by chance while something is recorded."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# -- ceilings --------------------------------------------------------------------------------------

CEILING_COLUMNS = [
    Column("what", "ceiling"),
    Column("median_ms", "ms", ".3f"),
    Column("gb_per_s", "GB/s", ".0f"),
    Column("tflop_per_s", "TFLOP/s", ".1f"),
]


def measure_ceilings(options: argparse.Namespace, ceilings: Ceilings, rows: list[Row]) -> None:
    watch = Stopwatch(options.rounds, span=0.05)
    source = xp.ones(options.megabytes * 10**6 // 4, np.float32)
    target = xp.empty_like(source)
    synchronize()  # the stopwatch's stream does not wait for others
    moved = 2 * source.nbytes
    ways = {
        "copy by cudaMemcpyAsync": partial(xp.copyto, target, source),
        "copy by a kernel, cupy.negative": partial(xp.negative, source, out=target),
    }
    for what, call in ways.items():
        seconds = watch.seconds(call)
        rate = moved / seconds
        ceilings.bytes = max(ceilings.bytes or 0, rate)
        what = f"{what}, {options.megabytes} MB"
        rows.append({"what": what, "median_ms": 1e3 * seconds, "gb_per_s": rate / 1e9})
    del source, target, ways

    random, size = np.random.default_rng(0), options.size
    a, b = (xp.asarray(random.random((size, size), np.float32) - 0.5) for _ in range(2))
    y = xp.empty((size, size), np.float32)
    synchronize()
    seconds = watch.seconds(lambda: xp.matmul(a, b, out=y))
    row = product_row("backend.cupy.matmul", options, 2 * size**3 / seconds / 1e12)
    ceilings.flops = 1e12 * row["tflop_per_s"]
    rows.append(row)


def product_row(by: str, options: argparse.Namespace, tflops: float) -> Row:
    size = options.size
    return {
        "what": f"product by {by}, {size} x {size}, {options.precision}",
        "median_ms": 2 * size**3 / tflops / 1e9,
        "tflop_per_s": tflops,
    }


def torchs_product(options: argparse.Namespace) -> float:
    tflops: float = importlib.import_module("benchmarks.in_torch").product_tflops(options.size)
    return tflops


# -- the calls of a step ---------------------------------------------------------------------------

KERNEL_COLUMNS = [
    Column("call", "call"),
    Column("microseconds", "us", ".2f"),
    Column("megabytes", "MB", ".2f"),
    Column("gb_per_s", "GB/s", ".0f"),
    Column("copy_percent", "% of copy", ".0f"),
    Column("gflop_per_s", "GFLOP/s", ".0f"),
    Column("product_percent", "% of product", ".0f"),
]
WRITTEN_IN_PLACE = {"add_bias": 0}  # kernels that read what they write: which of the arguments


@dataclass
class Call:
    """Something that a step does on the GPU, to be done again for its time."""

    name: str
    again: Callable[[], object] | None = None  # None: nothing is done, its result is a view
    bytes: int = 0  # of inputs and outputs, each once
    flops: int = 0
    launches: list["Call"] = field(default_factory=list)  # kernels of ours and products within


def on_gpu(value: Any) -> bool:
    return backend.is_array(value) and backend.device_of(value) == "cuda"


def bytes_of(*arrays: Any) -> int:
    """Of arrays on the GPU; a broadcast one has no more than its memory."""
    return sum(min(a.nbytes, memory_of(a).nbytes) for a in arrays if on_gpu(a))


def same_memory(a: Any, b: Any) -> bool:
    return on_gpu(a) and on_gpu(b) and memory_of(a) is memory_of(b)


class StepCalls:
    """An observer (see registry.Observer) that keeps the calls of one step."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()

    def begin(self, name: str) -> Call:
        self.calls.append(Call(name))
        return self.calls[-1]

    def call(self, op: Any, variant: str, run: Any, xp: Any, /, *arrays: Any, **params: Any) -> Any:
        self.counts[op.__name__] += 1
        name = f"{op.__name__} {self.counts[op.__name__]}"
        this = self.begin(name)
        output, *rules = run(xp, *arrays, **params)
        if not any(same_memory(output, x) for x in arrays):
            this.again = partial(run, xp, *arrays, **params)
        this.bytes = bytes_of(*arrays, output)
        this.flops = op.flops(output, *arrays, **params) if op.flops else 0
        names = input_names(op, len(arrays))
        wrapped = [
            rule
            and partial(
                self.apply,
                rule,
                f"{name}, gradient by {names[i]}",
                this.flops if getattr(arrays[i], "ndim", 0) > 1 else 0,
            )
            for i, rule in enumerate(rules)
        ]
        return (output, *wrapped)

    def apply(self, rule: Callable[[Any], Any], name: str, flops: int, dy: Any) -> Any:
        this = self.begin(name)
        dx = rule(dy)
        if not same_memory(dx, dy):
            this.again = lambda: rule(dy.view())  # a view: what rules share is known by identity
        saved = [x for x in captured_memory([rule]) if not same_memory(x, dy)]
        this.bytes, this.flops = bytes_of(dy, dx, *saved), flops
        if len(this.launches) == 1:  # of what is saved, it may need the shape alone
            this.bytes = this.launches[0].bytes
        return dx

    def recorded(self, node: Any) -> None:
        pass

    def launched(self, call: Call) -> None:
        self.calls[-1].launches.append(call)


@contextlib.contextmanager
def seeing_launches(see: Callable[[Call], None]) -> Iterator[None]:
    """Show every kernel of cuda.cu and every product of cuBLAS that is launched inside."""
    kernel_of, multiply = cuda._kernel, cublas._multiply

    def seen_kernel(cupy: Any, name: str, *types: str) -> Any:
        kernel = kernel_of(cupy, name, *types)

        def launch(grid: Any, block: Any, args: Any, **others: Any) -> Any:
            moved = bytes_of(*args)
            if name in WRITTEN_IN_PLACE:
                moved += args[WRITTEN_IN_PLACE[name]].nbytes
            see(Call(name, partial(kernel, grid, block, args, **others), moved))
            return kernel(grid, block, args, **others)

        return launch

    def seen_multiply(a: Any, b: Any, y: Any) -> None:
        count, n, outputs = y.shape
        sizes = f"{n} x {a.shape[2]} x {outputs}" + (f", {count} times" if count > 1 else "")
        flops = 2 * count * n * a.shape[2] * outputs
        see(Call(f"product {sizes}", partial(multiply, a, b, y), bytes_of(a, b, y), flops))
        multiply(a, b, y)

    cuda._kernel, cublas._multiply = seen_kernel, seen_multiply
    try:
        yield
    finally:
        cuda._kernel, cublas._multiply = kernel_of, multiply


def calls_of_a_step(size: int) -> list[Call]:
    """Those of the CNN's step, in order; memory that the optimiser needs is there already."""
    network = in_tinygrad_nnfs.NETWORKS["cnn"]().to("cuda")
    optimizer = optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    x, y = Tensor(images(size)).to("cuda"), Tensor(labels(size)).to("cuda")

    def gradients() -> None:
        loss = softmax_cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()

    gradients()
    optimizer.step()
    seen = StepCalls()
    with seeing_launches(seen.launched):
        with observed_by(seen):
            gradients()
        this = seen.begin("momentum step")
        optimizer.step()
    this.again = optimizer.step
    # parameters and velocities are read and written, gradients read
    this.bytes = 5 * sum(bytes_of(p.data) for p in network.parameters())
    synchronize()
    return seen.calls


def measure_kernels(
    options: argparse.Namespace, ceilings: Ceilings, rows: list[Row], remarks: Remarks
) -> None:
    """One row for each call, and one for each launch within those that have several."""
    calls = calls_of_a_step(options.kernel_batch_size)
    watch = Stopwatch(options.rounds, options.repetitions)
    total = 0.0
    with no_garbage_collection():
        for call in calls:
            if call.again is None:
                continue
            with remarks.failing(call.name):
                row = kernel_row(call, call.name, watch, ceilings)
                total += row["microseconds"]
                rows.append(row)
                for launch in call.launches if len(call.launches) > 1 else []:
                    rows.append(kernel_row(launch, f"    {launch.name}", watch, ceilings))
    rows.append({"call": "all calls", "microseconds": total})


def kernel_row(call: Call, name: str, watch: Stopwatch, ceilings: Ceilings) -> Row:
    assert call.again
    seconds = watch.seconds(call.again)
    row: Row = {"call": name, "microseconds": 1e6 * seconds}
    if call.bytes:
        rate = call.bytes / seconds
        row |= {"megabytes": call.bytes / 1e6, "gb_per_s": rate / 1e9}
        row["copy_percent"] = 100 * rate / ceilings.bytes if ceilings.bytes else None
    if call.flops:
        rate = call.flops / seconds
        row["gflop_per_s"] = rate / 1e9
        row["product_percent"] = 100 * rate / ceilings.flops if ceilings.flops else None
    return row


def kernel_notes(
    options: argparse.Namespace, kernel_rows: list[Row], step_rows: list[Row]
) -> list[str]:
    notes = [
        f"calls: by CUDA events, medians of graphs of {options.repetitions} repetitions; indented:",
        "the launches within a call, timed on their own; what is missing to their sum are copies",
        "and sums by cupy. MB: inputs, what is saved for the gradient, and outputs, each counted",
        "once; GFLOP/s: the definition's operations. Inputs come out of the L2 cache where they",
        "fit, from one repetition to the next as from one call to the next in a step: more than",
        "100 % of the copy, which does not fit, is possible",
    ]
    captured = [
        row["median_ms"]
        for row in step_rows
        if (row["model"], row["batch_size"], row["contender"])
        == ("cnn", options.kernel_batch_size, OURS)
    ]
    if captured and kernel_rows:
        total = kernel_rows[-1]["microseconds"]
        notes.append(
            f"all calls: {total:.0f} us; the captured step, which also copies gradients and fills "
            f"in: {1e3 * captured[0]:.0f} us"
        )
    return notes


# -- whole steps -----------------------------------------------------------------------------------

STEP_COLUMNS = [
    Column("model", "model"),
    Column("batch_size", "batch", "d"),
    Column("contender", "contender"),
    *(column._replace(format=".4f") for column in TIMES),
    Column("images_per_second", "images/s", ".0f"),
    Column("ratio", "ratio", ".2f"),
    Column("loss", "last loss", ".3f"),
]


def usable_peers(options: argparse.Namespace, remarks: Remarks) -> list[str]:
    """The peers that were asked for; what is missing is left out with a remark."""
    if not options.against:
        return []
    if options.precision == "bf16":
        remarks.add(
            "PyTorch is left out: its bf16 (autocast) also stores activations in bf16, ours are "
            "float32 and rounded in the product alone: their times cannot be compared"
        )
        return []
    if importlib.util.find_spec("torch") is None:
        remarks.add("PyTorch is left out: it is not installed: pip install 'tinygrad_nnfs[bench]'")
        return []
    try:
        in_torch = importlib.import_module("benchmarks.in_torch")
        if not torch_sees_the_gpu():
            remarks.add("PyTorch is left out: it finds no GPU (torch.cuda.is_available())")
            return []
        in_torch.set_precision(options.precision)
    except Exception as error:
        remarks.failed("PyTorch", error)
        return []
    return list(options.against)


def torch_sees_the_gpu() -> bool:
    available: bool = importlib.import_module("torch").cuda.is_available()
    return available


def is_for(name: str, model: str) -> bool:
    return model == "cnn" or "channels-last" not in name


def trainer(name: str, model: str) -> Callable[[int], Step]:
    contender = CONTENDERS[name]
    settings = dict(contender.settings)
    if contender.compiles and model == "cnn":
        settings["channels_last"] = True
    return Contender(contender.framework, settings).gpu_trainer(model, MOMENTUM)


class Span:
    """Some steps of a contender, and one synchronisation. After an error it does nothing."""

    def __init__(self, step: Step) -> None:
        self.step, self.steps = step, 1
        self.error: Exception | None = None

    def __call__(self) -> None:
        if self.error is not None:
            return
        try:
            for _ in range(self.steps):
                self.step()
            synchronize()
        except Exception as error:
            self.error = error

    def last_loss(self) -> float | None:
        """Of one more step: it says that what was timed did learn. None: not a finite number."""
        loss = float(self.step())  # type: ignore[arg-type]
        return loss if math.isfinite(loss) else None


def measure_steps(
    model: str,
    size: int,
    peers: list[str],
    options: argparse.Namespace,
    started: float,
    remarks: Remarks,
) -> list[Row]:
    if peers:  # what it has compiled for other steps does not count against its limits
        importlib.import_module("torch").compiler.reset()
    gc.collect()
    spans: dict[str, Span] = {}
    for name in [EAGER, OURS, *peers]:
        what = f"{name}, {model}, batch {size}"
        if not is_for(name, model):
            continue
        if CONTENDERS[name].compiles and time.perf_counter() - started > options.time_limit:
            remarks.add(f"{what}: left out, {options.time_limit} seconds were over")
            continue
        with remarks.failing(what):
            span = Span(trainer(name, model)(size))
            span.steps = 5  # kernels are compiled and chosen, what is to be captured is
            span()
            if span.error:
                raise span.error
            spans[name] = span

    first = OURS if OURS in spans else EAGER
    if first not in spans:
        return []
    steps = options.steps or steps_in_a_span(spans[first])
    for span in spans.values():
        span.steps = steps
    progress(f"{model}, batch {size}: {options.rounds} rounds of {options.calls} x {steps} steps")
    times = interleave({**spans}, options.rounds, options.calls, warm_up(options.calls))
    rows: list[Row] = []
    for name, span in spans.items():
        with remarks.failing(f"{name}, {model}, batch {size}"):
            if span.error:
                raise span.error
            measured = in_ms([seconds / steps for seconds in times[name]])
            loss = span.last_loss()
            if loss is None:
                remarks.add(f"{name}, {model}, batch {size}: its last loss is not finite")
            row = {
                "model": model,
                "batch_size": size,
                "contender": name,
                **measured,
                "images_per_second": 1e3 * size / measured["median_ms"],
                "ratio": median_ratio(times[first], times[name], options.calls),
                "loss": loss,
                "steps_in_a_span": steps,
            }
            rows.append(row)
            # at once, lest an accident later on takes it along
            progress(f"    {name}: {row['median_ms']:.4f} ms, ratio {row['ratio']:.2f}")
    return rows


def steps_in_a_span(span: Span) -> int:
    span.steps = 10
    start = time.perf_counter()
    span()
    each = (time.perf_counter() - start) / span.steps
    return min(max(round(SPAN / each), 5), 200)


# -- the plot --------------------------------------------------------------------------------------


def draw(rows: list[Row], figure: Any) -> None:
    settings = list(dict.fromkeys((row["model"], row["batch_size"]) for row in rows))
    columns = 2 if len(settings) > 1 else 1
    grid = figure.subplots(-(-len(settings) // columns) or 1, columns, squeeze=False)
    for (model, size), axes in zip(settings, grid.flat):
        those = [row for row in rows if (row["model"], row["batch_size"]) == (model, size)]
        bars(axes, [row["contender"] for row in those], those, "ms a step: median, quartiles")
        axes.set_title(f"{model}, batch {size}")
    for axes in grid.flat[len(settings) :]:
        axes.set_axis_off()
