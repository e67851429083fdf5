"""`nnfs train`."""

import argparse
import time

import numpy as np
from tinygrad_nnfs.models.commands.arguments import CommandError, Commands, number, whole
from tinygrad_nnfs.models.networks import NETWORKS

from tinygrad_nnfs import backend, data, manual_seed, nn, optim, use_blas_threads

LEARNING_RATE = 0.02
EPOCHS = {  # the digits are few: more epochs take less time
    ("mlp", "digits"): 60,
    ("mlp", "mnist"): 20,
    ("mlp", "fashion-mnist"): 20,
    ("cnn", "digits"): 10,
    ("cnn", "mnist"): 5,
    ("cnn", "fashion-mnist"): 10,
}


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a network and report its train and test accuracy",
        description="Train a network and report its accuracy on training and test images. "
        "Without arguments: the MLP on scikit-learn's digits, which needs no download. Progress "
        "shows means over the epoch so far, with dropout; the table at the end is measured after.",
        epilog="example: NNFS_DATA=~/data nnfs train cnn --data fashion-mnist --epochs 3",
    )
    command.add_argument(
        "network", nargs="?", type=network, default="mlp", metavar="mlp|cnn", help="(default: mlp)"
    )
    command.add_argument(
        "--data",
        choices=list(data.CLASS_NAMES),
        default="digits",
        help="the images (default: %(default)s)",
    )
    command.add_argument(
        "--data-dir", metavar="DIR", help="where the IDX files are (default: $NNFS_DATA)"
    )
    command.add_argument(
        "--epochs",
        type=whole(1),
        metavar="N",
        help="passes over the training images (default: by network and data)",
    )
    command.add_argument(
        "--batch-size",
        type=whole(1),
        default=64,
        metavar="N",
        help="images in a training step (default: %(default)s)",
    )
    command.add_argument(
        "--lr",
        type=number(0),
        default=LEARNING_RATE,
        metavar="RATE",
        help="learning rate (default: %(default)s)",
    )
    command.add_argument(
        "--momentum",
        type=number(0, 1),
        default=0.9,
        metavar="MU",
        help="share of the last update in the next one, below 1 (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="of initial weights, order of images and dropout (default: %(default)s)",
    )
    command.add_argument(
        "--device", choices=backend.DEVICES, default="cpu", help="(default: %(default)s)"
    )
    command.set_defaults(run=run)


def network(name: str) -> str:
    """An argparse type: the name of a network."""
    if name in NETWORKS:
        return name
    hint = f" but a data set: nnfs train --data {name}" if name in data.CLASS_NAMES else ""
    raise argparse.ArgumentTypeError(
        f"{name!r} is not a network{hint or ' (mlp, cnn); is an option misspelt?'}"
    )


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from tinygrad_nnfs.models.evaluation import evaluate
    from tinygrad_nnfs.models.progress import Display
    from tinygrad_nnfs.models.training import train

    epochs = options.epochs or EPOCHS[options.network, options.data]
    lr = options.lr
    dataset = data.load(options.data, options.data_dir)
    try:
        manual_seed(options.seed)
        network = NETWORKS[options.network]().to(options.device)
        use_blas_threads(not any(isinstance(m, nn.Conv2d) for m in network.modules()))
    except (RuntimeError, ValueError) as error:  # no such device, a seed out of range
        raise CommandError(str(error)) from None

    console = Console()
    settings = f"batch {options.batch_size}, lr {lr:g}, momentum {options.momentum:g}"
    console.print(
        f"{options.network} on {options.data}: {len(dataset.train_images):,} training images, "
        f"{epochs} epoch{'s' * (epochs > 1)}, {settings}, seed {options.seed}, {options.device}",
        highlight=False,
        soft_wrap=True,
    )
    start = time.perf_counter()
    steps = train(
        network,
        optim.SGD(network.parameters(), lr=lr, momentum=options.momentum),
        dataset,
        epochs=epochs,
        batch_size=options.batch_size,
        schedule=optim.Constant(lr),
        seed=options.seed,
        device=options.device,
    )
    # no warnings of overflow between the lines of progress: `train` watches the loss
    with np.errstate(all="ignore"), Display(console, epochs, len(dataset.train_images)) as display:
        for progress in steps:
            display.update(progress)
    seconds = time.perf_counter() - start

    table = Table("", "images", "loss", "accuracy", title=f"{options.network}, {options.data}")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in ("train", "test"):
        images = getattr(dataset, f"{part}_images")
        labels = getattr(dataset, f"{part}_labels")
        loss, accuracy = evaluate(network, images, labels, options.device)
        table.add_row(part, f"{len(images):,}", f"{loss:.4f}", f"{accuracy:.2%}")
    console.print(table)
    console.print(
        f"Trained in {seconds:.1f} s. {next_step(options)}", highlight=False, soft_wrap=True
    )


def next_step(options: argparse.Namespace) -> str:
    """What to try next."""
    if options.data == "digits":
        other = "cnn" if options.network == "mlp" else "mlp"
        return f"Next: nnfs train {other}, or --data fashion-mnist for real images."
    if options.network == "mlp":
        return f"Next: nnfs train cnn --data {options.data}"
    return "Next: nnfs train --help lists what can be changed."
