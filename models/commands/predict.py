"""`nnfs predict`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad_nnfs.models.commands.arguments import Commands, data_name
from tinygrad_nnfs.models.evaluation import probabilities
from tinygrad_nnfs.models.networks import load_model

from tinygrad_nnfs import data

BEST = 3  # classes shown of each image


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "predict",
        help="say what is on an image",
        description="Print the three likeliest classes of each image. An image may be of any size "
        "and colour, dark on light or light on dark, with a margin of background around it: the "
        "median of its border is taken for the background, what differs from that is cropped and "
        "made what the network was trained on. For MNIST: scaled to fit 20x20 pixels, its centre "
        "of mass in the centre of 28x28. For Fashion-MNIST: 28 pixels at the longest edge, "
        "sharpened. For scikit-learn's digits: 8x8 pixels, enlarged. An image of 28x28 pixels "
        "with dark corners is taken as it is.",
        epilog="example: nnfs predict runs/mlp-digits seven.png",
    )
    command.add_argument(
        "model", type=Path, metavar="FILE|RUN", help="a model file, or a run's folder"
    )
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a PNG, JPEG, GIF, BMP or WebP file; - for standard input",
    )
    command.add_argument(
        "--data",
        choices=list(data.CLASS_NAMES),
        help="prepare images as this data set's were (default: what the network was trained on)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from tinygrad_nnfs.models.prediction import ImageError, load_image

    network, metadata = load_model(options.model)
    name = data_name(options.data, metadata, options.model)
    class_names = data.CLASS_NAMES[name]

    images = []  # (path, image) of those that can be read
    for path in options.images:
        try:
            images.append((path, load_image(path, name)))
        except ImageError as error:
            print(f"nnfs: {error}", file=sys.stderr)

    found = []
    if images:
        shares = probabilities(network, np.stack([image for _, image in images]), class_names)
        for (path, _), row in zip(images, shares):
            best = np.argsort(-row, kind="stable")[:BEST]
            top = [{"class": class_names[i], "probability": float(row[i])} for i in best]
            found.append({"image": path, "classes": top})
    if options.json:
        print(json.dumps({"model": str(options.model), "data": name, "images": found}))
    elif found:
        _print(found)
    if len(images) < len(options.images):
        sys.exit(1)


def _print(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "class", "probability")
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    for image in found:
        # names of files are bytes, and may be no text at all
        path = Text(os.fsencode(image["image"]).decode(errors="replace"))
        for top in image["classes"]:
            table.add_row(path, top["class"], f"{top['probability']:.1%}")
            path = Text("")
        table.add_section()
    Console().print(table)
