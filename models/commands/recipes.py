"""`nnfs recipes`."""

import argparse
import json

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
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "network", "settings", "source: train", "test", show_lines=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for name, recipe in RECIPES.items():
        settings = {**recipe.differences(Recipe()), "epochs": recipe.epochs, "lr": recipe.lr}
        del settings["data"]
        settings.pop("network", None)
        known = published(name)
        table.add_row(
            name,
            recipe.network,
            ", ".join(f"{setting} {value}" for setting, value in settings.items()),
            f"{known.train:.2f}" if known else "-",
            f"{known.test:.2f}" if known else "-",
        )
    Console().print(table)
