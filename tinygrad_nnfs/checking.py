"""Is a backward rule right? Gradient checks for functions and for ops, on numpy alone.

`gradcheck(fn, *inputs)` checks any differentiable function of Tensors. `check_op(op)` draws cases
from the op's own samples and holds it to everything that this library asks of an op; `CHECKS` names
them one by one. Every failure is a CheckError, which is an AssertionError.
"""

import gc
import inspect
import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.derivatives import STEP, complex_slope, roughness, slope
from tinygrad_nnfs.kernels import threads
from tinygrad_nnfs.registry import Index, Op, captured_memory, check_result, memory_of
from tinygrad_nnfs.reproduction import call_of, literal
from tinygrad_nnfs.tensor import Tensor

T = TypeVar("T")
Arrays = Sequence[Any]  # numpy arrays, and numbers or None where an op takes them

# |found - expected| <= TOLERANCE |gradient| |direction|
TOLERANCE = 1e-7  # for central differences
EXACT = 1e-11  # for the complex step
REJECTIONS = 8  # of directions in which an input meets kinks, until it is given up


class CheckError(AssertionError):
    """An op or a function does not do what it should; the message says where."""


# -- cases -----------------------------------------------------------------------------------------


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
    for case in cases:
        if not isinstance(case, Case):
            raise CheckError(
                f"the samples of {op.__name__} must yield draw.case(...), not {case!r}"
            )
        yield case


# -- gradients against finite differences ----------------------------------------------------------


def gradcheck(
    fn: Callable[..., Tensor], *inputs: Any, seed: int = 0, directions: int = 3
) -> dict[int, float]:
    """Check the gradients of `fn(*Tensors) -> Tensor` against central differences in float64.

    `inputs` are arrays, numbers, lists or Tensors. The floating ones are converted to float64 and
    checked along random `directions`, integers are passed on as they are. `fn` must compute in
    float64 too (`network.astype("float64")`) and be deterministic. Where it has a kink within 0.002
    of an input, shorter directions are tried, then points nearby.

    Returns the worst relative error by the input's number. Raises CheckError with the input, the
    place, both values and code that shows it again; also if an input meets kinks everywhere, so
    that nothing can be said.
    """
    if directions < 1:
        raise ValueError(f"gradcheck: directions must be an integer >= 1, found {directions}")
    given = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
    arrays = [np.array(x, np.float64) if np.asarray(x).dtype.kind == "f" else x for x in given]
    if not any(map(_is_floating, arrays)):
        raise TypeError("gradcheck: there is nothing to check, for no input is floating-point")

    def leaf(x: Any, requires_grad: bool) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        # a copy: the function may change what it is given
        return Tensor(x.copy(), requires_grad=requires_grad and _is_floating(x))

    def forward(arrays: Arrays) -> Any:
        y = fn(*(leaf(x, requires_grad=False) for x in arrays))
        if not isinstance(y, Tensor) or y.dtype.kind != "f":
            found = f"one of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"gradcheck: the function must return a floating Tensor, found {found}")
        return y.data

    def gradients(arrays: Arrays, dy: Any) -> list[Any]:
        leaves = [leaf(x, requires_grad=True) for x in arrays]
        y = fn(*leaves)
        if y.requires_grad:
            y.backward(dy)
        return [
            None
            if not _is_floating(array)
            else np.zeros(array.shape)
            if x.grad is None
            else x.grad.data
            for x, array in zip(leaves, arrays, strict=True)
        ]

    name = getattr(fn, "__name__", type(fn).__name__)
    try:
        if not np.isfinite(forward(arrays)).all():
            raise CheckError(f"{name}: the result is not finite for these inputs: choose others")
        random = np.random.default_rng(seed)
        comparison = _Comparison(name, forward, gradients, random, directions, hidden_kinks=True)
        errors = comparison.run(arrays)
        unknown = [i for i, x in enumerate(arrays) if _is_floating(x) and x.size]
        unknown = [i for i in unknown if i not in errors]
        if unknown:
            raise CheckError(
                f"{name}: nothing can be said of input {unknown[0]}: the function has kinks or "
                "jumps wherever it was tried, or it does not compute in float64, or not the same "
                "each time"
            )
    except CheckError as error:
        options = f", seed={seed}, directions={directions}"
        code = call_of("gradcheck", fn, [literal(x) for x in arrays], options)
        raise CheckError(f"{error}\n{code}") from None
    return errors


def _is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype.kind == "f"


class _Comparison:
    """Holds gradients to the slope of sum(dy forward(x)) along random directions of each input.

    `hidden_kinks`: the function may add up several kinks that it has at one point, relu(x) -
    relu(-x), say, which is smooth. Then it is wrong only if it is wrong nearby as well.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[[Arrays], Any],
        gradients: Callable[[Arrays, Any], Sequence[Any]],
        random: np.random.Generator,
        directions: int = 3,
        hidden_kinks: bool = False,
    ) -> None:
        self.name, self.forward, self.gradients = name, forward, gradients
        self.random, self.directions, self.hidden_kinks = random, directions, hidden_kinks

    def run(self, arrays: Arrays) -> dict[int, float]:
        """The worst relative error by each input of which something can be said."""
        y = np.asarray(self.forward(arrays))
        if y.dtype != np.float64:
            return {}  # a comparison, say; or differences would show rounding and little else
        self.dy = np.asarray(self.random.standard_normal(y.shape))
        # what rounding alone may do to the differences
        noise = 100 * np.finfo(np.float64).eps * float((abs(self.dy) * (abs(y) + 1)).sum())
        self.noise = noise / STEP
        found = self.gradients(arrays, self.dy)
        inputs = [i for i, gradient in enumerate(found) if gradient is not None and arrays[i].size]
        errors = {i: self._input(i, arrays, found[i]) for i in inputs}
        if not self.hidden_kinks:
            self._all_together(arrays, {i: found[i] for i in inputs})
        return {i: error for i, error in errors.items() if error is not None}

    def _slope(self, along: Callable[[float], Any]) -> float:
        return float((self.dy * slope(along)).sum())

    def _roughness(self, along: Callable[[float], Any]) -> float:
        return float((abs(self.dy) * roughness(along)).sum())

    def _along(self, arrays: Arrays, directions: Mapping[int, Any]) -> Callable[[float], Any]:
        def moved(t: float) -> Any:
            return self.forward(
                [x + t * directions[i] if i in directions else x for i, x in enumerate(arrays)]
            )

        return moved

    def _input(self, i: int, arrays: Arrays, gradient: Any) -> float | None:
        """The worst relative error by input i; None if it was all kinks."""
        worst, checked, rejected, suspect = 0.0, 0, 0, None
        origin = arrays
        while checked < self.directions:
            if rejected > REJECTIONS / 2:  # perhaps the input itself lies on a kink
                arrays = [self._nearby(x) if j == i else x for j, x in enumerate(origin)]
                gradient = self.gradients(arrays, self.dy)[i]
            reach = 0.5**rejected  # perhaps there is a kink not far off
            direction = np.asarray(self.random.uniform(-reach, reach, arrays[i].shape))
            along = self._along(arrays, {i: direction})
            difference = abs(float((gradient * direction).sum()) - self._slope(along))
            size = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
            error = difference / (size + self.noise / TOLERANCE) if difference else 0.0
            if error <= TOLERANCE:
                worst, checked = max(worst, error), checked + 1
                continue
            if not difference <= self._roughness(along):
                if self.hidden_kinks and suspect is None and math.isfinite(difference):
                    suspect, rejected, checked = (arrays, gradient), REJECTIONS // 2 + 1, 0
                    continue
                for at in filter(None, (suspect, (arrays, gradient))):
                    where = self._worst_element(i, *at)
                    if where:
                        raise CheckError(f"{self.name}: {where}")
            rejected += 1
            if rejected >= REJECTIONS:
                return worst if checked else None
        return worst

    def _nearby(self, x: Any) -> Any:
        """x moved a little, on this side of 0."""
        return x + self.random.uniform(-0.05, 0.05, x.shape) * np.where(x == 0, 1, abs(x))

    def _all_together(self, arrays: Arrays, gradients: Mapping[int, Any]) -> None:
        """Equal elements stay equal if all of them move alike: there, a tie is no kink."""
        along = self._along(arrays, {i: np.ones(arrays[i].shape) for i in gradients})
        found = sum(float(gradient.sum()) for gradient in gradients.values())
        expected = self._slope(along)
        size = sum(float(abs(gradient).sum()) for gradient in gradients.values())
        if abs(found - expected) <= TOLERANCE * size + self.noise:
            return
        if not abs(found - expected) <= self._roughness(along):
            raise CheckError(
                f"{self.name}: all gradients add up to {found:.9g}, finite differences give "
                f"{expected:.9g} where all inputs move alike: do equal elements share their "
                "gradient?"
            )

    def _worst_element(self, i: int, arrays: Arrays, gradient: Any) -> str | None:
        """What is wrong at the element that is furthest off; None if kinks may explain it all."""
        shape = arrays[i].shape
        expected = np.array(gradient)
        for place in self._suspects(i, arrays, gradient):
            along = self._along(arrays, {i: _unit(shape, place)})
            found = self._slope(along)
            difference = abs(gradient[place] - found)
            small = TOLERANCE * abs(found) + self.noise
            if not difference <= small and not difference <= self._roughness(along):
                expected[place] = found
        if np.array_equal(expected, gradient):
            return None
        return _worst_element(i, arrays[i], gradient, expected, "finite differences give")

    def _suspects(self, i: int, arrays: Arrays, gradient: Any) -> Iterator[tuple[int, ...]]:
        """The places of an input's elements; of many, those of the half that is further off."""
        shape = arrays[i].shape
        places = np.arange(arrays[i].size)
        while len(places) > 500:
            halves = np.array_split(places, 2)
            off = []
            for half in halves:
                direction = np.zeros(arrays[i].size)
                direction[half] = self.random.uniform(-1, 1, len(half))
                direction = direction.reshape(shape)
                found = float((gradient * direction).sum())
                off.append(abs(found - self._slope(self._along(arrays, {i: direction}))))
            places = halves[int(np.argmax(off))]
        return (tuple(map(int, np.unravel_index(place, shape))) for place in places)


def _unit(shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    direction = np.zeros(shape)
    direction[place] = 1
    return direction


def _worst_element(i: int, x: Any, gradient: Any, expected: Any, says: str) -> str:
    difference = abs(np.asarray(gradient - expected))
    at = np.unravel_index(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)), x.shape)
    where = f"[{', '.join(map(str, at))}]" if at else ""
    return (
        f"the gradient by input {i}{where} is {float(np.asarray(gradient)[at]):.9g}, "
        f"{says} {expected[at]:.9g} (at x{where} = {float(x[at]):.6g}, "
        f"{int((difference > 1e-5 * abs(expected)).sum())} of {x.size} elements differ)"
    )


# -- what is asked of an op ------------------------------------------------------------------------


def implementations(
    op: Op[...], case: Case, xp: ModuleType = np
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The reference and every variant of a backend that applies to the case, by name."""
    yield op.__name__, op.reference
    for when, variant in op.variants.get(xp, ()):
        if when(*case.inputs, **case.params):
            yield variant.__name__, variant


def _run(
    function: Callable[..., Any], case: Case, inputs: Arrays | None = None, xp: Any = np
) -> tuple[Any, list[Any]]:
    arrays = case.inputs if inputs is None else inputs
    result = function(xp, *arrays, **case.params)
    _, *parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if len(arrays) < len(names) and isinstance(result, tuple):
        # optional inputs that the case leaves out have a rule (None) all the same
        result = result[: len(result) - (len(names) - len(arrays))]
    check_result(function.__name__, names, len(arrays), result)
    return xp.asarray(result[0]), list(result[1:])


def _dy_for(y: Any) -> Any:
    return np.asarray(np.random.default_rng(1).standard_normal(y.shape)).astype(y.dtype)


def _apply_rules(name: str, rules: Sequence[Any], dy: Any, inputs: Arrays) -> list[Any]:
    """The gradient by each input that has one and is an array."""
    gradients: list[Any] = []
    for i, (rule, x) in enumerate(zip(rules, inputs, strict=False)):
        if rule is None or not _is_floating(x):
            gradients.append(None)
            continue
        dx = rule(dy)
        if not isinstance(dx, np.ndarray | np.generic):
            raise CheckError(f"{name}: the rule for input {i} returned {dx!r}, not an array")
        gradients.append(np.asarray(dx))
    return gradients


def check_gradient(op: Op[...], case: Case) -> dict[int, float]:
    """Each rule agrees with central differences, in float64, along random directions.

    Returns the worst relative error by the input's number.
    """
    kinds = (op.kinds * len(case.inputs) if len(op.kinds) == 1 else op.kinds)[: len(case.inputs)]
    worst: dict[int, float] = {}
    for name, function in implementations(op, case):

        def gradients(
            arrays: Arrays, dy: Any, name: str = name, function: Any = function
        ) -> list[Any]:
            found = _apply_rules(name, _run(function, case, arrays)[1], dy, arrays)
            _check_gradients_fit(name, arrays, found)
            return [
                # a rule that was forgotten says that the derivative is zero
                np.zeros(x.shape) if dx is None and kind is not Index and _is_floating(x) else dx
                for x, dx, kind in zip(arrays, found, kinds, strict=True)
            ]

        def forward(arrays: Arrays, function: Any = function) -> Any:
            return _run(function, case, arrays)[0]

        comparison = _Comparison(name, forward, gradients, np.random.default_rng(0))
        for i, error in comparison.run(case.inputs).items():
            worst[i] = max(error, worst.get(i, 0.0))
    return worst


def check_complex_step(op: Op[...], case: Case) -> None:
    """Each rule agrees with the complex step, to rounding, if the forward is analytic."""
    y, rules = _run(op.reference, case)
    if y.dtype.kind != "f":
        return

    def forward(xp: Any, arrays: Arrays) -> Any:
        return op.reference(xp, *arrays, **case.params)[0]

    dy = _dy_for(y)
    for i, gradient in enumerate(_apply_rules(op.__name__, rules, dy, case.inputs)):
        x = case.inputs[i]
        if gradient is None or not x.size:
            continue

        def derivative(direction: Any, i: int = i) -> float | None:
            return complex_slope(forward, list(case.inputs), i, direction, dy)

        direction = np.random.default_rng(i).uniform(-1, 1, x.shape)
        expected = derivative(direction)
        size = float(np.linalg.norm(gradient) * np.linalg.norm(direction) + abs(dy).sum())
        if expected is None or abs((gradient * direction).sum() - expected) <= EXACT * size:
            continue

        def along(t: float, i: int = i, direction: Any = direction) -> Any:
            return forward(
                np, [z + t * direction if j == i else z for j, z in enumerate(case.inputs)]
            )

        if abs((dy * slope(along)).sum() - expected) > 1e-6 * size:
            continue  # the forward has found a way to do what is not analytic after all
        elements = np.empty(x.shape)
        for place in np.ndindex(x.shape):
            elements[place] = derivative(_unit(x.shape, place))
        where = _worst_element(i, x, gradient, elements, "the complex step gives")
        raise CheckError(f"{op.__name__}: {where}")


def precisions(op: Op[...], case: Case) -> Iterator[tuple[Case, float]]:
    """The case, and for ops with variants its float32 twin, with the tolerance of the dtype."""
    yield case, 1e-10
    if op.variants:
        yield _in_float32(case), 1e-4


def _in_float32(case: Case) -> Case:
    inputs = [x.astype(np.float32) if _is_floating(x) else x for x in case.inputs]
    params = {k: np.float32 if k == "dtype" else v for k, v in case.params.items()}
    return Case(tuple(inputs), params)


def check_variants(op: Op[...], case: Case) -> None:
    """Each variant gives the reference's output and gradients."""
    for twin, tolerance in precisions(op, case):
        results = []
        for name, function in implementations(op, twin):
            y, rules = _run(function, twin)
            results.append((name, [y, *_apply_rules(name, rules, _dy_for(y), twin.inputs)]))
        for name, arrays in results[1:]:
            _same_results(f"{name} against {op.__name__}", results[0][1], arrays, tolerance)


def check_shape_and_dtype(op: Op[...], case: Case) -> None:
    """Gradients have their input's shape and dtype; float32 in, float32 out, and near float64's."""
    y64, rules = _run(op.reference, case)
    expected = [y64, *_apply_rules(op.__name__, rules, _dy_for(y64), case.inputs)]
    _check_gradients_fit(op.__name__, case.inputs, expected[1:])
    low_case = _in_float32(case)
    low = low_case.inputs
    for name, function in implementations(op, low_case):
        y, rules = _run(function, low_case)
        if y64.dtype.kind == "f" and y.dtype != np.float32 and any(map(_is_floating, low)):
            raise CheckError(f"{name}: float32 inputs give {y.dtype}")
        found = _apply_rules(name, rules, _dy_for(y64).astype(y.dtype), low)
        _check_gradients_fit(name, low, found)
        _same_results(f"{name} in float32", expected, [y, *found], 1e-4)


def _check_gradients_fit(name: str, inputs: Arrays, gradients: Arrays) -> None:
    for i, (x, dx) in enumerate(zip(inputs, gradients, strict=True)):
        if dx is not None and (dx.shape, dx.dtype) != (x.shape, x.dtype):
            raise CheckError(
                f"{name}: the gradient by input {i} is {dx.dtype} {dx.shape}, the input {x.dtype} "
                f"{x.shape}" + ": sum over the axes that were broadcast" * (dx.size > x.size)
            )


def check_nothing_mutated(op: Op[...], case: Case) -> None:
    """Neither inputs nor the upstream gradient are written to: they are read-only here."""
    for twin, _ in precisions(op, case):
        _check_nothing_mutated(op, twin)


def _check_nothing_mutated(op: Op[...], case: Case) -> None:
    inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in case.inputs]
    for name, function in implementations(op, case):
        for x in inputs:
            if isinstance(x, np.ndarray):
                x.flags.writeable = False
        try:
            y, rules = _run(function, case, inputs)
            before, dy = y.copy(), _dy_for(y)
            dy.flags.writeable = False
            _apply_rules(name, rules, dy, inputs)
        except ValueError as error:
            if "read-only" in str(error) or "not writeable" in str(error):
                raise CheckError(f"{name} writes to an input or to dy: {error}") from error
            raise
        if not np.array_equal(y, before, equal_nan=True):
            raise CheckError(f"{name}: a rule changed the output")


def check_no_aliases(op: Op[...], case: Case) -> None:
    """Leaves own their gradients: no memory shared with each other, the inputs, the output, dy."""
    leaves = [Tensor(x, requires_grad=True) if _is_floating(x) else x for x in case.inputs]
    y = op(*leaves, **case.params)
    if not y.requires_grad:
        return
    dy = _dy_for(y.data)
    y.backward(dy)
    gradients = {
        f"the gradient by input {i}": leaf.grad.data
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.grad is not None
    }
    others = {f"input {i}": x for i, x in enumerate(case.inputs) if isinstance(x, np.ndarray)}
    others |= {"the output": y.data, "dy": dy}
    for name, gradient in gradients.items():
        if not gradient.flags.writeable:
            raise CheckError(f"{op.__name__}: {name} is read-only")
        for other, array in (gradients | others).items():
            if other != name and np.shares_memory(gradient, array):
                raise CheckError(f"{op.__name__}: {name} shares memory with {other}")


def check_memory_order(op: Op[...], case: Case) -> None:
    """Transposed, reversed and strided inputs and upstream gradients give the same results."""
    for twin, tolerance in precisions(op, case):
        y, rules = _run(op.reference, twin)
        expected = [y, *_apply_rules(op.__name__, rules, _dy_for(y), twin.inputs)]
        for order in (transposed, strided):
            inputs = [order(x) if isinstance(x, np.ndarray) else x for x in twin.inputs]
            for name, function in implementations(op, Case(tuple(inputs), twin.params)):
                y, rules = _run(function, twin, inputs)
                found = [y, *_apply_rules(name, rules, order(_dy_for(y)), inputs)]
                what = f"{name} with inputs in another memory order"
                _same_results(what, expected, found, tolerance)


def transposed(x: Any) -> Any:
    """x in column-major order."""
    return np.array(x, order="F")


def strided(x: Any) -> Any:
    """x as a view that steps backwards, and over every second element of the last axis."""
    if not x.ndim:
        return x
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    view = wide[..., ::-2]
    view[...] = x
    return view


def check_saved_memory(op: Op[...], case: Case) -> None:
    """The rules keep alive at most `saves` times the bytes of inputs and output."""
    for name, function in implementations(op, case):
        y, rules = _run(function, case)
        arrays = [memory_of(x) for x in case.inputs if isinstance(x, np.ndarray)]
        budget = op.saves * (sum(x.nbytes for x in arrays) + y.nbytes) + 128  # 128: small change
        saved = sum(x.nbytes for x in captured_memory([r for r in rules if r]))
        if saved > budget:
            raise CheckError(
                f"{name}: its rules keep {saved} bytes, {budget:.0f} are allowed, as many as "
                "inputs and output have: compute again in a rule what can be, or allow twice that "
                "by @op(saves=2)"
            )


def check_tape_freed(op: Op[...], case: Case) -> None:
    """What the rules saved dies in `backward`, with the output still held and no collector."""
    leaves = [Tensor(x, requires_grad=True) if _is_floating(x) else x for x in case.inputs]
    collecting = gc.isenabled()
    gc.disable()
    try:
        y = op(*leaves, **case.params)
        if y.node is None or y.node.rules is None:
            return
        outside = {id(memory_of(x)) for x in (*case.inputs, y.data) if isinstance(x, np.ndarray)}
        outside |= {id(x) for x in captured_memory(list(case.params.values()))}
        saved = [
            weakref.ref(x)
            for x in captured_memory([r for r in y.node.rules if r])
            if id(x) not in outside
        ]
        y.backward(_dy_for(y.data))
        alive = [x for x in (reference() for reference in saved) if x is not None]
        if alive:
            raise CheckError(
                f"{op.__name__}: {len(alive)} saved arrays outlive backward, "
                f"of shapes {[x.shape for x in alive]}"
            )
    finally:
        if collecting:
            gc.enable()


def check_same_tensor_twice(op: Op[...], case: Case) -> None:
    """f(x, x) has the sum of the gradients of f(x, y) at y = x."""
    floating = [i for i, x in enumerate(case.inputs) if _is_floating(x)]
    for i, j in itertools.pairwise(floating):
        if case.inputs[i].shape != case.inputs[j].shape:
            continue

        def backward(twice: Tensor, other: Tensor, i: int = i, j: int = j) -> Any:
            inputs = list(case.inputs)
            inputs[i], inputs[j] = twice, other
            y = op(*inputs, **case.params)
            if y.requires_grad:
                y.backward(_dy_for(y.data))
            return y.data

        x = case.inputs[i]
        a, b, both = (Tensor(x.copy(), requires_grad=True) for _ in range(3))
        expected, found = backward(a, b), backward(both, both)
        results = [expected], [found]
        if a.grad is not None and b.grad is not None and both.grad is not None:
            results = [expected, a.grad.data + b.grad.data], [found, both.grad.data]
        _same_results(f"{op.__name__} of one tensor twice", *results, 1e-12)


def _same_results(
    what: str, expected: Sequence[Any], found: Sequence[Any], tolerance: float
) -> None:
    """Compare outputs and gradients; the tolerance is relative to the largest element, or to 1."""
    names = ["the output", *(f"the gradient by input {i}" for i in range(len(expected) - 1))]
    for name, a, b in zip(names, expected, found, strict=True):
        if a is None:
            continue
        if a.shape != b.shape:
            raise CheckError(f"{what}: {name} has shape {b.shape}, expected {a.shape}")
        scale = max(float(abs(a).max()), 1.0) if a.size else 1.0
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            worst = float(abs(np.asarray(a) - b).max())
            raise CheckError(f"{what}: {name} differs by {worst:.3g}")


def check_calls_are_independent(op: Op[...], case: Case) -> None:
    """Nothing is shared between calls, nor between two uses of a rule.

    Calls with other values, before a call and between it and its rules, change no result; neither
    does what happens to a gradient that a rule has handed over.
    """
    other = [np.flip(x).copy() if isinstance(x, np.ndarray) else x for x in case.inputs]
    other = [np.asarray(0.75 * x) if _is_floating(x) else x for x in other]  # logarithms stay real
    for name, function in implementations(op, case):
        y, rules = _run(function, case)
        expected = [y.copy(), *_apply_rules(name, rules, _dy_for(y), case.inputs)]
        _apply_rules(name, _run(function, case, other)[1], _dy_for(y), other)
        y, rules = _run(function, case)
        _run(function, case, other)
        dy = _dy_for(y)
        found = [y, *_apply_rules(name, rules, dy, case.inputs)]
        _same_results(f"{name} after another call", expected, found, 1e-12)
        for gradient in found[1:]:
            if gradient is not None and gradient is not dy and gradient.base is None:
                gradient += 1  # a leaf's gradient may be changed in place
        found = [y, *_apply_rules(name, rules, dy, case.inputs)]
        _same_results(f"{name}, its rules used twice", expected, found, 1e-12)


def check_other_backend(op: Op[...], case: Case) -> None:
    """On a GPU, output and gradients are those of numpy. Without cupy there is nothing to check."""
    xp = backend.cupy_if_installed()
    if xp is None:
        return
    y, rules = _run(op.reference, case)
    expected = [y, *_apply_rules(op.__name__, rules, _dy_for(y), case.inputs)]
    moved = Case(_moved(xp, case.inputs), {k: _moved(xp, v) for k, v in case.params.items()})
    for name, function in implementations(op, moved, xp):
        found, rules = _run(function, moved, xp=xp)
        dy = xp.asarray(_dy_for(y))
        applied = [
            rule(dy) if rule and _is_floating(x) else None
            for rule, x in zip(rules, case.inputs, strict=True)
        ]
        results = [None if a is None else backend.move(a, "cpu") for a in (found, *applied)]
        _same_results(f"{name} with {xp.__name__}", expected, results, 1e-10)


def _moved(xp: ModuleType, value: Any) -> Any:
    """The arrays in `value`, which may be a tuple of such, in another backend."""
    if isinstance(value, tuple | list):
        return type(value)(_moved(xp, part) for part in value)
    return xp.asarray(value) if isinstance(value, np.ndarray) else value


CHECKS: dict[str, Callable[[Op[...], Case], Any]] = {
    "nothing mutated": check_nothing_mutated,  # first: the others use the case's own arrays
    "gradient": check_gradient,
    "complex step": check_complex_step,
    "variants": check_variants,
    "other backend": check_other_backend,
    "shape and dtype": check_shape_and_dtype,
    "no aliases": check_no_aliases,
    "calls are independent": check_calls_are_independent,
    "memory order": check_memory_order,
    "saved memory": check_saved_memory,
    "tape freed": check_tape_freed,
    "same tensor twice": check_same_tensor_twice,
}
# small cases, but cut into pieces as large ones are
CHECKS = {name: threads.tiny_pieces()(check) for name, check in CHECKS.items()}


@dataclass
class Checked:
    """What was found right of one input: in how many cases, and how far off at worst."""

    cases: int = 0
    worst_error: float = 0.0  # relative to |gradient| |direction|; more than TOLERANCE is a failure


@dataclass
class Report:
    """What `check_op` found right."""

    op: str
    cases: int = 0
    seconds: float = 0.0
    inputs: dict[str, Checked] = field(default_factory=dict)  # those that have a rule


def check_op(op: Op[...], *, cases: int = 25, seed: int = 0) -> Report:
    """Hold an op to every check in CHECKS, on `cases` draws of its samples.

    Raises CheckError with the check, the smallest case drawn that fails, the reason, and code that
    shows it again.
    """
    if cases < 1:
        raise ValueError(f"check_op: cases must be an integer >= 1, found {cases}")
    start = time.perf_counter()
    drawn = [case for i in range(cases) for case in cases_of(op, Draw(seed + i))]
    drawn.sort(key=_size)  # so that the first to fail is the smallest
    report = Report(op.__name__)
    for case in drawn:
        note(report, op, case, run_checks(op, case))
    check_coverage(report)
    report.seconds = time.perf_counter() - start
    return report


def _size(case: Case) -> tuple[int, int]:
    """The elements of a case, and the digits it takes to write few of them."""
    elements = sum(x.size for x in case.inputs if isinstance(x, np.ndarray))
    return elements, len(literal(case)) if elements < 50 else 0


def run_checks(op: Op[...], case: Case) -> dict[int, float]:
    """Every check in CHECKS on one case. The worst relative error by the input's number."""
    errors: dict[int, float] = {}
    for name, check in CHECKS.items():
        try:
            errors.update(check(op, case) or {})
        except Exception as error:
            code = call_of("run_checks", op, [literal(case)])
            where = f"  check: {name}\n  case: {op.__name__}({case})\n{code}"
            if isinstance(error, CheckError):
                raise CheckError(f"{error}\n{where}") from None
            error.add_note(where)
            raise
    return errors


def note(report: Report, op: Op[...], case: Case, errors: Mapping[int, float]) -> None:
    """Enter what `run_checks` found of one case into the report."""
    report.cases += 1
    names = [
        f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name
        for p in inspect.signature(op).parameters.values()
    ]
    for i, rule in enumerate(_run(op.reference, case)[1]):
        if rule:
            name = names[0] if names[0].startswith("*") else names[i]
            checked = report.inputs.setdefault(name, Checked())
            if i in errors:
                checked.cases += 1
                checked.worst_error = max(checked.worst_error, errors[i])


def check_coverage(report: Report) -> None:
    """Every rule was compared in some case: its input was a floating array and not all kinks."""
    if not report.cases:
        raise CheckError(f"{report.op}: its samples yield no case")
    for name, checked in report.inputs.items():
        if not checked.cases:
            raise CheckError(
                f"{report.op}: no case gives input {name} a floating array of some elements that "
                "do not all lie on kinks: its rule was never checked"
            )
