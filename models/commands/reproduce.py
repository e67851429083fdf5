"""`nnfs reproduce`."""

import argparse
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

from tinygrad_nnfs.models.commands.arguments import CommandError, Commands, whole
from tinygrad_nnfs.models.commands.train import add_place, complete, given_place, measure, say, show
from tinygrad_nnfs.models.recipes import RECIPES, SPLITS

from tinygrad_nnfs import num_threads


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "reproduce",
        help="train by a recipe and record what it reaches",
        description="Train by a recipe, unchanged, and add its accuracy, time and confusion matrix "
        "to results.json and results.md in the folder docs. A run that was interrupted is gone on "
        "with by the same command. Without RECIPE: write results.md anew from results.json.",
        epilog="example: NNFS_DATA=~/data nnfs reproduce fashion-cnn --seed 1",
    )
    command.add_argument("recipe", nargs="?", choices=list(RECIPES), metavar="RECIPE")
    command.add_argument("--seed", type=whole(low=0), default=0, metavar="N", help="(default: 0)")
    command.add_argument(
        "--split", choices=SPLITS, default="standard", help="which images are tested"
    )
    command.add_argument(
        "--docs",
        type=Path,
        default=Path("docs"),
        metavar="DIR",
        help="where results.json is (default: %(default)s)",
    )
    add_place(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from tinygrad_nnfs.models import results
    from tinygrad_nnfs.models.evaluation import report
    from tinygrad_nnfs.models.runs import LATEST, Place, Run, versions

    console = Console()
    if not options.docs.is_dir():
        raise CommandError(f"{options.docs}: is no folder: give the docs of a clone by --docs DIR")
    if not options.recipe:
        results.render(options.docs)
        say(console, f"{options.docs / 'results.md'} is written anew")
        return
    name, seed, split = options.recipe, options.seed, options.split
    try:
        recipe = replace(RECIPES[name], split=split)
    except ValueError as error:  # a recipe with a teacher, split anew
        raise CommandError(f"{name}: {error}", status=2) from None
    command = f"nnfs reproduce {name} --seed {seed}" + f" --split {split}" * (split != "standard")
    place = given_place(options)
    folder = options.runs / f"{name}-{split}-seed{seed}"
    results.read(options.docs)  # rather now than after hours of training
    if (folder / LATEST).exists():
        training_run = Run.resume(folder, **place)
        if training_run.recipe != recipe:
            raise CommandError(f"{folder}: is by another version of the recipe: remove it")
    else:
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint
        training_run = Run.new(folder, name, recipe, seed, Place(**place))
    complete(training_run, console, again=shlex.join(["nnfs", *options.arguments]))
    measured = measure(training_run)
    dataset, device = training_run.dataset, training_run.place.device
    test = dataset.test_images, dataset.test_labels, dataset.class_names
    found = report(training_run.training.network, *test, device)
    results.record(
        options.docs,
        {
            "recipe": name,
            "seed": seed,
            "split": split,
            "train": measured["train"],
            "test": measured["test"],
            "confusion": found.confusion.tolist(),
            "epochs": measured["epochs"],
            "steps": measured["steps"],
            "seconds": measured["seconds"],
            "threads": num_threads(),
            "settings": vars(recipe),
            "command": command,
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        },
    )
    show(training_run, measured, console)
    say(console, f"Recorded in {options.docs / 'results.json'} and results.md.")
