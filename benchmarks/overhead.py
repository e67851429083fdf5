"""What the tape costs an op, forward and backward together, without the op's own arithmetic."""

import argparse
import time

import numpy as np

from benchmarks.timing import quartiles
from tinygrad_nnfs import OPS, Tensor
from tinygrad_nnfs.tensor import Float, op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", type=int, default=1000, metavar="N", help="length of the chain")
    parser.add_argument("--rounds", type=int, default=200, metavar="N")


def run(options: argparse.Namespace) -> None:
    @op
    def unary(xp, x: Float):
        return x, lambda dy: dy

    @op
    def binary(xp, a: Float, b: Float):
        return a, lambda dy: dy, lambda dy: dy

    del OPS["unary"], OPS["binary"]
    print(f"the tape's cost of one op, from chains of {options.ops} ops that compute nothing\n")
    print(f"{'':30}{'median us':>10}{'quartiles':>16}")
    x = Tensor(np.float32([1]), requires_grad=True)

    def build(step):
        y = x
        for _ in range(options.ops):
            y = step(y)
        return y

    for name, step in (("one input", unary), ("two inputs, both tracked", lambda y: binary(y, x))):
        times = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            build(step).backward()
            times.append((time.perf_counter() - start) / options.ops * 1e6)
        low, median, high = quartiles(times)
        print(f"{name:30}{median:10.2f}{f'{low:.2f}-{high:.2f}':>16}")
