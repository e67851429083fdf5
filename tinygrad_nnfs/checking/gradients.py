"""`gradcheck`: gradients of any function against central differences."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinygrad_nnfs.checking.cases import Arrays, CheckError, is_floating
from tinygrad_nnfs.checking.derivatives import STEP, roughness, slope, unit
from tinygrad_nnfs.checking.reproduction import call_of, literal
from tinygrad_nnfs.registry import input_names
from tinygrad_nnfs.tensor import Tensor

# |found - expected| <= TOLERANCE |gradient| |direction|
TOLERANCE = 1e-7
REJECTIONS = 8  # of directions in which an input meets kinks, until it is given up


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
    if not any(map(is_floating, arrays)):
        raise TypeError("gradcheck: there is nothing to check, for no input is floating-point")

    def leaf(x: Any, requires_grad: bool) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        # a copy: the function may change what it is given
        return Tensor(x.copy(), requires_grad=requires_grad and is_floating(x))

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
            if not is_floating(array)
            else np.zeros(array.shape)
            if x.grad is None
            else x.grad.data
            for x, array in zip(leaves, arrays, strict=True)
        ]

    name = getattr(fn, "__name__", type(fn).__name__)
    names = _input_names(fn, len(arrays))
    try:
        random = np.random.default_rng(seed)
        comparison = Comparison(
            name, names, forward, gradients, random, directions, hidden_kinks=True
        )
        errors = comparison.run(arrays)
        unknown = [i for i, x in enumerate(arrays) if is_floating(x) and x.size]
        unknown = [i for i in unknown if i not in errors]
        if unknown:
            raise CheckError(
                f"{name}: nothing can be said of {names[unknown[0]]}: the function has kinks or "
                "jumps, or ends, wherever it was tried, or it does not compute in float64, or not "
                "the same each time"
            )
    except CheckError as error:
        options = f", seed={seed}, directions={directions}"
        code = call_of("gradcheck", fn, [literal(x) for x in arrays], options)
        raise CheckError(f"{error}\n{code}") from None
    return errors


def _input_names(fn: Callable[..., Any], count: int) -> list[str]:
    """What a function calls its inputs, where it tells; else "input 0" and so on."""
    try:
        names = input_names(getattr(fn, "forward", fn), count)  # a Module's own
    except (TypeError, ValueError):  # it is a builtin, or something else without a signature
        names = []
    return names if len(names) == count else [f"input {i}" for i in range(count)]


def _moved(x: Any, step: Any) -> Any:
    """x + step in x's own memory order, of which an op's variant may make use."""
    return np.add(x, step, out=np.empty_like(x))


class Comparison:
    """Holds gradients to the slope of sum(dy forward(x)) along random directions of each input.

    `hidden_kinks`: the function may add up several kinks that it has at one point, relu(x) -
    relu(-x), say, which is smooth. Then it is wrong only if it is wrong nearby as well.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        forward: Callable[[Arrays], Any],
        gradients: Callable[[Arrays, Any], Sequence[Any]],
        random: np.random.Generator,
        directions: int = 3,
        hidden_kinks: bool = False,
    ) -> None:
        self.name, self.inputs, self.forward, self.gradients = name, inputs, forward, gradients
        self.random, self.directions, self.hidden_kinks = random, directions, hidden_kinks

    def run(self, arrays: Arrays) -> dict[int, float]:
        """The worst relative error by each input of which something can be said."""
        y = np.asarray(self.forward(arrays))
        if y.dtype != np.float64:
            return {}  # a comparison, say; or differences would show rounding and little else
        if not np.isfinite(y).all():
            raise CheckError(
                f"{self.name}: the result is not finite for these inputs: choose others"
            )
        self.dy = np.asarray(self.random.standard_normal(y.shape))
        # what rounding alone may do to the differences
        noise = 100 * np.finfo(np.float64).eps * float((abs(self.dy) * (abs(y) + 1)).sum())
        self.noise = float(noise / STEP)
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

    def _contradicts(self, along: Callable[[float], Any], found: float, expected: float) -> bool:
        """Is `found` wrong, whatever kinks, ends and a long step did to `expected`, the slope?"""
        difference = abs(found - expected)
        if not math.isfinite(expected) or difference <= self._roughness(along):
            return False
        # what is left of it with half the step: all if the rule is wrong, else a sixteenth
        with_half_the_step = 2 * self._slope(lambda t: along(t / 2))
        return not abs(found - with_half_the_step) <= difference / 2

    def _along(self, arrays: Arrays, directions: Mapping[int, Any]) -> Callable[[float], Any]:
        def moved(t: float) -> Any:
            inputs = [
                _moved(x, t * directions[i]) if i in directions else x for i, x in enumerate(arrays)
            ]
            with np.errstate(all="ignore"):  # it may leave the function's domain
                return self.forward(inputs)

        return moved

    def _input(self, i: int, arrays: Arrays, gradient: Any) -> float | None:
        """The worst relative error by input i; None if it was all kinks."""
        worst, checked, rejected, suspect = 0.0, 0, 0, None
        origin = arrays
        while checked < self.directions:
            if rejected > REJECTIONS / 2:  # perhaps the input itself lies on a kink
                nearby = [self._nearby(x) if j == i else x for j, x in enumerate(origin)]
                with np.errstate(all="ignore"):
                    if np.isfinite(self.forward(nearby)).all():
                        arrays, gradient = nearby, self.gradients(nearby, self.dy)[i]
            reach = 0.25**rejected  # perhaps there is a kink, or an end, not far off
            direction = np.asarray(self.random.uniform(-reach, reach, arrays[i].shape))
            along = self._along(arrays, {i: direction})
            found = float((gradient * direction).sum())
            expected = self._slope(along)
            difference = abs(found - expected)
            size = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
            error = difference / (size + self.noise / TOLERANCE) if difference else 0.0
            # on a kink that is symmetric, as that of abs is, any multiple of 0 looks right
            says_something = size > 0 or not self._roughness(along) > self.noise
            if error <= TOLERANCE and says_something:
                worst, checked = max(worst, error), checked + 1
                continue
            if self._contradicts(along, found, expected):
                if self.hidden_kinks and suspect is None and math.isfinite(difference):
                    suspect = arrays, gradient, reach
                    rejected, checked = REJECTIONS // 2 + 1, 0
                    continue
                for at in filter(None, (suspect, (arrays, gradient, reach))):
                    where = self._worst_element(i, *at)
                    if where:
                        raise CheckError(f"{self.name}: {where}")
            rejected += 1
            if rejected >= REJECTIONS:
                return worst if checked else None
        return worst

    def _nearby(self, x: Any) -> Any:
        """x moved a little, on this side of 0."""
        step = self.random.uniform(-0.05, 0.05, x.shape)
        return _moved(x, step * np.where(x == 0, 1, abs(x)))

    def _all_together(self, arrays: Arrays, gradients: Mapping[int, Any]) -> None:
        """Equal elements stay equal if all of them move alike: there, a tie is no kink."""
        along = self._along(arrays, {i: np.ones(arrays[i].shape) for i in gradients})
        found = sum(float(gradient.sum()) for gradient in gradients.values())
        expected = self._slope(along)
        size = sum(float(abs(gradient).sum()) for gradient in gradients.values())
        if abs(found - expected) <= TOLERANCE * size + self.noise:
            return
        if self._contradicts(along, found, expected):
            raise CheckError(
                f"{self.name}: the gradients by {' and '.join(self.inputs[i] for i in gradients)} "
                f"add up to {found:.9g}, finite differences give {expected:.9g} where all "
                "elements move alike: do equal elements share their gradient?"
            )

    def _worst_element(self, i: int, arrays: Arrays, gradient: Any, reach: float) -> str | None:
        """What is wrong at the element that is furthest off; None if kinks may explain it all."""
        shape = arrays[i].shape
        expected = np.array(gradient)
        for place in self._suspects(i, arrays, gradient, reach):
            along = self._along(arrays, {i: reach * unit(shape, place)})
            found, measured = reach * gradient[place], self._slope(along)
            small = TOLERANCE * abs(measured) + self.noise
            differs = not abs(found - measured) <= small
            if differs and self._contradicts(along, found, measured):
                expected[place] = measured / reach
        if np.array_equal(expected, gradient):
            return None
        says = "finite differences give"
        return worst_element(self.inputs[i], arrays[i], self.dy, gradient, expected, says, 1e-5)

    def _suspects(
        self, i: int, arrays: Arrays, gradient: Any, reach: float
    ) -> Iterator[tuple[int, ...]]:
        """The places of an input's elements; of many, those of the half that is further off."""
        shape = arrays[i].shape
        places = np.arange(arrays[i].size)
        while len(places) > 500:
            halves = np.array_split(places, 2)
            off = []
            for half in halves:
                direction = np.zeros(arrays[i].size)
                direction[half] = self.random.uniform(-reach, reach, len(half))
                direction = direction.reshape(shape)
                found = float((gradient * direction).sum())
                off.append(abs(found - self._slope(self._along(arrays, {i: direction}))))
            places = halves[int(np.argmax(off))]
        return (tuple(map(int, np.unravel_index(place, shape))) for place in places)


def worst_element(
    name: str, x: Any, dy: Any, gradient: Any, expected: Any, says: str, tolerance: float
) -> str:
    """Where the gradient by the input `name` is furthest off, and how far.

    Elements differ that are further off than `tolerance`, relatively. `dy` is what the rules were
    given: of a single result its derivative is shown, by which users can tell what went wrong.
    """
    if dy.size == 1:
        gradient, expected = gradient / dy.item(), expected / dy.item()
    where = "" if dy.size == 1 else "; of the sum of all results, each times a random number"
    difference = abs(np.asarray(gradient - expected))
    at = furthest(difference)
    found, wanted = apart(np.asarray(gradient)[at], np.asarray(expected)[at])
    return (
        f"the gradient by {name}{bracketed(at)} is {found}, {says} {wanted} "
        f"(at {name}{bracketed(at)} = {float(x[at]):.6g}, "
        f"{int((difference > tolerance * abs(expected)).sum())} of {x.size} elements differ{where})"
    )


def furthest(difference: Any) -> tuple[int, ...]:
    """Where an array is largest, or NaN."""
    flat = np.argmax(np.where(np.isnan(difference), np.inf, difference))
    return tuple(map(int, np.unravel_index(flat, difference.shape)))


def bracketed(at: tuple[int, ...]) -> str:
    """An element's index as a user writes it: "[0, 2]"; nothing for that of a 0-d array."""
    return f"[{', '.join(map(str, at))}]" if at else ""


def apart(found: Any, expected: Any) -> tuple[str, str]:
    """Two numbers in 9 digits, or in as many as it takes to tell them apart."""
    texts = ("", "")
    for digits in (9, 17):
        texts = f"{float(found):.{digits}g}", f"{float(expected):.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts
