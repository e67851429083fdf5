"""What the commands' arguments have in common."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from tinygrad_nnfs.models.recipes import wrong

from tinygrad_nnfs import data

Commands = argparse._SubParsersAction  # what `add` of each command is given


class CommandError(Exception):
    """A command cannot do what was asked; the message is the one line that the user sees."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def whole(**limits: int) -> Callable[[str], int]:
    """An argparse type: an integer within `limits`, as of `recipes.setting`."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch("-?[0-9]{1,30}", text) else None
        expected = wrong(value, int, limits)
        if expected:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return cast(int, value)

    return parse


def number(**limits: float) -> Callable[[str], float]:
    """An argparse type: a number within `limits`, as of `recipes.setting`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        expected = wrong(value, float, limits) if math.isfinite(value) else "a finite number"
        if expected:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return parse


def add_network(command: argparse.ArgumentParser) -> None:
    """The arguments that say which network to look at, and with how many images."""
    command.add_argument(
        "network", metavar="NETWORK|FILE|RUN", help="mlp, cnn, a model file or a run's folder"
    )
    command.add_argument(
        "--batch",
        type=whole(low=1, high=65_536),
        default=64,
        metavar="N",
        help="images (default: %(default)s)",
    )


def add_data_folder(command: argparse.ArgumentParser) -> None:
    """The arguments that say where data sets are. Not given, they are None."""
    command.add_argument(
        "--data-dir", metavar="DIR", help="where the data sets are (default: $NNFS_DATA)"
    )
    command.add_argument(
        "--offline", action="store_true", default=None, help="never download a data set"
    )


def data_name(given: str | None, metadata: Mapping[str, str], path: Path) -> str:
    """The data set to use: the one given, or else the one that the model file names."""
    name = given or metadata.get("data")
    names = ", ".join(data.CLASS_NAMES)
    if name is None:
        raise CommandError(f"{path}: does not say what data it is for: add --data NAME ({names})")
    if name not in data.CLASS_NAMES:
        raise CommandError(
            f"{path}: is for data called {name!a:.60}, unknown here: add --data NAME ({names})"
        )
    return name
