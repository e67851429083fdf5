"""The record of what the recipes reach: docs/results.json, and the tables made from it.

`docs/results.md` is written by hand but for what lies between `<!-- begin NAME -->` and
`<!-- end NAME -->`, which `render` writes anew.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from filelock import FileLock
from tinygrad_nnfs.models.recipes import PUBLISHED, RECIPES, Recipe, published

from tinygrad_nnfs import data
from tinygrad_nnfs.checkpoint import CheckpointError, write_file

Entry = dict[str, Any]
FIELDS = {"recipe", "split", "seed", "settings", "train", "test", "confusion", "seconds", "command"}


def read(docs: Path) -> list[Entry]:
    """The entries of `docs`/results.json; none if there is no such file. Raises CheckpointError."""
    path = docs / "results.json"
    try:
        entries = json.loads(path.read_bytes()) if path.exists() else []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and e.keys() >= FIELDS for e in entries
    ):
        raise CheckpointError(
            f"{path}: expected a list of entries with {', '.join(sorted(FIELDS))}"
        )
    return entries


def key(entry: Entry) -> tuple[str, str, int]:
    return entry["recipe"], entry["split"], entry["seed"]


def record(docs: Path, entry: Entry) -> None:
    """Add `entry`, in place of one of the same recipe, split and seed, and render the page."""
    with FileLock(docs / ".results.lock"):  # several seeds may be trained at once
        entries = [other for other in read(docs) if key(other) != key(entry)]
        entries = sorted([*entries, entry], key=key)
        lines = ",\n".join(json.dumps(e) for e in entries)
        write_file(docs / "results.json", f"[\n{lines}\n]\n".encode())
        render(docs)


def render(docs: Path) -> None:
    """Write the tables in `docs`/results.md anew, and its pictures."""
    path, entries = docs / "results.md", read(docs)
    draw(docs, entries)
    page = path.read_text() if path.exists() else "".join(map(section, TABLES))
    for name, table in TABLES.items():
        page, found = re.subn(
            rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)",
            lambda match, table=table: match[1] + "\n".join(table(entries)) + "\n" + match[2],
            page,
            flags=re.DOTALL,
        )
        if not found:
            raise CheckpointError(
                f"{path}: has no lines <!-- begin {name} --> and <!-- end {name} -->"
            )
    write_file(path, page.encode())


def section(name: str) -> str:
    return f"\n<!-- begin {name} -->\n<!-- end {name} -->\n"


def of(entries: Sequence[Entry], recipe: str, split: str = "standard") -> list[Entry]:
    """The runs of a recipe as it is now: those of its earlier versions do not count."""
    now = {**vars(RECIPES[recipe]), "split": split}
    of_recipe = [entry for entry in entries if entry["recipe"] == recipe]
    # settings that came later had no effect before
    return [entry for entry in of_recipe if {**vars(Recipe()), **entry["settings"]} == now]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def accuracies(entries: Sequence[Entry], part: str) -> list[float]:
    return [100 * e[part]["accuracy"] for e in entries]


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(entries: Sequence[Entry], names: Sequence[str], split: str) -> list[str]:
    """The lines of a table: one row for each recipe that has been trained on this split."""
    lines = [
        row(
            *("recipe", "n", "test %", "each seed", "train %", "train - test"),
            *("source: train / test", "PyTorch: test", "time", "command"),
        ),
        row(*("---" for _ in range(10))),
    ]
    for name in names:
        runs = of(entries, name, split)
        if not runs:
            continue
        train, test = accuracies(runs, "train"), accuracies(runs, "test")
        known = published(name)
        peer = known and (mean(known.pytorch) if split == "standard" else known.pytorch_resplit)
        lines.append(
            row(
                *(name, len(runs), f"**{mean(test):.2f}**"),
                ", ".join(map(percent, test)),
                *(percent(mean(train)), percent(mean(train) - mean(test))),
                f"{percent(known.train)} / {percent(known.test)}" if known else "-",
                "-" if name.endswith("-plus") else percent(peer),
                duration(mean(e["seconds"] for e in runs)),
                f"`{runs[0]['command']}`",
            )
        )
    return lines


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 120 else f"{seconds:.0f} s"


def confusion_matrices(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The runs to draw, by recipe: of each that the source reports, ours if it has been trained."""
    drawn = {}
    for name in PUBLISHED:
        for recipe in (f"{name}-plus", name):
            if runs := of(entries, recipe):
                drawn[recipe] = runs
                break
    return drawn


def draw(docs: Path, entries: Sequence[Entry]) -> None:
    """Draw the confusion matrix of each recipe, all its seeds added up."""
    from tinygrad_nnfs.models.plots import draw_confusion_matrix

    (docs / "images").mkdir(exist_ok=True)
    for name, runs in confusion_matrices(entries).items():
        counts = np.sum([entry["confusion"] for entry in runs], axis=0)
        draw_confusion_matrix(
            docs / "images" / f"confusion-{name}.png",
            counts / counts.sum(axis=1, keepdims=True),
            data.CLASS_NAMES[RECIPES[name].data],
            f"{name}: test images, {len(runs)} seed{'s' * (len(runs) > 1)}",
        )


def pictures(entries: Sequence[Entry]) -> list[str]:
    return [f"![{name}](images/confusion-{name}.png)" for name in confusion_matrices(entries)]


SOURCES = [name for name in RECIPES if not name.endswith("-plus")]
OURS = [name for name in RECIPES if name.endswith("-plus")]
TABLES: dict[str, Callable[[Sequence[Entry]], list[str]]] = {
    "source": lambda entries: table(entries, SOURCES, "standard"),
    "resplit": lambda entries: table(entries, [*SOURCES, *OURS], "resplit"),
    "plus": lambda entries: table(entries, OURS, "standard"),
    "confusion": pictures,
}
