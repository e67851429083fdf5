"""Pictures of the tape: `draw(loss)`. And `summary`, a network as a table.

    from tinygrad_nnfs.graph import draw, save

    loss = softmax_cross_entropy(network(images), labels)
    save(draw(loss), "network.svg")

Needs the extra `draw`: pip install 'tinygrad_nnfs[draw]'.
"""

import os
from typing import TYPE_CHECKING

from tinygrad_nnfs.graph.drawing import draw
from tinygrad_nnfs.graph.summaries import Summary, summary

if TYPE_CHECKING:
    import graphviz

__all__ = ["Summary", "draw", "save", "summary"]


def save(picture: "graphviz.Digraph", path: str | os.PathLike[str]) -> None:
    """Write a picture to a file: .svg, .png, .pdf, or .dot for its source. See rendering.save."""
    from tinygrad_nnfs.graph import rendering

    rendering.save(picture, path)
