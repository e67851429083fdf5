"""What the tape costs an op, forward and backward together, beyond the op's own functions."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import OURS, Column, Report, Row
from benchmarks.timing import at_least, quartiles
from tinygrad_nnfs import OPS, Tensor
from tinygrad_nnfs.registry import Float, op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ops",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="length of the chain (default: 1000)",
    )
    parser.add_argument(
        "--rounds", type=at_least(2), default=200, metavar="N", help="(default: 200)"
    )


def run(options: argparse.Namespace) -> Report:
    """Chains of ops that compute nothing, against plain calls of the same functions and rules."""

    def unary(xp, x: Float):
        return x, lambda dy: dy

    def binary(xp, a: Float, b: Float):
        return a, lambda dy: dy, lambda dy: ready  # as if it were an array of the rule's own

    ready = np.ones(1, np.float32)
    one, two = op(unary), op(binary)
    del OPS["unary"], OPS["binary"]
    x = Tensor(np.ones(1, np.float32), requires_grad=True)

    def parameters() -> list[Tensor]:
        return [Tensor(ready, requires_grad=True) for _ in range(options.ops)]

    def taped_unary(_: list[Tensor]) -> None:
        y = x
        for _ in range(options.ops):
            y = one(y)
        y.backward()

    constant = Tensor(ready)

    def taped_binary_constant(_: list[Tensor]) -> None:
        y = x
        for _ in range(options.ops):
            y = two(y, constant)
        y.backward()

    def taped_binary(others: list[Tensor]) -> None:
        y = x
        for other in others:
            y = two(y, other)
        y.backward()

    def plain_unary(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            rule = unary(np, ready)[1]
            rule(ready)

    def plain_binary_constant(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            rule = binary(np, ready, ready)[1]
            rule(ready)

    def plain_binary(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            _, da, db = binary(np, ready, ready)
            da(ready)
            db(ready)

    rows: list[Row] = []
    for name, taped, plain in (
        ("one input", taped_unary, plain_unary),
        ("two inputs, one a constant", taped_binary_constant, plain_binary_constant),
        ("two inputs, one a parameter", taped_binary, plain_binary),
    ):
        with_tape, alone = interleaved_times(taped, plain, parameters, options)
        differences = quartiles([a - b for a, b in zip(with_tape, alone, strict=True)])
        rows.append(
            {
                "op": name,
                "with_tape_us": quartiles(with_tape)[1],
                "functions_alone_us": quartiles(alone)[1],
                "tape_us": differences[1],
                "tape_quartiles_us": [differences[0], differences[2]],
                "tape_fastest_us": min(with_tape) - min(alone),
            }
        )
    columns = [
        Column("op", "an op with"),
        Column("with_tape_us", "with tape", ".2f"),
        Column("functions_alone_us", "functions alone", ".2f"),
        Column("tape_us", "the tape", ".2f"),
        Column("tape_fastest_us", "fastest", ".2f"),
    ]
    notes = [
        "medians of the rounds; the tape: of their differences; fastest: the difference between",
        "the fastest rounds, which is what the tape costs where nothing else disturbs the machine",
    ]
    title = f"microseconds an op, forward + backward, in chains of {options.ops} ops"
    return Report(title, columns, rows, notes, partial(draw, rows))


def draw(rows: list[Row], figure: Any) -> None:
    axes = figure.subplots()
    times = [row["tape_us"] for row in rows]
    lower, upper = zip(*(row["tape_quartiles_us"] for row in rows), strict=True)
    spread = [
        [time - low for time, low in zip(times, lower, strict=True)],
        [high - time for time, high in zip(times, upper, strict=True)],
    ]
    drawn = axes.barh([row["op"] for row in rows], times, xerr=spread, color=OURS, capsize=3)
    axes.bar_label(drawn, [f"{time:.2f}" for time in times], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(upper))
    axes.set_xlabel("microseconds an op, forward and backward together: median, quartiles")
    axes.set_title("What the tape costs, beyond the op's own functions")


def interleaved_times(
    first: Callable[[list[Tensor]], None],
    second: Callable[[list[Tensor]], None],
    prepare: Callable[[], list[Tensor]],
    options: argparse.Namespace,
) -> list[list[float]]:
    """Microseconds an op of both, round by round; `prepare` is not timed."""
    times: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        for i, call in enumerate((first, second)):
            prepared = prepare()
            start = time.perf_counter()
            call(prepared)
            times[i].append((time.perf_counter() - start) / options.ops * 1e6)
    return times
