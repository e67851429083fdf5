"""`nnfs graph`."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad_nnfs.models.commands.arguments import CommandError, Commands, add_network
from tinygrad_nnfs.models.networks import find

from tinygrad_nnfs import Tensor, nn, ops, profile

STEPS = 5  # of which the fastest is shown
SUFFIXES = (".svg", ".png", ".pdf", ".dot")


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "graph",
        help="draw the graph of a network",
        description="Draw the graph of a network and its loss on a batch of random images, to an "
        "SVG, PNG or PDF file, or as the source for Graphviz.",
        epilog="example: nnfs graph cnn --stats -o cnn.svg",
    )
    add_network(command)
    command.add_argument(
        "-o",
        "--output",
        type=picture_name,
        required=True,
        metavar="FILE",
        help=f"the file to write, or to replace: its suffix is {', '.join(SUFFIXES)}",
    )
    command.add_argument(
        "--detail",
        choices=("ops", "parameters", "tensors"),
        default="parameters",
        help="ops alone, with parameters and other inputs, or every tensor (default: %(default)s)",
    )
    command.add_argument(
        "--stats",
        action="store_true",
        help="run training steps; colour the ops by the time in the fastest, and show mean and std "
        "of what they make",
    )
    command.set_defaults(run=run)


def picture_name(name: str) -> Path:
    """An argparse type: a file that a picture can be written to."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{name!r} must end in one of {', '.join(SUFFIXES)}")
    return path


def run(options: argparse.Namespace) -> None:
    from tinygrad_nnfs.graph import draw, save
    from tinygrad_nnfs.graph.rendering import GraphError

    network = find(options.network).train()
    if options.stats:
        # the first step compiles kernels, and another program may be in the way of any
        steps = [_step(network, options.batch) for _ in range(STEPS)]
        loss, stats = min(steps, key=lambda step: step[1].elapsed)
    else:
        loss, stats = _loss(network, options.batch), None
    try:
        save(draw(loss, detail=options.detail, stats=stats), options.output)
    except GraphError as error:
        raise CommandError(str(error)) from None
    print(f"written: {options.output}")


def _step(network: nn.Module, batch: int) -> tuple[Tensor, profile]:
    for parameter in network.parameters():
        parameter.grad = None
    with profile(statistics=True) as p:
        loss = _loss(network, batch)
        loss.backward()
    return loss, p


def _loss(network: nn.Module, batch: int) -> Tensor:
    """The loss on random images."""
    random = np.random.default_rng(0)
    images: Any = random.random((batch, 1, 28, 28), np.float32)
    return ops.softmax_cross_entropy(network(images), random.integers(0, 10, batch))
