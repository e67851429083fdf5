"""What the tape costs an op, forward and backward together, beyond the op's own functions."""

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks.timing import at_least, quartiles
from tinygrad_nnfs import OPS, Tensor
from tinygrad_nnfs.registry import Float, op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ops", type=at_least(1), default=1000, metavar="N", help="length of the chain"
    )
    parser.add_argument("--rounds", type=at_least(2), default=200, metavar="N")


def run(options: argparse.Namespace) -> None:
    """Chains of ops that compute nothing, against plain calls of the same functions and rules."""

    def unary(xp, x: Float):
        return x, lambda dy: dy

    def binary(xp, a: Float, b: Float):
        return a, lambda dy: dy, lambda dy: ready  # as if it were an array of the rule's own

    ready = np.ones(1, np.float32)
    one, two = op(unary), op(binary)
    del OPS["unary"], OPS["binary"]
    x = Tensor(np.ones(1, np.float32), requires_grad=True)

    def parameters() -> list[Tensor]:
        return [Tensor(ready, requires_grad=True) for _ in range(options.ops)]

    def taped_unary(_: list[Tensor]) -> None:
        y = x
        for _ in range(options.ops):
            y = one(y)
        y.backward()

    constant = Tensor(ready)

    def taped_binary_constant(_: list[Tensor]) -> None:
        y = x
        for _ in range(options.ops):
            y = two(y, constant)
        y.backward()

    def taped_binary(others: list[Tensor]) -> None:
        y = x
        for other in others:
            y = two(y, other)
        y.backward()

    def plain_unary(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            rule = unary(np, ready)[1]
            rule(ready)

    def plain_binary_constant(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            rule = binary(np, ready, ready)[1]
            rule(ready)

    def plain_binary(_: list[Tensor]) -> None:
        for _ in range(options.ops):
            _, da, db = binary(np, ready, ready)
            da(ready)
            db(ready)

    print(f"microseconds an op, forward + backward, in chains of {options.ops} ops\n")
    print(f"{'':30}{'with tape':>10}{'functions alone':>18}{'the tape':>10}{'fastest':>10}")
    for name, taped, plain in (
        ("one input", taped_unary, plain_unary),
        ("two inputs, one a constant", taped_binary_constant, plain_binary_constant),
        ("two inputs, one a parameter", taped_binary, plain_binary),
    ):
        with_tape, alone = interleaved_times(taped, plain, parameters, options)
        median = quartiles(with_tape)[1], quartiles(alone)[1]
        print(
            f"{name:30}{median[0]:10.2f}{median[1]:18.2f}{median[0] - median[1]:10.2f}"
            f"{min(with_tape) - min(alone):10.2f}"
        )
    print(
        "\nMedians of the rounds; fastest: the same difference between the fastest rounds, which is"
        "\nwhat the tape costs where nothing else disturbs the machine."
    )


def interleaved_times(
    first: Callable[[list[Tensor]], None],
    second: Callable[[list[Tensor]], None],
    prepare: Callable[[], list[Tensor]],
    options: argparse.Namespace,
) -> list[list[float]]:
    """Microseconds an op of both, round by round; `prepare` is not timed."""
    times: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        for i, call in enumerate((first, second)):
            prepared = prepare()
            start = time.perf_counter()
            call(prepared)
            times[i].append((time.perf_counter() - start) / options.ops * 1e6)
    return times
