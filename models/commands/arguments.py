"""What the commands' arguments have in common."""

import argparse
import math
import re
from collections.abc import Callable
from typing import cast

from tinygrad_nnfs.models.recipes import wrong

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
