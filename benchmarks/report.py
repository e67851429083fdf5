"""What every benchmark leaves behind: a printed table, a JSON file and, if asked for, a plot."""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tinygrad_nnfs import num_threads
from tinygrad_nnfs.checkpoint import write_file

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "tab:blue", "tab:gray"  # colours of bars

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of the printed table: what of a row it shows, and how."""

    key: str
    heading: str
    format: str = ""  # of a number; text columns have none and are aligned left


TIMES = [  # of rows that hold `timing.in_ms`
    Column("median_ms", "median ms", ".3f"),
    Column("lower_quartile_ms", "25 %", ".3f"),
    Column("upper_quartile_ms", "75 %", ".3f"),
]


class Table(NamedTuple):
    """One of several tables of a benchmark."""

    title: str
    columns: list[Column]
    rows: list[Row]


@dataclass
class Report:
    """What a benchmark measured. `draw` fills an empty matplotlib figure with its plot."""

    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    draw: Callable[[Any], None]
    before: list[Table] = field(default_factory=list)  # tables that are printed before this one
    facts: Row = field(default_factory=dict)  # about the machine, besides those of `machine`


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on standard error, and out."""
    print(f"benchmarks: {message}", file=sys.stderr)
    sys.exit(status)


def progress(message: str) -> None:
    """One line on standard error, where it does not mix with the table."""
    print(message, file=sys.stderr, flush=True)


# -- options ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{name}.json",
        metavar="FILE",
        help=f"where the figures are written (default: benchmarks/results/{name}.json)",
    )
    parser.add_argument(
        "--plot",
        type=_png,
        nargs="?",
        const=Path(),
        metavar="FILE",
        help="draw them, too, as a PNG (default: beside the JSON file); needs matplotlib",
    )


def _png(text: str) -> Path:
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .png")
    return Path(text)


def prepare(options: argparse.Namespace) -> None:
    """Find out before the measuring begins whether its results can be drawn and written."""
    if options.plot == Path():
        options.plot = options.json.with_suffix(".png")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        fail("--plot needs matplotlib: pip install 'tinygrad_nnfs[bench]'")
    for path in filter(None, (options.json, options.plot)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror}")
        if path.is_dir():
            fail(f"cannot write {path}: it is a directory")
        if not os.access(path.parent, os.W_OK):
            fail(f"cannot write {path}: no permission")


# -- the machine -----------------------------------------------------------------------------------


def machine() -> Row:
    """What the figures depend on beside the program: processor, threads, versions."""
    versions = {"python": platform.python_version()}
    for package in ("numpy", "numba", "scipy", "torch", "jax", "tinygrad"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def cores() -> int:
    """The processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", facts.read_text()) if facts.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def gemm_gflops(size: int = 1024, calls: int = 50) -> float:
    """The speed of numpy's float32 matrix product of size x size matrices, in GFLOP/s."""
    a, b = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        np.matmul(a, b)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


# -- publishing ------------------------------------------------------------------------------------


def publish(options: argparse.Namespace, facts: Row, report: Report) -> None:
    """Print the table, write the JSON file, draw the plot. `facts` are those of `machine()`."""
    peak = gemm_gflops()
    for title, columns, rows in [*report.before, (report.title, report.columns, report.rows)]:
        print(f"{title}\n\n{table(columns, rows)}\n")
    print("\n".join(report.notes))
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    print(f"\n{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; {versions}")
    if facts["load"] is not None:
        print(f"load average before the run: {facts['load']:.1f}; well below 1, or it disturbs")
    print(f"GEMM peak (float32, 1024 x 1024): {peak:.0f} GFLOP/s")

    unrelated = {"run", "name", "json", "plot"}  # to what was measured
    result = {
        "benchmark": options.name,
        "options": {k: v for k, v in vars(options).items() if k not in unrelated},
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": facts | report.facts,
        "gemm_gflops": peak,
        "title": report.title,
        "notes": report.notes,
        "rows": report.rows,
    }
    if report.before:
        result["before"] = [{"title": t.title, "rows": t.rows} for t in report.before]
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    _write(options.json, text.encode())
    if options.plot:
        _write(options.plot, _draw(report, options.plot.suffix.removeprefix(".")))


def table(columns: list[Column], rows: list[Row]) -> str:
    """The rows in aligned columns; a figure that a row lacks is left blank."""
    lines = [[column.heading for column in columns]]
    for row in rows:
        values = [(row.get(column.key), column.format) for column in columns]
        lines.append(["" if v is None else format(v, spec) for v, spec in values])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.format else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def _write(path: Path, content: bytes) -> None:
    write_file(path, content)
    print(f"written: {os.path.relpath(path)}")


def _draw(report: Report, form: str) -> bytes:
    """The plot as a file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    report.draw(figure)
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=150)
    return content.getvalue()


def bars(axes: Any, labels: list[str], rows: list[Row], label: str) -> None:
    """Medians as horizontal bars with their quartiles, the first on top, ours in colour."""
    medians = [row["median_ms"] for row in rows]
    spread = [
        [row["median_ms"] - row["lower_quartile_ms"] for row in rows],
        [row["upper_quartile_ms"] - row["median_ms"] for row in rows],
    ]
    colours = [OURS if name.startswith("tinygrad_nnfs") else THEIRS for name in labels]
    drawn = axes.barh(labels, medians, xerr=spread, color=colours, capsize=3)
    axes.bar_label(drawn, [f"{m:.3g}" for m in medians], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(row["upper_quartile_ms"] for row in rows))
    axes.set_xlabel(label)
