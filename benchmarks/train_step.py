"""A training step (forward, backward, momentum update) of the MLP or the CNN against its peers."""

import argparse
from functools import partial
from typing import Any

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS, OURS, Step
from benchmarks.fresh_process import added_memory, first_step
from benchmarks.report import TIMES, Column, Report, Row, bars, progress
from benchmarks.timing import at_least, fraction, in_ms, interleave, median_ratio, warm_up

CALLS = {"mlp": 200, "cnn": 10}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    contenders.add_arguments(parser)
    parser.add_argument(
        "--batch-size", type=at_least(1), default=64, metavar="N", help="(default: 64)"
    )
    parser.add_argument(
        "--momentum",
        type=fraction,
        default=0.9,
        metavar="MU",
        help="of the SGD step; 0 is plain SGD (default: 0.9)",
    )
    parser.add_argument(
        "--rounds",
        type=at_least(2),
        default=10,
        metavar="N",
        help="turns of each contender (default: 10)",
    )
    parser.add_argument(
        "--calls",
        type=at_least(1),
        metavar="N",
        help="steps in a turn (default: 10 of the CNN, 200 of the MLP)",
    )
    parser.add_argument(
        "--first-step",
        action="store_true",
        help="time import and first step, too, in fresh processes",
    )


def run(options: argparse.Namespace) -> Report:
    model, size, momentum = options.model, options.batch_size, options.momentum
    calls = options.calls or CALLS[model]

    def build(name: str) -> Step:
        step = CONTENDERS[name].trainer(model, momentum)(size)
        step()
        return step

    steps, left_out = contenders.built(contenders.names(options), build)
    progress(f"{options.rounds} rounds of {calls} steps: {', '.join(steps)}")
    times = interleave(steps, options.rounds, calls, warm_up(calls))

    rows: list[Row] = []
    for name in steps:
        row: Row = {
            "contender": name,
            **in_ms(times[name]),
            "ratio": median_ratio(times[OURS], times[name], calls),
            "added_memory_mb": added_memory(name, model, size, momentum),
        }
        if options.first_step:
            progress(f"first step of {name}")
            start = first_step(name, model, size, momentum)
            row["import_s"], row["first_step_s"] = start
        rows.append(row)

    columns = [
        Column("contender", "contender"),
        *TIMES,
        Column("ratio", "ratio", ".2f"),
        Column("added_memory_mb", "MB added", ".0f"),
    ]
    notes = [
        "MB added: by which ten steps raise a fresh process's peak memory, after one step of the",
        "same network at batch size 1, with which libraries and compiled kernels are loaded;",
        "torch-compile, jax and tinygrad compile for every batch size, and that counts",
        *contenders.LEGEND,
        *left_out,
    ]
    if options.first_step:
        columns += [Column("import_s", "import s", ".2f"), Column("first_step_s", "step s", ".2f")]
        notes += [
            "import s, step s: from the start of a process to the end of the import, and to that",
            "of the first step; medians of 3 processes, after one that compiled into files what",
            "is compiled into files",
        ]
    title = (
        f"{model} training step, batch {size}, momentum {momentum:g}, float32, default threads\n"
        f"{options.rounds} interleaved rounds, {calls} steps in each"
    )
    return Report(title, columns, rows, notes, partial(draw, rows, title))


def draw(rows: list[Row], title: str, figure: Any) -> None:
    axes = figure.subplots()
    bars(axes, [row["contender"] for row in rows], rows, "ms a step: median, quartiles")
    axes.set_title(title)
