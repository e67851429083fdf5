"""What the commands' arguments have in common."""

import argparse
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


def number(low: float, below: float | None = None) -> Callable[[str], float]:
    """An argparse type: a finite number from `low` on, below `below`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low - 1
        if not low <= value < (float("inf") if below is None else below):
            limit = f"finite number >= {low}" if below is None else f"number in [{low}, {below})"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {limit}")
        return value

    return parse
