"""Pictures of what a network does, as PNG files. Each is replaced in one step, or not at all."""

import io
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no state shared with the caller
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
    figure = Figure(figsize=(1.6 * COLUMNS, 0.6 + 1.9 * rows), dpi=150, layout="constrained")
    figure.suptitle(title)
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


def _write(path: str | os.PathLike[str], figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_file(path, picture.getvalue())
