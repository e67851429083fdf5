"""What a training step costs an image, over batch sizes and over threads."""

import argparse
from functools import partial
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS, Step
from benchmarks.report import TIMES, Column, Report, Row, cores, fail, progress
from benchmarks.timing import at_least, in_ms, interleave, warm_up
from tinygrad_nnfs import manual_seed, num_threads, set_num_threads

MOMENTUM = 0.9
CALLS = {"mlp": 20, "cnn": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=["mlp", "cnn"], default="cnn", help="(default: cnn)")
    parser.add_argument(
        "--largest-batch",
        type=at_least(1),
        default=1024,
        metavar="N",
        help="batch sizes are the powers of two up to N (default: 1024)",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=64,
        metavar="N",
        help="of the steps on 1, 2, ... threads (default: 64)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=cores(),
        metavar="N",
        help="the most threads (default: one a core)",
    )
    parser.add_argument(
        "--rounds", type=at_least(2), default=5, metavar="N", help="turns of each (default: 5)"
    )
    parser.add_argument(
        "--calls",
        type=at_least(1),
        metavar="N",
        help="steps in a turn (default: 2 of the CNN, 20 of the MLP)",
    )


def run(options: argparse.Namespace) -> Report:
    default_threads = num_threads()
    thread_counts = range(1, options.threads + 1)
    batch_sizes = [2**i for i in range(options.largest_batch.bit_length())]
    losses = {count: losses_of_three_steps(options, count) for count in thread_counts}
    if len(set(losses.values())) > 1:
        fail(f"the losses of 3 steps depend on the number of threads: {losses}")

    on_batches_of = CONTENDERS[OURS].trainer(options.model, MOMENTUM)
    settings = [("batch size", size, default_threads) for size in batch_sizes]
    settings += [("threads", options.batch_size, count) for count in thread_counts]
    steps = {
        (series, size, count): on_threads(count, on_batches_of(size))
        for series, size, count in settings
    }
    calls = options.calls or CALLS[options.model]
    progress(f"{options.rounds} rounds of {calls} steps, batch sizes 1 to {batch_sizes[-1]}")
    times = interleave(steps, options.rounds, calls, warm_up(calls))
    set_num_threads(default_threads)

    rows: list[Row] = []
    for series, size, count in settings:
        measured = in_ms(times[series, size, count])
        rows.append(
            {
                "series": series,
                "batch_size": size,
                "threads": count,
                **measured,
                "us_per_image": 1e3 * measured["median_ms"] / size,
            }
        )
    columns = [
        Column("series", "over"),
        Column("batch_size", "batch", "d"),
        Column("threads", "threads", "d"),
        *TIMES,
        Column("us_per_image", "us an image", ".1f"),
    ]
    losses_shown = ", ".join(f"{loss:.6f}" for loss in losses[1])
    notes = [
        f"losses of 3 steps, bit-identical on 1 to {options.threads} threads: {losses_shown}",
        "threads: set_num_threads",
    ]
    title = (
        f"{options.model} training step, momentum {MOMENTUM}, float32\n"
        f"{options.rounds} interleaved rounds, {calls} steps in each"
    )
    return Report(title, columns, rows, notes, partial(draw, rows, options.model))


def losses_of_three_steps(options: argparse.Namespace, threads: int) -> tuple[float, ...]:
    """From the same seed each time."""
    manual_seed(0)
    step = CONTENDERS[OURS].trainer(options.model, MOMENTUM)(options.batch_size)
    step = on_threads(threads, step)
    return tuple(step().item() for _ in range(3))


def on_threads(count: int, step: Step) -> Step:
    def call() -> Any:
        set_num_threads(count)
        return step()

    return call


def draw(rows: list[Row], model: str, figure: Any) -> None:
    over_batches, over_threads = figure.subplots(1, 2)
    sizes = [row for row in rows if row["series"] == "batch size"]
    _plot_with_quartiles(over_batches, sizes, "batch_size", "us_per_image")
    over_batches.set(xscale="log", yscale="log")
    ticks = [row["batch_size"] for row in sizes][::2]
    over_batches.set_xticks(ticks, [str(tick) for tick in ticks])
    over_batches.set_xticks([], minor=True)
    over_batches.set(xlabel="batch size", ylabel="microseconds an image")
    over_batches.set_title("Cost of an image, by batch size")

    counts = [row for row in rows if row["series"] == "threads"]
    _plot_with_quartiles(over_threads, counts, "threads", "median_ms")
    ideal = [counts[0]["median_ms"] / row["threads"] for row in counts]
    over_threads.plot([r["threads"] for r in counts], ideal, "--", color="gray", label="ideal")
    over_threads.set_xticks([row["threads"] for row in counts])
    over_threads.set_ylim(bottom=0)
    over_threads.set(xlabel="threads", ylabel=f"ms a step of batch {counts[0]['batch_size']}")
    over_threads.set_title("Time of a step, by threads")
    figure.suptitle(f"{model} training step: median, quartiles")
    figure.legend(loc="outside lower center", ncols=2)


def _plot_with_quartiles(axes: Any, rows: list[Row], x: str, y: str) -> None:
    scale = [row[y] / row["median_ms"] for row in rows]
    spread = [
        [s * (row["median_ms"] - row["lower_quartile_ms"]) for s, row in zip(scale, rows)],
        [s * (row["upper_quartile_ms"] - row["median_ms"]) for s, row in zip(scale, rows)],
    ]
    label = "measured" if x == "threads" else None
    axes.errorbar(
        [row[x] for row in rows], [row[y] for row in rows], spread, fmt="o-", capsize=3, label=label
    )
    axes.grid(alpha=0.3)
