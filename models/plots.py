"""Pictures of what a network does, as PNG files. Each is replaced in one step, or not at all."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no state shared with the caller
from matplotlib.ticker import MaxNLocator, PercentFormatter
from tinygrad_nnfs.models.evaluation import Report

from tinygrad_nnfs.checkpoint import write_file

ROWS, COLUMNS = 5, 6  # of the sheet of mistakes, at most


def draw_confusion_matrix(
    path: str | os.PathLike[str], matrix: np.ndarray, class_names: Sequence[str], title: str
) -> None:
    """Draw shares in [0, 1] (true classes, predicted classes) as a heat map; NaN stays white.

    `Report.normalized_confusion` gives such a matrix. Raises OSError.
    """
    size = 2.5 + 0.6 * len(class_names)  # inches
    figure = Figure(figsize=(size, size - 0.7), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    heat = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(matrix):
        if not np.isnan(share):
            colour = "white" if share > 0.5 else "black"
            axes.text(
                column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=9
            )
    places = range(len(class_names))
    axes.set_xticks(places, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    figure.colorbar(heat, ax=axes, shrink=0.8, label="share of the true class")
    _write(path, figure)


def draw_mistakes(
    path: str | os.PathLike[str], images: np.ndarray, report: Report, title: str
) -> None:
    """Draw the most confident mistakes among `images` (n, 28, 28), which `report` is of.

    Above each: its true class, the predicted one and the probability of that. Raises OSError.
    """
    shown = report.mistakes()[: ROWS * COLUMNS]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(1.6 * COLUMNS, 0.8 + 1.9 * rows), dpi=150, layout="constrained")
    figure.suptitle(f"{title}\ntrue class → predicted class (its probability)")
    for place, index in enumerate(shown, start=1):
        true, predicted = report.labels[index], report.predictions[index]
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.imshow(images[index], cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        axes.set_title(
            f"{report.class_names[true]}\n→ {report.class_names[predicted]} "
            f"({report.probabilities[index, predicted]:.1%})",
            fontsize=8,
        )
    _write(path, figure)


def draw_curves(
    path: str | os.PathLike[str], epochs: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draw loss and accuracy of a run's epochs, the lines of its metrics.jsonl. Raises OSError."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    figure.suptitle(title)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for prefix, label in (
            ("", "training images, while learning"),
            ("validation_", "validation"),
        ):
            name = prefix + quantity
            points = [(line["epoch"], line[name]) for line in epochs if name in line]
            if points:
                axes.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _write(path, figure)


def _write(path: str | os.PathLike[str], figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_file(path, picture.getvalue())
