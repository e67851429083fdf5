"""What the commands' arguments have in common."""

import argparse
import math
from collections.abc import Callable

Commands = argparse._SubParsersAction  # what `add` of each command is given


class CommandError(Exception):
    """A command cannot do what was asked; the message is the one line that the user sees."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def whole(smallest: int) -> Callable[[str], int]:
    """An argparse type: an integer from `smallest` on."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= {smallest}")
        return int(text)

    return parse


def number(
    low: float = 0, below: float = math.inf, high: float = math.inf
) -> Callable[[str], float]:
    """An argparse type: a finite number >= low, < below and <= high."""
    expected = f"number in [{low}, {high}]" if high < math.inf else f"number in [{low}, {below})"
    if below == high == math.inf:
        expected = f"finite number >= {low}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value < below and value <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {expected}")
        return value

    return parse
