"""Fair timing on a noisy machine: contenders take turns in one process, medians are compared."""

import argparse
import statistics
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def at_least(smallest: int) -> Callable[[str], int]:
    """An argparse type: an integer from `smallest` on."""

    def integer(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is less than {smallest}")
        return int(text)

    return integer


def fraction(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return float(text)


def warm_up(calls: int) -> int:
    """How many uncounted calls to make before `calls` counted ones."""
    return max(1, 3 * calls // 10)


def interleave(
    contenders: dict[Name, Callable[[], object]], rounds: int, calls: int, warm_up: int
) -> dict[Name, list[float]]:
    """Seconds of each counted call, by contender.

    In each round every contender makes `warm_up` uncounted calls, which give it back the caches
    and let the threads of the one before it fall asleep, and then `calls` counted ones.
    """
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            for _ in range(warm_up):
                call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return times


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(times, n=4)
    return low, median, high


def median_ratio(ours: list[float], theirs: list[float], calls: int) -> float:
    """The median over rounds of (our median in the round / their median in the round).

    Taken round by round, since the machine's speed drifts from one minute to the next.
    """
    medians = [
        [statistics.median(times[i : i + calls]) for i in range(0, len(times), calls)]
        for times in (ours, theirs)
    ]
    return statistics.median(a / b for a, b in zip(*medians, strict=True))


def in_ms(times: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, under the keys of a report's rows."""
    low, median, high = (1e3 * t for t in quartiles(times))
    return {"median_ms": median, "lower_quartile_ms": low, "upper_quartile_ms": high}
