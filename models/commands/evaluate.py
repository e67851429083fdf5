"""`nnfs evaluate`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tinygrad_nnfs.models.commands.arguments import (
    CommandError,
    Commands,
    add_data_folder,
    data_name,
)
from tinygrad_nnfs.models.evaluation import Report, report
from tinygrad_nnfs.models.networks import SHIPPED, load_model, shipped

from tinygrad_nnfs import data


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="report how good a trained network is, class by class",
        description="Accuracy and mean loss of a trained network; precision and recall of each "
        "class; which classes it takes for which; and pictures of that and of its most confident "
        "mistakes.",
        epilog="example: nnfs evaluate runs/mlp-digits --part train",
    )
    command.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="FILE|RUN",
        help="a model file, or a run's folder (default: the model that comes with the repository)",
    )
    command.add_argument(
        "--data",
        choices=list(data.CLASS_NAMES),
        help="the images (default: what the network was trained on)",
    )
    add_data_folder(command)
    command.add_argument(
        "--part",
        choices=("test", "train"),
        default="test",
        help="which of the images (default: %(default)s)",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the pictures go (default: the run's folder; none for a model file)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead")
    command.set_defaults(run=run)


def seed_of(metadata: Mapping[str, str], path: Path) -> int:
    try:
        return int(metadata["seed"])
    except (KeyError, ValueError):
        raise CommandError(f"{path}: does not say by which seed its images were split") from None


def run(options: argparse.Namespace) -> None:
    from tinygrad_nnfs.models.plots import draw_confusion_matrix, draw_mistakes

    path = options.model or shipped(SHIPPED)
    network, metadata = load_model(path)
    name = data_name(options.data, metadata, path)
    folder = options.out or (path if path.is_dir() else None)
    if folder:
        _make_folder(folder)
    dataset = data.load(name, options.data_dir, offline=bool(options.offline))
    if (name, "resplit") == (metadata.get("data"), metadata.get("split")):
        # or it would be tested on what it has learnt
        dataset = data.resplit(dataset, seed_of(metadata, path))
    images = getattr(dataset, f"{options.part}_images")
    labels = getattr(dataset, f"{options.part}_labels")
    found = report(network, images, labels, dataset.class_names)

    what = f"{len(images):,} {options.part} images of {name}"
    pictures = []
    if folder:
        pictures.append(folder / f"confusion-{options.part}.png")
        pictures.append(folder / f"mistakes-{options.part}.png")
        try:
            title = f"{what}: accuracy {found.accuracy:.2%}"
            draw_confusion_matrix(
                pictures[0], found.normalized_confusion(), dataset.class_names, title
            )
            title = f"{what}: the most confident of {len(found.mistakes()):,} mistakes"
            draw_mistakes(pictures[1], images, found, title)
        except OSError as error:
            raise CommandError(f"{folder}: cannot be written: {error.strerror or error}") from None

    if options.json:
        asked = {"model": str(path), "data": name, "part": options.part}
        print(json.dumps({**asked, **found.to_json(), "pictures": [str(p) for p in pictures]}))
    else:
        _print(found, f"{path}: {what}", pictures)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder}: is no folder to write to: {error.strerror}") from None


def _print(report: Report, what: str, pictures: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, soft_wrap=True)  # paths stay as they are
    console.print(what)
    console.print(f"accuracy {report.accuracy:.2%}, mean loss {report.loss:.4f}")

    classes = Table("class", "precision", "recall", "images")
    for column in classes.columns[1:]:
        column.justify = "right"
    for name, precision, recall, support in zip(
        report.class_names, report.precision, report.recall, report.support
    ):
        classes.add_row(name, _percent(precision), _percent(recall), f"{support:,}")
    console.print(classes)

    confusion = Table("true \\ predicted", title="shares of each true class")
    for i in range(len(report.class_names)):
        confusion.add_column(str(i), justify="right")
    for i, shares in enumerate(report.normalized_confusion()):
        name = report.class_names[i]
        confusion.add_row(name if name == str(i) else f"{i} {name}", *map(_share, shares))
    console.print(confusion)
    for picture in pictures:
        console.print(f"written: {picture}")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1%}"


def _share(value: float) -> str:
    """In three characters, so that ten classes fit into a line."""
    if np.isnan(value):
        return "-"
    return f"{value:g}" if value in (0, 1) else f"{value:.2f}".removeprefix("0")
