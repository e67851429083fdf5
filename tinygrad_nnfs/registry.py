"""The ops: what `@op` makes of a function on arrays, and OPS, where all of them are.

`op` lifts a function to Tensors: it turns whatever it is called with into arrays of one device and
one dtype, runs the function, or a faster variant of it, and records its rules on the tape.
"""

import contextlib
import functools
import inspect
import os
import reprlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, cast, overload

import numpy as np
from numpy import generic, ndarray

from tinygrad_nnfs import backend
from tinygrad_nnfs.backend import Array
from tinygrad_nnfs.tensor import (
    FLOAT32,
    Node,
    Tensor,
    Untracked,
    as_array,
    new_tensor,
    recording,
)

P = ParamSpec("P")

# What an op says of each of its inputs. To a caller all three accept a Tensor, an array, a (nested)
# list or a number; inside the op the value is an array, or the number itself.
Float = Annotated[Any, "computed in the floating dtype of all inputs, float32 if there is none"]
Number = Annotated[Any, "computed in the dtype it has, or the floating dtype of its neighbours"]
Index = Annotated[Any, "taken as it is, never differentiated: class labels, indices, conditions"]


class _KernelMode(threading.local):
    """Each thread uses the variants of ops, or not, on its own."""

    enabled = os.environ.get("NNFS_REFERENCE", "0") in ("", "0")


kernel_mode = _KernelMode()


@contextlib.contextmanager
def reference_kernels() -> Iterator[None]:
    """Run the ops themselves in this thread, none of their faster variants.

    As a `with` block or as a decorator. The environment's NNFS_REFERENCE=1 does it for a whole
    process.
    """
    before, kernel_mode.enabled = kernel_mode.enabled, False
    try:
        yield
    finally:
        kernel_mode.enabled = before


class Op(Protocol[P]):
    """What `@op` makes of a function: called with Tensors; the rest is for tests and kernels."""

    __name__: str
    reference: Callable[..., tuple[Any, ...]]
    variants: dict[ModuleType, list[tuple[Callable[..., bool], Callable[..., Any]]]]
    kinds: tuple[Any, ...]  # Float, Number or Index, for each positional input
    sampler: Callable[..., Any] | None
    saves: float
    flops: Callable[..., int] | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    def samples(self, sampler: Callable[..., Any], /) -> Callable[..., Any]: ...
    def on(
        self, xp: ModuleType, /, *, when: Callable[..., bool]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...


class Observer(Protocol):
    """What `observed_by` takes: it runs the ops in place of a plain call."""

    def call(
        self,
        op: Op[...],
        variant: str,
        run: Callable[..., Any],
        xp: ModuleType,
        /,
        *arrays: Any,
        **params: Any,
    ) -> Any:
        """Return `run(xp, *arrays, **params)`: the output array, and a rule or None for each input.

        `variant` is the name of the function that computes. The rules may be wrapped.
        """

    def recorded(self, node: Node) -> None:
        """The last call in this thread, if its output requires a gradient, is `node`."""


observers: tuple[Observer, ...] = ()  # of all threads; the last one stands next to the op
_changing = backend.lock()


@contextlib.contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let `observer` run all ops, in all threads."""
    global observers
    with _changing:
        observers = (*observers, observer)
    try:
        yield
    finally:
        with _changing:
            observers = tuple(other for other in observers if other is not observer)


def _run_observed(
    watching: Sequence[Observer],
    op: Op[...],
    names: Sequence[str],
    run: Callable[..., Any],
    xp: ModuleType,
    arrays: Sequence[Any],
    params: Any,
) -> Any:
    def compute(xp: ModuleType, *arrays: Any, **params: Any) -> Any:
        result = run(xp, *arrays, **params)
        check_result(op.__name__, names, len(arrays), result)
        return _as_array(xp, result[0]), *result[1:]

    observed: Callable[..., Any] = compute
    for observer in reversed(watching):
        observed = functools.partial(observer.call, op, run.__name__, observed)
    return observed(xp, *arrays, **params)


def _as_array(xp: ModuleType, output: Any) -> Array:
    """The output of an op: numpy turns what would be a 0-d array into a scalar."""
    # an array may be of another backend than its op's: ops.to moves it
    return output if backend.is_array(output) else xp.asarray(output)


def captured_arrays(roots: Sequence[Any]) -> list[Array]:
    """The arrays, views as they are, that functions captured, directly or through other things."""
    arrays: dict[int, Array] = {}
    stack, seen = list(roots), set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if backend.is_array(value):
            arrays[id(value)] = value
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
        elif callable(value):
            stack += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            stack += getattr(value, "args", ())  # of a functools.partial
        elif hasattr(value, "__dict__") and not isinstance(value, ModuleType):
            stack += vars(value).values()
    return list(arrays.values())


def captured_memory(roots: Sequence[Any]) -> list[Array]:
    """The arrays whose memory functions keep alive, directly or through what they captured."""
    return list({id(x): x for x in map(memory_of, captured_arrays(roots))}.values())


def memory_of(array: Array) -> Array:
    """The array that owns the memory of a view; of any other the array itself."""
    while not backend.owns_memory(array) and backend.is_array(array.base):
        array = array.base
    return array


OPS: dict[str, Op[...]] = {}


@overload
def op(function: Callable[Concatenate[Any, P], Any], /) -> Op[P]: ...
@overload
def op(
    *,
    method: str | None = None,
    spread: bool = False,
    saves: float = 1.0,
    flops: Callable[..., int] | None = None,
) -> Callable[[Callable[Concatenate[Any, P], Any]], Op[P]]: ...


def op(
    function: Any = None,
    /,
    *,
    method: str | None = None,
    spread: bool = False,
    saves: float = 1.0,
    flops: Callable[..., int] | None = None,
) -> Any:
    """Lift `function(xp, *arrays, **params) -> (output, rule, ...)` to Tensors and enter it in OPS.

    `xp` is the backend of the arrays. Each positional input gets one rule, in order, or None if it
    has no derivative. A rule returns dy, a view of dy, or an array that it alone made, of its
    input's shape and dtype; it changes nothing it was given. What it captures is what is saved.

    Args:
        method: the name under which Tensor gets the op, too. For a binary operator such as
            `__sub__` the reflected `__rsub__` comes with it. Other methods take the op's options
            by position, too: `x.sum(0)`.
        spread: the method takes the one option's elements one by one, too: `x.reshape(2, 3)`.
        saves: how many times the bytes of inputs plus output the rules may keep alive; checked by
            `checking.check_op`.
        flops: the floating-point operations of the forward, `flops(output, *arrays, **params)`, of
            an op that is worth counting; a gradient by an input that is no vector takes as many.

    The lifted op has `.samples`, a decorator for the generator of its test cases (see
    `checking.Draw`), and `.on(xp, when=...)`, which registers a faster variant for one backend,
    used where `when(*arrays, **params)` holds. Of several that apply the last registered is used.
    """
    if function is None:
        return functools.partial(op, method=method, spread=spread, saves=saves, flops=flops)

    name = function.__name__
    signature, kind_by_name, variadic = _read_signature(function)
    names, kind_of = list(kind_by_name), tuple(kind_by_name.values())
    options = frozenset(signature.parameters).difference(names)
    needed = {n for n in options if signature.parameters[n].default is inspect.Parameter.empty}
    arity = None if variadic else len(names)
    optional = [n for n in names if signature.parameters[n].default is None]  # the last ones
    required = None if variadic else len(names) - len(optional)
    variants: dict[ModuleType, list[tuple[Callable[..., bool], Callable[..., Any]]]] = {}

    def is_index(i: int) -> bool:
        return kind_of[0 if variadic else i] is Index

    @functools.wraps(function)
    def apply(*inputs: Any, **params: Any) -> Tensor:
        if (
            len(inputs) != arity
            or (params and not options.issuperset(params))
            or (needed and not needed.issubset(params))
        ):
            inputs, params = _bind(name, signature, inputs, params)
        for option, value in params.items():
            if isinstance(value, generic):  # it would impose its dtype on the arrays it meets
                params[option] = value.item()
        run, xp = function, None
        arrays: list[Any] = []
        dtype: Any = None
        try:
            # Arrays of one floating dtype and numbers, on the CPU, are taken as they are. This is
            # here and not a function, as is the recording: small networks spend their time on it.
            for x in inputs:
                data = x.data if isinstance(x, Tensor) else x
                if type(data) is ndarray:
                    if dtype is None:
                        dtype = data.dtype
                    elif data.dtype is not dtype and not is_index(len(arrays)):
                        break
                elif type(data) not in (float, int) or is_index(len(arrays)):
                    break
                arrays.append(data)
            else:
                if dtype is FLOAT32 or (dtype is not None and dtype.kind == "f" and dtype.isnative):
                    xp = np
            if xp is None:
                kinds = kind_of * len(inputs) if variadic else kind_of
                xp, arrays = _convert(kinds, inputs, required)
            if variants and kernel_mode.enabled:
                for when, variant in variants.get(xp, ()):
                    if when(*arrays, **params):
                        run = variant
                        break
            watching = observers  # once: another thread may change them meanwhile
            if watching:
                result = _run_observed(watching, lifted, names, run, xp, arrays, params)
            else:
                result = run(xp, *arrays, **params)
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
            # one of the three that callers expect: numpy's own subclasses want other arguments
            expected = next(
                (e for e in (ValueError, IndexError) if isinstance(error, e)), TypeError
            )
            found = arrays if len(arrays) == len(inputs) else inputs
            reason = _reason(error)
            raise expected(f"{_describe(name, names, variadic, found)}: {reason}") from error
        if type(result) is not tuple or len(result) != len(inputs) + 1:
            check_result(name, names, len(inputs), result)
        output, rules = result[0], result[1:]
        if type(output) is not ndarray:
            check_result(name, names, len(inputs), result)
            output = _as_array(xp, output)
        y = new_tensor()
        y.data, y.node = output, None
        if recording.on:
            parents: list[Any] = [x.node if isinstance(x, Tensor) else None for x in inputs]
            if None in parents:
                rules = [*rules]
                for i, parent in enumerate(parents):
                    if parent is None:  # drop its rule and all that it captured: no gradient of
                        rules[i] = None  # images, no weight kept alive by the first layer
                        parents[i] = _shape_and_dtype(arrays[i])
            if any(rules):
                y.node = Node(name, output.shape, output.dtype, parents, rules)
                for observer in watching:
                    observer.recorded(y.node)
        return y

    if name in OPS and OPS[name].reference.__module__ != function.__module__:
        raise ValueError(
            f"there is an op {name!r} in {OPS[name].reference.__module__} already: rename this one"
        )

    taken = vars(Tensor).get(method or "")  # by an op of this file: it is defined again
    if taken is not None and getattr(taken, "__module__", None) != function.__module__:
        raise ValueError(
            f"op {name}: a Tensor has {method!r} already: give the method another name"
        )

    def samples(sampler: Any) -> Any:
        lifted.sampler = sampler
        return sampler

    def on(xp: ModuleType, *, when: Callable[..., bool]) -> Any:
        def register(variant: Any) -> Any:
            variants.setdefault(xp, []).insert(0, (when, variant))
            return variant

        return register

    lifted: Any = apply
    lifted.__signature__ = signature  # help(op) shows what callers pass: no xp
    lifted.reference, lifted.variants, lifted.saves = function, variants, saves
    lifted.kinds, lifted.flops = kind_of, flops
    lifted.sampler, lifted.samples, lifted.on = None, samples, on
    OPS[name] = lifted
    if method is not None:
        _add_method(method, lifted, signature, spread)
    return lifted


def _read_signature(function: Any) -> tuple[inspect.Signature, dict[str, Any], bool]:
    """The signature without xp, the kind of each positional input, and whether it is `*inputs`."""
    first, *rest = inspect.signature(function, eval_str=True).parameters.values()
    if first.name != "xp":
        raise TypeError(f"op {function.__name__}: the first argument must be xp, the backend")
    kinds: dict[str, Any] = {}
    variadic = False
    for p in rest:
        if p.kind is not p.KEYWORD_ONLY:
            kinds[p.name] = p.annotation if p.annotation in (Number, Index) else Float
            variadic = variadic or p.kind is p.VAR_POSITIONAL
    if variadic and len(kinds) > 1:
        raise TypeError(f"op {function.__name__}: *inputs cannot stand beside other inputs")
    shown = [p.replace(annotation=p.empty) for p in rest]
    return inspect.Signature(shown), kinds, variadic


def check_result(name: str, names: Sequence[str], inputs: int, result: Any) -> None:
    """Raise TypeError unless `result` is (output, rule for each input), the output an array."""
    if not isinstance(result, tuple):
        raise TypeError(f"op {name} must return its output and a rule for each input, as a tuple")
    if len(result) != inputs + 1:
        raise TypeError(
            f"op {name} must return its output and one rule for each input: it has {inputs} inputs "
            f"({', '.join(names)}) and {len(result) - 1} rules; options stand behind a *"
        )
    if isinstance(result[0], Tensor):
        raise TypeError(f"op {name} returned a Tensor: an op computes with arrays, by xp")
    if isinstance(result[0], tuple | list):
        raise TypeError(
            f"op {name} must return one array, and a rule for each input, found several"
        )
    for rule in result[1:]:
        if rule is not None and not callable(rule):
            raise TypeError(
                f"op {name}: a rule must be a function of dy, or None, found a "
                f"{type(rule).__name__}"
            )


def input_names(op: Callable[..., Any], count: int) -> list[str]:
    """What an op, or another function, calls its first `count` inputs: "weight", or "xs[1]"."""
    parameters = inspect.signature(op).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}[{i}]" for i in range(count - len(names))]
    return names[:count]


def _bind(name: str, signature: inspect.Signature, inputs: Any, params: Any) -> tuple[Any, Any]:
    """Put inputs that were given by name in their places and fill in the optional ones."""
    variadic = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if variadic and len(inputs) == 1 and isinstance(inputs[0], list | tuple):
        inputs = inputs[0]  # stack([a, b]) says the same as stack(a, b)
    try:
        bound = signature.bind(*inputs, **params)
    except TypeError as error:
        raise TypeError(f"{name}{signature}: {error}") from None
    bound.apply_defaults()
    return bound.args, {k: v for k, v in bound.kwargs.items() if k in params}


def _convert(
    kinds: tuple[Any, ...], inputs: tuple[Any, ...], required: int | None
) -> tuple[ModuleType, list[Any]]:
    """The inputs as arrays of one backend and, where they are computed with, of one dtype.

    The first `required` (all if None) may not be None.

    float32 Tensor, float64 array or list or number     -> float32, the Tensor's
    float32 Tensor, float64 Tensor                      -> refused
    int64 Tensor, integer or list of integers           -> int64 (float32 if the op says Float)
    int64 Tensor, float64 array                         -> float64
    int64 Tensor, 0.5 or list of such numbers           -> float32
    """
    if any(x is None for x in inputs[:required]):
        raise TypeError("it needs an array where None is given")
    values = [x.data if isinstance(x, Tensor) else x for x in inputs]
    arrays = [v for v in values if backend.is_array(v)]
    if len({backend.device_of(v) for v in arrays}) > 1:
        where = ", ".join(backend.device_of(v) if backend.is_array(v) else "-" for v in values)
        raise ValueError(f"its inputs are on different devices ({where}): use to(device)")
    xp = backend.of(arrays[0]) if arrays else np
    computed = [i for i, v in enumerate(values) if kinds[i] is not Index and v is not None]
    meets_array = any(backend.is_array(values[i]) for i in computed)
    for i, v in enumerate(values):
        if kinds[i] is Index:
            values[i] = xp.asarray(v)
        elif v is None or (meets_array and type(v) in (bool, int, float)):
            pass  # a number stays a number: it takes the dtype of the arrays that it meets
        else:
            values[i] = xp.asarray(as_array(v, keep_integers=meets_array))
    dtype = _common_dtype([(kinds[i], inputs[i], values[i]) for i in computed])
    for i in computed:
        if dtype is not None and backend.is_array(values[i]) and values[i].dtype != dtype:
            values[i] = values[i].astype(dtype)
    return xp, values


def _common_dtype(computed: list[tuple[Any, Any, Any]]) -> Any:
    """The floating dtype to compute in, from (kind, input, value); None leaves integers alone."""
    floating = [(x, v.dtype) for _, x, v in computed if backend.is_array(v) and v.dtype.kind == "f"]
    tensors = {dtype for x, dtype in floating if isinstance(x, Tensor)}
    if len(tensors) > 1:
        names = " and ".join(sorted(str(d) for d in tensors))
        raise TypeError(f"its inputs mix {names}: use astype so that they agree")
    if tensors:
        return tensors.pop()
    if floating:  # no floating Tensor: arrays keep their dtype, lists have become float32
        return np.result_type(*(dtype for _, dtype in floating))
    if any(kind is Float or isinstance(v, float) for kind, _, v in computed):
        return np.dtype(np.float32)
    return None


def _shape_and_dtype(x: Any) -> Untracked:
    return (x.shape, x.dtype) if hasattr(x, "dtype") else ((), type(x))


def _describe(name: str, names: list[str], variadic: bool, arrays: Sequence[Any]) -> str:
    """`matmul(a: float32 (2, 3), b: float32 (4,))`, to begin an error message with."""
    if variadic:
        names = [f"{names[0]}[{i}]" for i in range(len(arrays))]
    described = [
        f"{n}: {a.dtype} {a.shape}"
        if isinstance(a, Tensor) or backend.is_array(a)
        else f"{n}: {' '.join(reprlib.repr(a).split())}"  # one line, however long a list is
        for n, a in zip(names, arrays, strict=False)
    ]
    return f"{name}({', '.join(described)})"


def _reason(error: Exception) -> str:
    """What the op found wrong, as the end of an error message."""
    found = str(error).strip()  # numpy leaves a space behind
    number = found.startswith(("'int' object", "'float' object", "'bool' object"))
    if number and found.partition(" object ")[2].startswith(("has no attribute", "is not subscr")):
        return f"it needs an array where a number is given ({found})"
    if found.startswith("arrays used as indices must be of integer"):
        return f"{found}: declare the op's input as x: Index, of tinygrad_nnfs.registry"
    return found


def _add_method(method: str, lifted: Any, signature: inspect.Signature, spread: bool) -> None:
    options = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    inputs = len(signature.parameters) - len(options)

    def call(*args: Any, **params: Any) -> Tensor:
        args, values = args[:inputs], args[inputs:]
        if not values:
            return cast(Tensor, lifted(*args, **params))
        if spread and not (len(values) == 1 and isinstance(values[0], Sequence)):
            values = (values,)
        given = dict(zip(options, values, strict=False))
        if len(values) > len(options) or not given.keys().isdisjoint(params):
            raise TypeError(
                f"Tensor.{method} takes {', '.join(options)}, each once: see help(Tensor.{method})"
            )
        return cast(Tensor, lifted(*args, **given, **params))

    functools.update_wrapper(call, lifted)
    shown: Any = call
    takes = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values()]
    if spread:
        takes[-1] = takes[-1].replace(kind=inspect.Parameter.VAR_POSITIONAL, default=inspect._empty)
    shown.__signature__ = inspect.Signature(takes)
    setattr(Tensor, method, call if options else lifted)
    if method.startswith("__") and inputs == 2 and method not in _COMPARISONS:
        setattr(Tensor, f"__r{method[2:]}", lambda self, other: lifted(other, self))


_COMPARISONS = ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__")


def once(shared: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Work that several rules of one op share: computed for the first, remembered for the others.

    The work is remembered for one `dy`, by identity, and dies with the rules.
    """
    known: list[Any] = [None, None]

    def compute(dy: Array) -> Any:
        if known[0] is not dy:
            known[:] = dy, shared(dy)
        return known[1]

    return compute


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum `dy` over the axes that broadcasting added to or stretched from `shape`."""
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    stretched = [added + i for i, n in enumerate(shape) if n == 1 and dy.shape[added + i] != 1]
    return dy.sum(axis=(*range(added), *stretched), keepdims=True).reshape(shape)
