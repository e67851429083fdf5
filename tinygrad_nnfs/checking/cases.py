"""Cases: calls of an op that it is checked on, and `Draw`, which an op's samples draw them from."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinygrad_nnfs.registry import Op

T = TypeVar("T")
Arrays = Sequence[Any]  # numpy arrays, and numbers or None where an op takes them


class CheckError(AssertionError):
    """An op or a function does not do what it should; the message says where."""


def is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype.kind == "f"


class Case(NamedTuple):
    """One call of an op: positional inputs and keyword parameters."""

    inputs: tuple[Any, ...]
    params: dict[str, Any]

    def __str__(self) -> str:
        inputs = [
            f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else repr(x) for x in self.inputs
        ]
        return ", ".join(inputs + [f"{name}={value!r}" for name, value in self.params.items()])


class Draw:
    """What an op's samples draw their cases from: sizes and choices at random, values to fit.

    Values are float64, half of the time with one decimal only, which is easier to read. Everything
    follows from `integer`, so that a subclass can draw it elsewhere (`tinygrad_nnfs.testing` lets
    hypothesis do it).
    """

    gap = 0.25  # `distinct` values lie this far apart, and `away_from` keeps this distance

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.decimals = self.choice([1, 15])

    def integer(self, smallest: int, largest: int) -> int:
        """An integer; both ends are possible."""
        return int(self.random.integers(smallest, largest + 1))

    def boolean(self) -> bool:
        return bool(self.integer(0, 1))

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def sizes(self, count: int, *, smallest: int = 1, largest: int = 4) -> tuple[int, ...]:
        """`count` sizes of axes."""
        return tuple(self.integer(smallest, largest) for _ in range(count))

    def shape(self, *, smallest: int = 0) -> tuple[int, ...]:
        """A shape of 0 to 4 axes, each of `smallest` to 4 elements; seldom is one of them 0."""
        sizes = self.sizes(self.integer(0, 4), smallest=max(smallest, 1))
        if sizes and smallest == 0 and self.integer(0, 7) == 7:
            empty = self.integer(0, len(sizes) - 1)
            return tuple(0 if i == empty else n for i, n in enumerate(sizes))
        return sizes

    def broadcastable(self, count: int) -> list[tuple[int, ...]]:
        """Shapes that broadcast to one: some without leading axes, some with axes of size 1."""
        full = self.shape()
        shapes = []
        for _ in range(count):
            kept = full[self.integer(0, len(full)) :] if self.boolean() else full
            shapes.append(tuple(1 if self.integer(0, 2) == 0 else n for n in kept))
        return shapes

    def axes(self, shape: tuple[int, ...]) -> int | tuple[int, ...] | None:
        """Axes to reduce a `shape` over: all (None), one or several."""
        if not shape or self.boolean():
            return None
        if self.boolean():
            return self.integer(-len(shape), len(shape) - 1)
        return tuple(i for i in range(len(shape)) if self.boolean())

    def permutation(self, n: int) -> tuple[int, ...]:
        """0..n-1 in some order."""
        left = list(range(n))
        return tuple(left.pop(self.integer(0, len(left) - 1)) for _ in range(n))

    def normal(self, *shape: int) -> Any:
        """Standard normal values, none of them 0."""
        x = np.round(self.random.standard_normal(shape), self.decimals)
        return np.asarray(np.where(x == 0, 0.1, x))

    def positive(self, *shape: int) -> Any:
        """Values in 0.5..2.5."""
        return np.asarray(np.round(self.random.random(shape) * 2 + 0.5, self.decimals))

    def away_from(self, kink: float, *shape: int) -> Any:
        """Values on both sides of `kink` that keep a distance from it."""
        x = self.normal(*shape)
        return np.asarray(kink + x + np.where(x < 0, -self.gap, self.gap))

    def distinct(self, *shape: int) -> Any:
        """Values no two of which are near each other."""
        size = int(np.prod(shape))
        return (self.random.permutation(size).reshape(shape) - size // 2) * self.gap

    def tied(self, *shape: int) -> Any:
        """Values many of which are equal, the others not near each other; some are 0."""
        return self.random.integers(-1, 2, shape) * self.gap

    def booleans(self, *shape: int) -> Any:
        return np.asarray(self.random.random(shape) < 0.5)

    def labels(self, count: int, classes: int) -> Any:
        """`count` class indices."""
        return self.random.integers(0, classes, count)

    def case(self, *inputs: Any, **params: Any) -> Case:
        arrays = (np.asarray(x) if isinstance(x, np.generic | list) else x for x in inputs)
        return Case(tuple(arrays), params)


def cases_of(op: Op[...], draw: Draw) -> Iterator[Case]:
    """The cases that the op's samples make of one draw."""
    if not hasattr(op, "sampler"):
        raise CheckError(f"{op!r} is not an op: decorate it with @op")
    if op.sampler is None:
        raise CheckError(f"{op.__name__} has no samples: add some with @{op.__name__}.samples")
    cases = op.sampler(draw)
    if not isinstance(cases, Iterator):
        raise CheckError(f"the samples of {op.__name__} must yield cases: yield draw.case(...)")
    while True:
        try:
            case = next(cases)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"in the samples of {op.__name__}")
            raise
        if not isinstance(case, Case):
            raise CheckError(
                f"the samples of {op.__name__} must yield draw.case(...), not {case!r}"
            )
        yield case
