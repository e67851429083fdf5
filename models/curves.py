"""Loss and accuracy over the epochs of a run, as a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinygrad_nnfs.checkpoint import write_file


def draw_curves(path: Path, title: str, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG of the lines of a run's metrics.jsonl."""
    # the figure alone, without pyplot: nothing global, no window
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for axes, quantity, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100)):
        for prefix, label in (("", "training, while learning"), ("validation_", "validation")):
            points = [(line["epoch"], line.get(prefix + quantity)) for line in epochs]
            points = [(epoch, value * unit) for epoch, value in points if value is not None]
            if points:
                axes.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity + " (%)" * (unit == 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if epochs:
            axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())
