"""`nnfs summary`."""

import argparse
import json

from tinygrad_nnfs.models.commands.arguments import Commands, add_network
from tinygrad_nnfs.models.networks import find

from tinygrad_nnfs.graph import summary


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "summary",
        help="list a network's layers: shapes, parameters, FLOPs and memory",
        description="A network's layers: the shapes of their outputs, their parameters, the "
        "operations of a forward, and the memory of a training step on a batch.",
        epilog="example: nnfs summary cnn --batch 256",
    )
    add_network(command)
    command.add_argument(
        "--json", action="store_true", help="print one JSON object instead, sizes in bytes"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    found = summary(find(options.network), (1, 28, 28), batch=options.batch)
    if options.json:
        print(json.dumps(found.as_dict()))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, *lines, total = found.cells()
    title, *notes = found.notes()
    table = Table(box=SIMPLE, show_edge=False, show_footer=True, padding=0)
    for i, (name, sum_) in enumerate(zip(header, total, strict=True)):
        table.add_column(name, Text(sum_), justify="left" if i < 2 else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    console = Console(markup=False, highlight=False)
    console.print(title)
    console.print(table)
    for note in notes:
        console.print(note)
