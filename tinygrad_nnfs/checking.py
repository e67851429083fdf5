"""Is a backward rule right? Gradient checks for functions and for ops, on numpy alone.

`gradcheck(fn, *inputs)` checks any differentiable function of Tensors. `check_op(op)` draws cases
from the op's own samples and holds it to everything that this library asks of an op; `CHECKS` names
them one by one. Every failure is a CheckError, which is an AssertionError.
"""

import gc
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinygrad_nnfs.kernels import threads
from tinygrad_nnfs.registry import Index, Op, captured_arrays, check_result
from tinygrad_nnfs.tensor import Tensor

T = TypeVar("T")
Arrays = Sequence[Any]  # numpy arrays, and numbers or None where an op takes them

STEP = 1e-3  # of the central differences; samples keep further than 2 STEP from every kink
TOLERANCE = 1e-7  # |found - expected| <= TOLERANCE |gradient| |direction|


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

    Values are float64. Everything follows from `integer`, so that a subclass can draw it elsewhere
    (`tinygrad_nnfs.testing` lets hypothesis do it).
    """

    gap = 0.25  # `distinct` values lie this far apart, and `away_from` keeps this distance

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)

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
        """A shape of 0 to 4 axes, each of `smallest` to 4 elements."""
        return self.sizes(self.integer(0, 4), smallest=smallest)

    def broadcastable(self, count: int) -> list[tuple[int, ...]]:
        """Shapes that broadcast to one: some without leading axes, some with axes of size 1."""
        full = self.shape()
        shapes = []
        for _ in range(count):
            kept = full[self.integer(0, len(full)) :] if self.boolean() else full
            shapes.append(tuple(1 if self.integer(0, 3) == 0 else n for n in kept))
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
        """Standard normal values."""
        return np.asarray(self.random.standard_normal(shape))

    def positive(self, *shape: int) -> Any:
        """Values in 0.5..2.5."""
        return np.asarray(self.random.random(shape) * 2 + 0.5)

    def away_from(self, kink: float, *shape: int) -> Any:
        """Values on both sides of `kink` that keep a distance from it."""
        x = self.normal(*shape)
        return np.asarray(kink + x + np.where(x < 0, -self.gap, self.gap))

    def distinct(self, *shape: int) -> Any:
        """Values no two of which are near each other."""
        size = int(np.prod(shape))
        return (self.random.permutation(size).reshape(shape) - size // 2) * self.gap

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


def gradcheck(fn: Callable[..., Tensor], *inputs: Any, seed: int = 0, directions: int = 3) -> None:
    """Check the gradients of `fn(*Tensors) -> Tensor` against central differences in float64.

    `inputs` are arrays, numbers, lists or Tensors. The floating ones are converted to float64 and
    checked along random `directions`, integers are passed on as they are. `fn` must compute in
    float64 too (`network.astype("float64")`), be deterministic, and be smooth within 0.002 of the
    inputs. Raises CheckError with the input, the place and both values.
    """
    given = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
    arrays = [np.array(x, np.float64) if np.asarray(x).dtype.kind == "f" else x for x in given]
    if not any(map(_is_floating, arrays)):
        raise TypeError("gradcheck: there is nothing to check, for no input is floating-point")

    def forward(arrays: Arrays) -> Any:
        y = fn(*(Tensor(x) if isinstance(x, np.ndarray) else x for x in arrays))
        if not isinstance(y, Tensor) or y.dtype.kind != "f":
            found = f"one of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"gradcheck: the function must return a floating Tensor, found {found}")
        return y.data

    def gradients(arrays: Arrays, dy: Any) -> list[Any]:
        leaves = [Tensor(x, requires_grad=True) if _is_floating(x) else x for x in arrays]
        y = fn(*leaves)
        if y.requires_grad:
            y.backward(dy)
        return [
            None
            if not isinstance(x, Tensor)
            else np.zeros(x.shape)
            if x.grad is None
            else x.grad.data
            for x in leaves
        ]

    name = getattr(fn, "__name__", type(fn).__name__)
    _compare(name, forward, gradients, arrays, np.random.default_rng(seed), directions)


def _is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype.kind == "f"


def _compare(
    name: str,
    forward: Callable[[Arrays], Any],
    gradients: Callable[[Arrays, Any], Sequence[Any]],
    arrays: Arrays,
    random: np.random.Generator,
    directions: int = 3,
) -> None:
    """Hold `gradients` to the slope of sum(dy forward(x)) along random directions of each input."""
    y = np.asarray(forward(arrays))
    if y.dtype.kind != "f":
        return  # a comparison: nothing to differentiate
    dy = np.asarray(random.standard_normal(y.shape))
    found = gradients(arrays, dy)
    for i, (x, gradient) in enumerate(zip(arrays, found, strict=True)):
        if gradient is None:
            continue

        def objective(moved: Any, i: int = i) -> float:
            value = forward([moved if j == i else a for j, a in enumerate(arrays)])
            return float((dy * value).sum())

        # what rounding alone may do to the differences
        noise = 100 * np.finfo(np.float64).eps * float((abs(dy) * (abs(y) + 1)).sum()) / STEP
        for _ in range(directions):
            direction = np.asarray(random.uniform(-1, 1, x.shape))
            slope = float((gradient * direction).sum())
            expected = _slope(objective, x, direction)
            size = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
            if not abs(slope - expected) <= TOLERANCE * size + noise:
                raise CheckError(f"{name}: {_worst_element(i, x, gradient, objective)}")


def _slope(objective: Callable[[Any], float], x: Any, direction: Any) -> float:
    """The derivative along `direction`, by central differences of fourth order."""
    near = objective(x + STEP * direction) - objective(x - STEP * direction)
    far = objective(x + 2 * STEP * direction) - objective(x - 2 * STEP * direction)
    return (8 * near - far) / (12 * STEP)


def _worst_element(i: int, x: Any, gradient: Any, objective: Callable[[Any], float]) -> str:
    expected = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        direction = np.zeros(x.shape)
        direction[place] = 1
        expected[place] = _slope(objective, x, direction)
    difference = abs(np.asarray(gradient - expected))
    at = np.unravel_index(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)), x.shape)
    where = f"[{', '.join(map(str, at))}]" if at else ""
    return (
        f"the gradient by input {i}{where} is {float(np.asarray(gradient)[at]):.9g}, "
        f"finite differences give {expected[at]:.9g} (at x{where} = {float(x[at]):.6g}, "
        f"{int((difference > 1e-5 * (1 + abs(expected))).sum())} of {x.size} elements differ)"
    )


# -- what is asked of an op ------------------------------------------------------------------------


def implementations(op: Op[...], case: Case) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The reference and every numpy variant that applies to the case, by name."""
    yield op.__name__, op.reference
    for when, variant in op.variants.get(np, ()):
        if when(*case.inputs, **case.params):
            yield variant.__name__, variant


def _run(
    function: Callable[..., Any], case: Case, inputs: Arrays | None = None
) -> tuple[Any, list[Any]]:
    arrays = case.inputs if inputs is None else inputs
    result = function(np, *arrays, **case.params)
    _, *parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if len(arrays) < len(names) and isinstance(result, tuple):
        # optional inputs that the case leaves out have a rule (None) all the same
        result = result[: len(result) - (len(names) - len(arrays))]
    check_result(function.__name__, names, len(arrays), result)
    return np.asarray(result[0]), list(result[1:])


def _dy_for(y: Any) -> Any:
    return np.asarray(np.random.default_rng(1).standard_normal(y.shape)).astype(y.dtype)


def _apply_rules(rules: Sequence[Any], dy: Any, inputs: Arrays) -> list[Any]:
    """The gradient by each input that has one and is an array."""
    gradients: list[Any] = []
    for i, (rule, x) in enumerate(zip(rules, inputs, strict=False)):
        if rule is None or not _is_floating(x):
            gradients.append(None)
            continue
        dx = rule(dy)
        if not isinstance(dx, np.ndarray | np.generic):
            raise CheckError(f"the rule for input {i} returned {dx!r}, not an array")
        gradients.append(np.asarray(dx))
    return gradients


def check_gradient(op: Op[...], case: Case) -> None:
    """Each rule agrees with central differences, in float64, along random directions."""
    kinds = (op.kinds * len(case.inputs) if len(op.kinds) == 1 else op.kinds)[: len(case.inputs)]
    for name, function in implementations(op, case):

        def gradients(arrays: Arrays, dy: Any, function: Any = function) -> list[Any]:
            found = _apply_rules(_run(function, case, arrays)[1], dy, arrays)
            return [
                # a rule that was forgotten says that the derivative is zero
                np.zeros(x.shape) if dx is None and kind is not Index and _is_floating(x) else dx
                for x, dx, kind in zip(arrays, found, kinds, strict=True)
            ]

        def forward(arrays: Arrays, function: Any = function) -> Any:
            return _run(function, case, arrays)[0]

        _compare(name, forward, gradients, case.inputs, np.random.default_rng(0))


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
            results.append((name, [y, *_apply_rules(rules, _dy_for(y), twin.inputs)]))
        for name, arrays in results[1:]:
            _same_results(f"{name} against {op.__name__}", results[0][1], arrays, tolerance)


def check_shape_and_dtype(op: Op[...], case: Case) -> None:
    """Gradients have their input's shape and dtype; float32 in, float32 out, and near float64's."""
    y64, rules = _run(op.reference, case)
    expected = [y64, *_apply_rules(rules, _dy_for(y64), case.inputs)]
    low_case = _in_float32(case)
    low = low_case.inputs
    for name, function in implementations(op, low_case):
        y, rules = _run(function, low_case)
        if y64.dtype.kind == "f" and y.dtype != np.float32 and any(map(_is_floating, low)):
            raise CheckError(f"{name}: float32 inputs give {y.dtype}")
        found = _apply_rules(rules, _dy_for(y64).astype(y.dtype), low)
        for i, (x, dx) in enumerate(zip(low, found, strict=True)):
            if dx is not None and (dx.shape, dx.dtype) != (x.shape, x.dtype):
                raise CheckError(
                    f"{name}: the gradient by input {i} is {dx.dtype} {dx.shape}, "
                    f"the input {x.dtype} {x.shape}"
                )
        _same_results(f"{name} in float32", expected, [y, *found], 1e-4)


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
            _apply_rules(rules, dy, inputs)
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
        expected = [y, *_apply_rules(rules, _dy_for(y), twin.inputs)]
        for order in (_transposed, _strided):
            inputs = [order(x) if isinstance(x, np.ndarray) else x for x in twin.inputs]
            for name, function in implementations(op, Case(tuple(inputs), twin.params)):
                y, rules = _run(function, twin, inputs)
                found = [y, *_apply_rules(rules, order(_dy_for(y)), inputs)]
                what = f"{name} with inputs in another memory order"
                _same_results(what, expected, found, tolerance)


def _transposed(x: Any) -> Any:
    return np.array(x, order="F")


def _strided(x: Any) -> Any:
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
        arrays = [x for x in case.inputs if isinstance(x, np.ndarray)]
        budget = op.saves * (sum(x.nbytes for x in arrays) + y.nbytes) + 128  # 128: small change
        saved = sum(x.nbytes for x in _captured([r for r in rules if r]))
        if saved > budget:
            raise CheckError(f"{name} keeps {saved} bytes for its rules, {budget:.0f} are allowed")


def _captured(roots: Sequence[Any]) -> list[Any]:
    """The arrays whose memory functions keep alive, directly or through what they captured."""
    return list({id(owner): owner for owner in map(_owner, captured_arrays(roots))}.values())


def check_tape_freed(op: Op[...], case: Case) -> None:
    """What the rules saved dies in `backward`, with the output still held and no collector."""
    leaves = [Tensor(x, requires_grad=True) if _is_floating(x) else x for x in case.inputs]
    collecting = gc.isenabled()
    gc.disable()
    try:
        y = op(*leaves, **case.params)
        if y.node is None or y.node.rules is None:
            return
        outside = {id(_owner(x)) for x in (*case.inputs, y.data) if isinstance(x, np.ndarray)}
        outside |= {id(x) for x in _captured(list(case.params.values()))}
        saved = [
            weakref.ref(x)
            for x in _captured([r for r in y.node.rules if r])
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


def _owner(x: Any) -> Any:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


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


CHECKS: dict[str, Callable[[Op[...], Case], None]] = {
    "nothing mutated": check_nothing_mutated,  # first: the others use the case's own arrays
    "gradient": check_gradient,
    "variants": check_variants,
    "shape and dtype": check_shape_and_dtype,
    "no aliases": check_no_aliases,
    "memory order": check_memory_order,
    "saved memory": check_saved_memory,
    "tape freed": check_tape_freed,
    "same tensor twice": check_same_tensor_twice,
}
# small cases, but cut into pieces as large ones are
CHECKS = {name: threads.tiny_pieces()(check) for name, check in CHECKS.items()}


def check_op(op: Op[...], *, cases: int = 25, seed: int = 0) -> int:
    """Hold an op to every check in CHECKS, on `cases` draws of its samples.

    Returns the number of cases checked; raises CheckError with the check, the case and the reason.
    """
    drawn = [case for i in range(cases) for case in cases_of(op, Draw(seed + i))]
    for case in drawn:
        run_checks(op, case)
    check_coverage(op, drawn)
    return len(drawn)


def run_checks(op: Op[...], case: Case) -> None:
    """Every check in CHECKS on one case."""
    for name, check in CHECKS.items():
        where = f"  check: {name}\n  case: {op.__name__}({case})"
        try:
            check(op, case)
        except CheckError as error:
            raise CheckError(f"{error}\n{where}") from error
        except Exception as error:
            error.add_note(where)
            raise


def check_coverage(op: Op[...], cases: Sequence[Case]) -> None:
    """Every rule was checked in some case: its input was a floating array there."""
    with_rule: set[int] = set()
    checked: set[int] = set()
    for case in cases:
        for i, (x, rule) in enumerate(zip(case.inputs, _run(op.reference, case)[1], strict=True)):
            with_rule |= {i} if rule else set()
            checked |= {i} if _is_floating(x) else set()
    if not cases:
        raise CheckError(f"{op.__name__}: its samples yield no case")
    if with_rule - checked:
        raise CheckError(
            f"{op.__name__}: no case gives input {min(with_rule - checked)} a floating array: its "
            "rule was never checked"
        )
