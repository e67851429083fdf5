"""Where does the time go? Time, calls, bytes and GFLOP/s of every op, forward and backward."""

import functools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.backend import Array
from tinygrad_nnfs.registry import Op, observed_by
from tinygrad_nnfs.tensor import Node


@dataclass
class Row:
    """What one implementation of an op did. Times in seconds, counted from call to return."""

    op: str
    variant: str  # the function that ran: the op itself or a faster variant of it
    calls: int = 0
    forward: float = 0.0
    backward: float = 0.0
    bytes: int = 0  # of the inputs and outputs of the forward calls
    forward_flops: int = 0  # of the op as it is defined, even where a variant computes less
    backward_flops: int = 0


@dataclass(frozen=True)
class Statistics:
    """What the elements of an array are like. Mean and std are of its finite elements."""

    size: int
    mean: float  # NaN if nothing is finite, as is std
    std: float
    zeros: float  # the share of elements that are 0, in [0, 1]
    nan: int  # how many are NaN
    inf: int  # how many are infinite

    @staticmethod
    def of(array: Array) -> "Statistics":
        xp = backend.of(array)
        finite = xp.isfinite(array)
        count = int(finite.sum())
        nan = int(xp.isnan(array).sum()) if count < array.size else 0
        values = array if count == array.size else array[finite]
        mean = std = math.nan
        if count:
            with np.errstate(over="ignore", invalid="ignore"):  # of float64's largest numbers
                mean = float(values.mean(dtype=np.float64))
                std = float(values.std(dtype=np.float64))
        zeros = 1 - int(xp.count_nonzero(array)) / array.size if array.size else 0.0
        return Statistics(array.size, mean, std, zeros, nan, array.size - count - nan)

    @property
    def rms(self) -> float:
        """The root of the mean square of the finite elements: how large they are."""
        return math.hypot(self.mean, self.std)

    @property
    def problem(self) -> str:
        """What is wrong with such an output or gradient: "NaN", "inf", "all zero" or nothing."""
        if self.nan or self.inf:
            return "NaN" if self.nan else "inf"
        return "all zero" if self.size and self.zeros == 1 else ""


@dataclass
class Call(Row):
    """What one call of an op did, for `profile(statistics=True)`."""

    output: Statistics | None = None
    gradient: Statistics | None = None  # of the loss with respect to the output, after backward


class profile:  # noqa: N801, used like a function
    """Measure the ops that run inside, in all threads:

        with profile() as p:
            loss = softmax_cross_entropy(network(images), labels)
            loss.backward()
        print(p)

    On a GPU each op is waited for, so that its time is its own; without `profile` launches overlap.

    `p.rows` has the figures, the longest first. A backward counts, whenever it runs, if its forward
    ran inside.

    With `statistics=True`, `p.calls` has those of every single call, in the order of the calls, and
    the statistics of its output and of the gradient with respect to it, which take their own time;
    `graph.draw(loss, stats=p)` shows them.
    """

    def __init__(self, *, statistics: bool = False) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self._lock = threading.Lock()
        self._latest = threading.local()  # each thread's last call
        self._call_of: WeakKeyDictionary[Node, Call] = WeakKeyDictionary()
        self.statistics = statistics
        self.calls: list[Call] = []
        self.elapsed = 0.0

    def __enter__(self) -> "profile":
        self._observation = observed_by(self)
        self._observation.__enter__()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed += time.perf_counter() - self._start
        self._observation.__exit__(None, None, None)

    @property
    def rows(self) -> list[Row]:
        return sorted(self._rows.values(), key=lambda row: -(row.forward + row.backward))

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows for a JSON file."""
        return [asdict(row) for row in self.rows]

    def call(
        self,
        op: Op[...],
        variant: str,
        run: Callable[..., Any],
        xp: ModuleType,
        /,
        *arrays: Any,
        **params: Any,
    ) -> Any:
        """Run an op and take its time: see `registry.Observer`."""
        backend.synchronize(xp)
        start = time.perf_counter()
        result = run(xp, *arrays, **params)
        backend.synchronize(xp)
        elapsed = time.perf_counter() - start
        output, *rules = result
        flops = op.flops(output, *arrays, **params) if op.flops else 0
        sizes = [getattr(array, "nbytes", 0) for array in (*arrays, output)]
        key = op.__name__, variant
        call = None
        if self.statistics:
            call = self._latest.call = Call(*key, output=Statistics.of(output))
        with self._lock:
            rows = [self._rows.setdefault(key, Row(*key))]
            if call:
                self.calls.append(call)
                rows.append(call)
            for row in rows:
                row.calls += 1
                row.forward += elapsed
                row.bytes += sum(sizes)
                row.forward_flops += flops
        timed = [
            rule and functools.partial(self._apply, rule, rows, flops * (getattr(x, "ndim", 0) > 1))
            for rule, x in zip(rules, arrays, strict=True)
        ]
        return (output, *timed)

    def recorded(self, node: Node) -> None:
        """Take the statistics of the node's gradient, once: before the first of its rules."""
        if not self.statistics or node.rules is None:
            return
        call, rules = self._latest.call, list(node.rules)
        first, rule = next((i, rule) for i, rule in enumerate(rules) if rule)
        rules[first] = functools.partial(self._look, rule, call)
        node.rules = rules
        with self._lock:
            self._call_of[node] = call

    def call_of(self, node: Node) -> Call | None:
        """The call that made a node of the tape, if it ran inside, with `statistics=True`."""
        return self._call_of.get(node)

    def _apply(self, rule: Callable[[Any], Any], rows: list[Row], flops: int, dy: Any) -> Any:
        xp = backend.of(dy)
        backend.synchronize(xp)
        start = time.perf_counter()
        dx = rule(dy)
        backend.synchronize(xp)
        elapsed = time.perf_counter() - start
        with self._lock:
            for row in rows:
                row.backward += elapsed
                row.backward_flops += flops
        return dx

    def _look(self, rule: Callable[[Any], Any], call: Call, dy: Any) -> Any:
        call.gradient = Statistics.of(dy)
        return rule(dy)

    def __str__(self) -> str:
        lines = [
            f"{'op':24}{'variant':32}{'calls':>6}{'MB':>9}"
            f"{'forward ms':>12}{'GFLOP/s':>9}{'backward ms':>13}{'GFLOP/s':>9}"
        ]
        rows = self.rows
        for row in rows:
            variant = "" if row.variant == row.op else row.variant
            lines.append(
                f"{row.op:24}{variant:32}{row.calls:6}{row.bytes / 1e6:9.2f}"
                f"{1e3 * row.forward:12.3f}{_rate(row.forward_flops, row.forward):>9}"
                f"{1e3 * row.backward:13.3f}{_rate(row.backward_flops, row.backward):>9}"
            )
        calls, size = sum(r.calls for r in rows), sum(r.bytes for r in rows) / 1e6
        forward, backward = sum(r.forward for r in rows), sum(r.backward for r in rows)
        lines.append(
            f"{'all ops':56}{calls:6}{size:9.2f}{1e3 * forward:12.3f}{'':9}{1e3 * backward:13.3f}"
        )
        outside = self.elapsed - forward - backward
        if outside > 0:
            lines.append(f"{'outside of ops':71}{1e3 * outside:12.3f}")
        return "\n".join(lines)


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.1f}" if flops and seconds else ""
