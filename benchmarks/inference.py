"""The logits of 1,000 images by the MLP or the CNN, in evaluation, against its peers."""

import argparse
from functools import partial
from typing import Any

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS, OURS, Step
from benchmarks.report import TIMES, Column, Report, Row, bars, progress
from benchmarks.timing import at_least, in_ms, interleave, median_ratio, warm_up

CALLS = {"mlp": 30, "cnn": 2}
PEER_BATCH_SIZES = 64, 1000  # both are tried, so that a peer is met at its best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    contenders.add_arguments(parser)
    parser.add_argument(
        "--images", type=at_least(1), default=1000, metavar="N", help="(default: 1000)"
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=64,
        metavar="N",
        help="of tinygrad_nnfs; the peers run in batches of 64 and of 1000 (default: 64)",
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
        help="passes over all images in a turn (default: 2 of the CNN, 30 of the MLP)",
    )


def run(options: argparse.Namespace) -> Report:
    model, images = options.model, options.images
    calls = options.calls or CALLS[model]

    def build(name: str) -> dict[int, Step]:
        """A step for each batch size."""
        on_images = CONTENDERS[name].predictor(model)
        ours = CONTENDERS[name].framework == OURS
        sizes = [options.batch_size] if ours else PEER_BATCH_SIZES
        steps = {size: on_images(images, size) for size in sorted({min(s, images) for s in sizes})}
        for step in steps.values():
            step()
        return steps

    built, left_out = contenders.built(contenders.names(options), build)
    settings = [(name, size) for name, steps in built.items() for size in steps]
    progress(f"{options.rounds} rounds of {calls} passes: {', '.join(built)}")
    times = interleave(
        {setting: built[setting[0]][setting[1]] for setting in settings},
        options.rounds,
        calls,
        warm_up(calls),
    )
    ours = times[settings[0]]
    rows: list[Row] = []
    for name, size in settings:
        measured = in_ms(times[name, size])
        rows.append(
            {
                "contender": name,
                "framework": CONTENDERS[name].framework,
                "batch_size": size,
                **measured,
                "images_per_second": 1e3 * images / measured["median_ms"],
                "ratio": median_ratio(ours, times[name, size], calls),
            }
        )
    columns = [
        Column("contender", "contender"),
        Column("batch_size", "batch", "d"),
        *TIMES,
        Column("images_per_second", "images/s", ".0f"),
        Column("ratio", "ratio", ".2f"),
        Column("best", ""),
    ]
    for row in rows:
        if row["framework"] != OURS:
            row["best"] = "best" if row is _best(rows, row["framework"]) else ""
    notes = [
        "best: the fastest of its library's contenders and batch sizes",
        *contenders.LEGEND,
        *left_out,
    ]
    title = (
        f"{model} inference, {images} images, float32, default threads\n"
        f"{options.rounds} interleaved rounds, {calls} passes over all images in each"
    )
    return Report(title, columns, rows, notes, partial(draw, rows, title))


def _best(rows: list[Row], library: str) -> Row:
    return min((r for r in rows if r["framework"] == library), key=lambda r: r["median_ms"])


def draw(rows: list[Row], title: str, figure: Any) -> None:
    axes = figure.subplots()
    labels = [f"{row['contender']}, batch {row['batch_size']}" for row in rows]
    bars(axes, labels, rows, "ms for all images: median, quartiles")
    axes.set_title(title)
