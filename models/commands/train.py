"""`nnfs train`."""

import argparse
import importlib
import json
import shlex
import signal
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad_nnfs.models.commands.arguments import (
    CommandError,
    Commands,
    add_data_folder,
    number,
    whole,
)
from tinygrad_nnfs.models.evaluation import evaluate
from tinygrad_nnfs.models.networks import NETWORKS
from tinygrad_nnfs.models.recipes import DEFAULTS, RECIPES, Recipe
from tinygrad_nnfs.models.training import Progress, TrainingError

from tinygrad_nnfs import backend, data
from tinygrad_nnfs.checkpoint import CheckpointError

if TYPE_CHECKING:
    from rich.console import Console
    from tinygrad_nnfs.models.runs import Run


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a network and report its train and test accuracy",
        description="Train a network, or by a recipe (`nnfs recipes` lists them), and report its "
        "accuracy on training and test images. Without arguments: the MLP on scikit-learn's "
        "digits, which needs no download. Progress shows means over the epoch so far, with "
        "dropout; the table at the end is measured after. The run is kept in a folder of its own; "
        "after an interruption --resume goes on to the very result that it would have had.",
        epilog="example: NNFS_DATA=~/data nnfs train cnn --data fashion-mnist --epochs 3",
    )
    command.add_argument(
        "what",
        nargs="?",
        type=network_or_recipe,
        metavar="mlp|cnn|RECIPE",
        help="(default: mlp)",
    )
    command.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in RUN")
    command.add_argument(
        "--seed",
        type=whole(low=0),
        metavar="N",
        help="of initial weights, order of images, augmentation and dropout (default: 0)",
    )
    add_place(command)
    command.add_argument(
        "--json", action="store_true", help="print the result as JSON; progress goes to stderr"
    )
    command.add_argument(
        "--save-every",
        type=number(low=0),
        default=30.0,
        metavar="SECONDS",
        help="time between checkpoints (default: %(default)g)",
    )
    command.add_argument(
        "--tensorboard", action="store_true", help="also write each epoch for TensorBoard"
    )
    recipe = command.add_argument_group("changes to the recipe (`nnfs recipes` shows its values)")
    for field in fields(Recipe):
        if field.name != "network":
            add_setting(recipe, field.name, field.default, **field.metadata)
    command.set_defaults(run=run)


def add_place(command: argparse.ArgumentParser) -> None:
    """The arguments that say where a training happens."""
    add_data_folder(command)
    command.add_argument("--device", choices=backend.DEVICES, help="(default: cpu)")
    command.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the folders of runs are (default: %(default)s)",
    )


def given_place(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_place` say, for `runs.Place`."""
    given = {name: getattr(options, name) for name in ("device", "data_dir", "offline")}
    return {name: value for name, value in given.items() if value is not None}


def add_setting(group: Any, name: str, default: Any, meaning: str, **limits: Any) -> None:
    """The flag of a setting of a recipe. Not given, it is None."""
    how: dict[str, Any] = {"dest": name, "default": None, "help": meaning}
    if isinstance(default, bool):
        how["action"] = argparse.BooleanOptionalAction
    elif isinstance(default, str):
        how |= limits
        how["metavar"] = "|".join(choice for choice in limits["choices"] if choice)  # "": none
    elif isinstance(default, int):
        how |= {"type": whole(**limits), "metavar": "N"}
    else:
        how |= {"type": number(**limits), "metavar": "X"}
    group.add_argument("--" + name.replace("_", "-"), **how)


def network_or_recipe(name: str) -> str:
    """An argparse type: the name of a network or of a recipe."""
    if name in NETWORKS or name in RECIPES:
        return name
    hint = f" but a data set: nnfs train --data {name}" if name in data.CLASS_NAMES else ""
    raise argparse.ArgumentTypeError(
        f"{name!r} is not a network{hint or ' (mlp, cnn) or a recipe; is an option misspelt?'}"
    )


def chosen_recipe(options: argparse.Namespace) -> tuple[str, Recipe]:
    """The name of the run, and its recipe with the changes that flags make."""
    what = options.what or "mlp"
    recipe = RECIPES.get(what) or DEFAULTS[what, options.data or "digits"]
    given = {f.name: getattr(options, f.name, None) for f in fields(Recipe)}
    try:
        recipe = replace(recipe, **{name: v for name, v in given.items() if v is not None})
    except ValueError as error:  # settings that do not fit together
        raise CommandError(str(error), status=2) from None
    return what if what in RECIPES else f"{what}-{recipe.data}", recipe


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from tinygrad_nnfs.models.runs import Place, Run

    console = Console(stderr=options.json)
    if options.tensorboard:
        importlib.import_module("tensorboardX")  # if it is missing, before there is a folder
    place = given_place(options)
    if options.resume:
        refuse_changes(options)
        training_run = Run.resume(options.resume, **place)
    else:
        name, recipe = chosen_recipe(options)
        folder = options.runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        training_run = Run.new(folder, name, recipe, options.seed or 0, Place(**place))
    again = shlex.join(["nnfs", "train", "--resume", str(training_run.folder)])
    complete(training_run, console, again, options.save_every, options.tensorboard)
    results = measure(training_run)
    if options.json:
        print(json.dumps(results))
    else:
        show(training_run, results, console)


def refuse_changes(options: argparse.Namespace) -> None:
    names = ["what", "seed", *(f.name for f in fields(Recipe) if f.name != "network")]
    given = [name for name in names if getattr(options, name) is not None]
    if given:
        flags = ", ".join(
            options.what if name == "what" else "--" + name.replace("_", "-") for name in given
        )
        reason = f"--resume takes everything from the run: leave out {flags}"
        raise CommandError(reason, status=2)


def complete(
    training_run: "Run",
    console: "Console",
    again: str,
    save_every: float = 30,
    tensorboard: bool = False,
) -> None:
    """Train to the end, showing progress. `again` is the command to go on by, if it is stopped."""
    from tinygrad_nnfs.models.progress import Display
    from tinygrad_nnfs.models.runs import SignalError, versions

    training, recipe = training_run.training, training_run.recipe
    epochs, count = recipe.epochs, len(training.images)
    rule = f"momentum {recipe.momentum:g}" if recipe.optimizer == "sgd" else recipe.optimizer
    say(
        console,
        f"{recipe.network} on {recipe.data}: {count:,} training images, {epochs} "
        f"epoch{'s' * (epochs > 1)}, batch {recipe.batch_size}, lr {recipe.lr:g}, {rule}, "
        f"seed {training.seed}, {training.device}",
    )
    if training_run.finished:
        say(console, f"{training_run.folder} is trained already")
    elif training.at.step:
        say(console, f"going on with {training_run.folder} after step {training.at.step:,}")
    if training_run.trained_with != versions():
        say(console, "begun with other versions: results may differ in the last bits")
    done = training.at.epoch * count + training.at.samples
    # no warnings of overflow between the lines of progress: training watches the loss
    with (
        np.errstate(all="ignore"),
        Events(training_run.folder) if tensorboard else nullcontext() as events,
        Display(console, epochs, count, done) as display,
    ):

        def watch(progress: Progress) -> None:
            display.update(progress)
            if events and progress.end_of_epoch:
                events.write(progress)

        try:
            training_run.train(watch, save_every)
        except SignalError as error:
            stopped = f"stopped by {signal.Signals(error.number).name} and saved"
            status = 128 + error.number  # as shells count it
            raise CommandError(f"{stopped}; to go on: {again}", status) from None
        except (CheckpointError, OSError) as error:
            kept = f"the checkpoint of step {training_run.saved_step:,} is whole"
            raise CommandError(f"{error}; {kept}; to go on: {again}") from None
        except TrainingError as error:
            kept = f"the checkpoint of step {training_run.saved_step:,}"
            raise CommandError(f"{error}; {kept} is kept in {training_run.folder}") from None
    if training.at.stopped:
        at = training.at
        say(console, f"stopped after {at.epoch} epochs, {at.step:,} steps: {at.stopped}")


class Events:
    """The file that TensorBoard reads, in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()

    def write(self, progress: Progress) -> None:
        for name in ("loss", "accuracy", "lr", "validation_loss", "validation_accuracy"):
            value = getattr(progress, name)
            if value is not None:
                self.writer.add_scalar(name, value, progress.epoch)


def measure(training_run: "Run") -> dict[str, Any]:
    """How good the trained network is, and where it is kept."""
    training, dataset = training_run.training, training_run.dataset
    results: dict[str, Any] = {
        "run": str(training_run.folder),
        "epochs": training.at.epoch,
        "steps": training.at.step,
        "seconds": round(training_run.seconds, 1),
    }
    for part in ("train", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        loss, accuracy = evaluate(training.network, images, labels, training.device)
        results[part] = {"images": len(images), "loss": loss, "accuracy": accuracy}
    return results


def show(training_run: "Run", results: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    recipe = training_run.recipe
    table = Table("", "images", "loss", "accuracy", title=f"{recipe.network}, {recipe.data}")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in ("train", "test"):
        row = results[part]
        table.add_row(part, f"{row['images']:,}", f"{row['loss']:.4f}", f"{row['accuracy']:.2%}")
    console.print(table)
    folder = results["run"]
    say(console, f"Trained in {results['seconds']:.1f} s, kept in {folder}.")
    say(console, f"Next: nnfs evaluate {folder}{other_training(recipe)}")


def other_training(recipe: Recipe) -> str:
    """What else to try."""
    if recipe.data == "digits":
        other = "cnn" if recipe.network == "mlp" else "mlp"
        return f", nnfs train {other}, or --data fashion-mnist for real images"
    if recipe.network == "mlp":
        return f", or nnfs train cnn --data {recipe.data}"
    return ""


def say(console: "Console", line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
