"""`nnfs recipes`."""

import argparse
import json
from typing import Any

from tinygrad_nnfs.models.commands.arguments import Commands
from tinygrad_nnfs.models.recipes import RECIPES, Recipe, published


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "recipes",
        help="list the recipes that networks are trained by",
        description="List the recipes: the eleven of the source, and those of our own of the same "
        "architectures (-plus), with every setting that is not the default, and the accuracy in "
        "per cent that the source reports. `nnfs train RECIPE` trains by one.",
        epilog="example: nnfs recipes, then nnfs train mnist-minibatch --epochs 5",
    )
    command.add_argument("--json", action="store_true", help="print all settings as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({name: vars(recipe) for name, recipe in RECIPES.items()}, indent=2))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, show_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("settings")
    table.add_column("source: train", justify="right")
    table.add_column("test", justify="right")
    for name, recipe in RECIPES.items():
        # the network, the data and whether there is dropout can be told by the name
        settings = {"epochs": recipe.epochs, "lr": recipe.lr, **recipe.differences(Recipe())}
        said = ("network", "data", "dropout")
        settings = {key: value for key, value in settings.items() if key not in said}
        known = published(name)
        table.add_row(
            name,
            ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in settings.items()),
            f"{known.train:.2f}" if known else "-",
            f"{known.test:.2f}" if known else "-",
        )
    Console().print(table)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
