"""What is asked of an op: `CHECKS` has it all, by name."""

import gc
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.checking.cases import Arrays, Case, CheckError, is_floating
from tinygrad_nnfs.checking.derivatives import complex_slope, slope, unit
from tinygrad_nnfs.checking.gradients import (
    Comparison,
    apart,
    bracketed,
    furthest,
    worst_element,
)
from tinygrad_nnfs.kernels import threads
from tinygrad_nnfs.registry import Index, Op, captured_memory, check_result, input_names, memory_of
from tinygrad_nnfs.tensor import Tensor

EXACT = 1e-11  # the relative error that the complex step allows


def implementations(
    op: Op[...], case: Case, xp: ModuleType = np
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The reference and every variant of a backend that applies to the case, by name."""
    yield op.__name__, op.reference
    for when, variant in op.variants.get(xp, ()):
        if when(*case.inputs, **case.params):
            yield variant.__name__, variant


def run_on(
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


def _names(op: Op[...], case: Case) -> list[str]:
    return input_names(op, len(case.inputs))


def _dy_for(y: Any) -> Any:
    return np.asarray(np.random.default_rng(1).standard_normal(y.shape)).astype(y.dtype)


def _apply_rules(
    op: Op[...], name: str, rules: Sequence[Any], dy: Any, inputs: Arrays
) -> list[Any]:
    """The gradient by each input that has one and is an array."""
    gradients: list[Any] = []
    names = input_names(op, len(inputs))
    for input_name, rule, x in zip(names, rules, inputs, strict=False):
        if rule is None or not is_floating(x):
            gradients.append(None)
            continue
        try:
            dx = rule(dy)
        except Exception as error:
            error.add_note(f"in the rule of {name} for {input_name}")
            raise
        if not isinstance(dx, np.ndarray | np.generic):
            raise CheckError(f"{name}: the rule for {input_name} returned {dx!r}, not an array")
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
            y, rules = run_on(function, case, arrays)
            found = _apply_rules(op, name, rules, dy, arrays)
            _check_gradients_fit(op, name, arrays, y, found)
            return [
                # a rule that was forgotten says that the derivative is zero
                np.zeros(x.shape) if dx is None and kind is not Index and is_floating(x) else dx
                for x, dx, kind in zip(arrays, found, kinds, strict=True)
            ]

        def forward(arrays: Arrays, function: Any = function) -> Any:
            return run_on(function, case, arrays)[0]

        comparison = Comparison(
            name, _names(op, case), forward, gradients, np.random.default_rng(0)
        )
        for i, error in comparison.run(case.inputs).items():
            worst[i] = max(error, worst.get(i, 0.0))
    return worst


def check_complex_step(op: Op[...], case: Case) -> None:
    """Each rule agrees with the complex step, to rounding, if the forward is analytic."""
    y, rules = run_on(op.reference, case)
    if y.dtype.kind != "f":
        return

    def forward(xp: Any, arrays: Arrays) -> Any:
        return op.reference(xp, *arrays, **case.params)[0]

    dy = _dy_for(y)
    for i, gradient in enumerate(_apply_rules(op, op.__name__, rules, dy, case.inputs)):
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
            elements[place] = derivative(unit(x.shape, place))
        name, says = _names(op, case)[i], "the complex step gives"
        where = worst_element(name, x, dy, gradient, elements, says, EXACT)
        raise CheckError(f"{op.__name__}: {where}")


def precisions(op: Op[...], case: Case) -> Iterator[tuple[Case, float]]:
    """The case, and for ops with variants its float32 twin, with the tolerance of the dtype."""
    yield case, 1e-10
    if op.variants:
        yield _in_float32(case), 1e-4


def _in_each_precision(op: Op[...], case: Case) -> Iterator[tuple[Case, str, Any]]:
    """Each implementation, by name, with the case or its twin that it applies to."""
    for twin, _ in precisions(op, case):
        for name, function in implementations(op, twin):
            yield twin, name, function


def _in_float32(case: Case) -> Case:
    inputs = [x.astype(np.float32) if is_floating(x) else x for x in case.inputs]
    params = {k: np.float32 if k == "dtype" else v for k, v in case.params.items()}
    return Case(tuple(inputs), params)


def check_variants(op: Op[...], case: Case) -> None:
    """Each variant gives the reference's output and gradients."""
    names = _names(op, case)
    for twin, tolerance in precisions(op, case):
        results = []
        for name, function in implementations(op, twin):
            y, rules = run_on(function, twin)
            results.append((name, [y, *_apply_rules(op, name, rules, _dy_for(y), twin.inputs)]))
        for name, arrays in results[1:]:
            _same_results(names, f"{name} against {op.__name__}", results[0][1], arrays, tolerance)


def check_shape_and_dtype(op: Op[...], case: Case) -> None:
    """Gradients have their input's shape and dtype; float32 in, float32 out, and near float64's."""
    names = _names(op, case)
    y64, rules = run_on(op.reference, case)
    expected = [y64, *_apply_rules(op, op.__name__, rules, _dy_for(y64), case.inputs)]
    _check_gradients_fit(op, op.__name__, case.inputs, y64, expected[1:])
    low_case = _in_float32(case)
    low = low_case.inputs
    for name, function in implementations(op, low_case):
        y, rules = run_on(function, low_case)
        if y64.dtype.kind == "f" and y.dtype != np.float32 and any(map(is_floating, low)):
            raise CheckError(f"{name}: float32 inputs give {y.dtype}")
        found = _apply_rules(op, name, rules, _dy_for(y64).astype(y.dtype), low)
        _check_gradients_fit(op, name, low, y, found)
        _same_results(names, f"{name} in float32", expected, [y, *found], 1e-4)


def _check_gradients_fit(op: Op[...], name: str, inputs: Arrays, y: Any, gradients: Arrays) -> None:
    names = input_names(op, len(inputs))
    for input_name, x, dx in zip(names, inputs, gradients, strict=True):
        if dx is not None and (dx.shape, dx.dtype) != (x.shape, x.dtype):
            raise CheckError(
                f"{name}: the gradient by {input_name} is {dx.dtype} {dx.shape}, the input "
                f"{x.dtype} {x.shape}{_hint(x, dx, y)}"
            )


def _hint(x: Any, dx: Any, y: Any) -> str:
    """What may be wrong with a gradient whose shape is not its input's."""
    if dx.shape == x.shape:
        return ""
    sizes = zip(x.shape[::-1], y.shape[::-1], strict=False)
    if x.shape != y.shape and x.ndim <= y.ndim and all(m in (1, n) for m, n in sizes):
        return ": sum over the axes that were broadcast, and no others"
    return ": reshape it, or transpose it" if dx.size == x.size else ""


def check_nothing_mutated(op: Op[...], case: Case) -> None:
    """Neither inputs nor the upstream gradient are written to: they are read-only here."""
    for twin, _ in precisions(op, case):
        _check_nothing_mutated(op, twin)


def _check_nothing_mutated(op: Op[...], case: Case) -> None:
    given = [*_names(op, case), "dy"]
    for name, function in implementations(op, case):
        if _writes_to(given, op, case, name, function):
            guilty = [x for x in given if _writes_to([x], op, case, name, function)]
            if _writes_to([], op, case, name, function):
                continue  # to a read-only array of its own making: other checks meet that error
            raise CheckError(f"{name} writes to {' and to '.join(guilty)}, which is not its own")


def _writes_to(given: list[str], op: Op[...], case: Case, name: str, function: Any) -> bool:
    """Does an implementation write to one of the arrays of these names?"""

    def guarded(x: Any, array_name: str) -> Any:
        x = x.copy() if isinstance(x, np.ndarray) else x
        if isinstance(x, np.ndarray) and array_name in given:
            x.flags.writeable = False
        return x

    inputs = [guarded(x, n) for x, n in zip(case.inputs, _names(op, case), strict=True)]
    try:
        y, rules = run_on(function, case, inputs)
        before, dy = y.copy(), guarded(_dy_for(y), "dy")
        _apply_rules(op, name, rules, dy, inputs)
    except ValueError as error:
        if "read-only" in str(error) or "not writeable" in str(error):
            return True
        raise
    if not np.array_equal(y, before, equal_nan=True):
        raise CheckError(f"{name}: a rule changed the output")
    return False


def check_no_aliases(op: Op[...], case: Case) -> None:
    """Leaves own their gradients: no memory shared with each other, the inputs, the output, dy."""
    leaves = [Tensor(x, requires_grad=True) if is_floating(x) else x for x in case.inputs]
    y = op(*leaves, **case.params)
    if not y.requires_grad:
        return
    dy = _dy_for(y.data)
    y.backward(dy)
    names = input_names(op, len(leaves))
    gradients = {
        f"the gradient by {name}": leaf.grad.data
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, Tensor) and leaf.grad is not None
    }
    others = {n: x for n, x in zip(names, case.inputs, strict=True) if isinstance(x, np.ndarray)}
    others |= {"the output": y.data, "dy": dy}
    for name, gradient in gradients.items():
        if not gradient.flags.writeable:
            raise CheckError(f"{op.__name__}: {name} is read-only")
        for other, array in (gradients | others).items():
            if other != name and np.shares_memory(gradient, array):
                raise CheckError(f"{op.__name__}: {name} shares memory with {other}")


def check_memory_order(op: Op[...], case: Case) -> None:
    """Transposed, reversed and strided inputs and upstream gradients give the same results."""
    names = _names(op, case)
    for twin, tolerance in precisions(op, case):
        y, rules = run_on(op.reference, twin)
        expected = [y, *_apply_rules(op, op.__name__, rules, _dy_for(y), twin.inputs)]
        for order in (transposed, strided):
            inputs = [order(x) if isinstance(x, np.ndarray) else x for x in twin.inputs]
            for name, function in implementations(op, Case(tuple(inputs), twin.params)):
                y, rules = run_on(function, twin, inputs)
                found = [y, *_apply_rules(op, name, rules, order(_dy_for(y)), inputs)]
                what = f"{name} with inputs in another memory order"
                _same_results(names, what, expected, found, tolerance)


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
    for twin, name, function in _in_each_precision(op, case):
        y, rules = run_on(function, twin)
        arrays = [memory_of(x) for x in twin.inputs if isinstance(x, np.ndarray)]
        budget = op.saves * (sum(x.nbytes for x in arrays) + y.nbytes) + 32  # 32: a few numbers
        saved = sum(x.nbytes for x in captured_memory([r for r in rules if r]))
        if saved > budget:
            raise CheckError(
                f"{name}: its rules keep {saved} bytes, {budget:.0f} are allowed, as many as "
                "inputs and output have: compute again in a rule what can be, or allow twice that "
                "by @op(saves=2)"
            )


def check_tape_freed(op: Op[...], case: Case) -> None:
    """What the rules saved dies in `backward`, with the output still held and no collector."""
    leaves = [Tensor(x, requires_grad=True) if is_floating(x) else x for x in case.inputs]
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
    names = _names(op, case)
    floating = [i for i, x in enumerate(case.inputs) if is_floating(x)]
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
        expected, found = [backward(a, b)], [backward(both, both)]
        compared = []
        if a.grad is not None and b.grad is not None and both.grad is not None:
            compared = [f"{names[i]} and {names[j]} together"]
            expected.append(a.grad.data + b.grad.data)
            found.append(both.grad.data)
        _same_results(compared, f"{op.__name__} of one tensor twice", expected, found, 1e-12)


def _same_results(
    inputs: Sequence[str],
    what: str,
    expected: Sequence[Any],
    found: Sequence[Any],
    tolerance: float,
) -> None:
    """Compare outputs and the gradients by `inputs`.

    The tolerance is relative to the largest element, or to 1.
    """
    names = ["the output", *(f"the gradient by {name}" for name in inputs)]
    for name, a, b in zip(names, expected, found, strict=True):
        if a is None:
            continue
        if a.shape != b.shape:
            raise CheckError(f"{what}: {name} has shape {b.shape}, expected {a.shape}")
        scale = max(float(abs(a).max()), 1.0) if a.size else 1.0
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            at = furthest(abs(np.asarray(a) - b))
            is_found, is_expected = apart(np.asarray(b)[at], np.asarray(a)[at])
            raise CheckError(f"{what}: {name}{bracketed(at)} is {is_found}, expected {is_expected}")


def check_calls_are_independent(op: Op[...], case: Case) -> None:
    """Nothing is shared between calls, nor between two uses of a rule.

    Calls with other values, before a call and between it and its rules, change no result; neither
    does what happens to a gradient that a rule has handed over.
    """
    names = _names(op, case)
    for twin, name, function in _in_each_precision(op, case):
        other = [np.flip(x).copy() if isinstance(x, np.ndarray) else x for x in twin.inputs]
        # smaller, so that logarithms stay real
        other = [np.asarray(x * x.dtype.type(0.75)) if is_floating(x) else x for x in other]
        y, rules = run_on(function, twin)
        expected = [y.copy(), *_apply_rules(op, name, rules, _dy_for(y), twin.inputs)]
        _apply_rules(op, name, run_on(function, twin, other)[1], _dy_for(y), other)
        y, rules = run_on(function, twin)
        run_on(function, twin, other)
        dy = _dy_for(y)
        found = [y, *_apply_rules(op, name, rules, dy, twin.inputs)]
        _same_results(names, f"{name} after another call", expected, found, 1e-12)
        for gradient in found[1:]:
            if gradient is not None and gradient is not dy and backend.owns_memory(gradient):
                gradient += 1  # a leaf's gradient may be changed in place
        found = [y, *_apply_rules(op, name, rules, dy, twin.inputs)]
        _same_results(names, f"{name}, its rules used twice", expected, found, 1e-12)


def check_other_backend(op: Op[...], case: Case) -> None:
    """On a GPU, output and gradients are those of numpy. Without cupy there is nothing to check."""
    xp = backend.cupy_if_installed()
    if xp is None:
        return
    names = _names(op, case)
    y, rules = run_on(op.reference, case)
    expected = [y, *_apply_rules(op, op.__name__, rules, _dy_for(y), case.inputs)]
    moved = Case(_moved(xp, case.inputs), {k: _moved(xp, v) for k, v in case.params.items()})
    for name, function in implementations(op, moved, xp):
        found, rules = run_on(function, moved, xp=xp)
        dy = xp.asarray(_dy_for(y))
        applied = [
            rule(dy) if rule and is_floating(x) else None
            for rule, x in zip(rules, case.inputs, strict=True)
        ]
        results = [None if a is None else backend.move(a, "cpu") for a in (found, *applied)]
        _same_results(names, f"{name} with {xp.__name__}", expected, results, 1e-10)


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
    "calls are independent": check_calls_are_independent,
    "shape and dtype": check_shape_and_dtype,
    "no aliases": check_no_aliases,
    "memory order": check_memory_order,
    "saved memory": check_saved_memory,
    "tape freed": check_tape_freed,
    "same tensor twice": check_same_tensor_twice,
}
# small cases, but cut into pieces as large ones are
CHECKS = {name: threads.tiny_pieces()(check) for name, check in CHECKS.items()}
