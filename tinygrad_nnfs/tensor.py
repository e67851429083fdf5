"""Tensor, op and the tape: the whole of reverse-mode differentiation.

An op is a function on arrays that returns its output and, for each input, a *rule*: a closure that
turns `dy`, the gradient of the loss with respect to the output, into the gradient with respect to
that input. `op` lifts such a function to Tensors and records the rules; `Tensor.backward` walks the
record from the loss to the parameters and applies them.
"""

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, Protocol, cast, overload

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.backend import Array

P = ParamSpec("P")
Rule = Callable[[Array], Array]
Untracked = tuple[tuple[int, ...], Any]  # the shape and dtype of an input without gradient

# What an op says of each of its inputs. To a caller all three accept a Tensor, an array, a (nested)
# list or a number; inside the op the value is an array, or the number itself.
Float = Annotated[Any, "computed in floating point: integers become float32"]
Number = Annotated[Any, "computed in the dtype it has, or the floating dtype of its neighbours"]
Index = Annotated[Any, "taken as it is, never differentiated: class labels, indices, conditions"]


class _Thread(threading.local):
    """Each thread records, or not, on its own."""

    recording = True


_thread = _Thread()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing in this thread, as a `with` block or as a decorator."""
    before, _thread.recording = _thread.recording, False
    try:
        yield
    finally:
        _thread.recording = before


class Node:
    """A place on the tape: which op made a tensor, from what, and the rule for each input.

    `inputs` has one entry per positional input and outlives `backward`: the input's Node, or just
    its shape and dtype where it needs no gradient. A Node never points at a Tensor that points
    back, so there are no reference cycles, and an activation that no rule asked for dies at once.
    """

    __slots__ = ("__weakref__", "dtype", "grad", "inputs", "op", "rules", "shape")

    def __init__(
        self,
        op: str | None,
        shape: tuple[int, ...],
        dtype: Any,
        inputs: Sequence["Node | Untracked"] = (),
        rules: Sequence[Rule | None] | None = (),
    ) -> None:
        self.op = op  # None for a leaf: a parameter or an input
        self.shape = shape
        self.dtype = dtype
        self.inputs = inputs
        self.rules = rules  # None in place of a rule that nobody needs, or of all once freed
        self.grad: Tensor | None = None  # leaves only


class Tensor:
    """An array and its place on the tape.

    `data` may be an array (kept as it is, memory shared), a number or a nested list (float32, or
    bool where all are bool). `requires_grad=True` makes it a leaf whose `.grad` `backward` fills.
    """

    __slots__ = ("__weakref__", "data", "node")
    # numpy must leave `ndarray * Tensor` to Tensor's own operator
    __array_ufunc__ = None

    data: Array
    node: Node | None

    def __init__(self, data: Any, *, requires_grad: bool = False) -> None:
        self.data = _as_array(data)
        self.node = None
        if requires_grad:
            self.requires_grad = True

    # -- what it is ------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def ndim(self) -> int:
        return len(self.data.shape)

    @property
    def size(self) -> int:
        return int(self.data.size)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return backend.device_of(self.data)

    @property
    def requires_grad(self) -> bool:
        """True if `backward` sends a gradient here. Can be switched on and off for a leaf."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(
                f"requires_grad of the result of {self.node.op} follows from its inputs: "
                "use detach() for a tensor without gradient"
            )
        if wanted and self.data.dtype.kind != "f":
            raise TypeError(
                f"only floating-point tensors have gradients, found {self.data.dtype}: "
                "use astype('float32') first"
            )
        if wanted != self.requires_grad:
            self.node = Node(None, self.data.shape, self.data.dtype) if wanted else None

    @property
    def grad(self) -> "Tensor | None":
        """The gradient that `backward` added up for this leaf, or None."""
        return self.node.grad if self.node else None

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        if self.node is None or self.node.op is not None:
            raise RuntimeError("grad can be set on a leaf with requires_grad alone")
        if value is not None and (value.shape, value.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"grad must be {self.dtype} {self.shape} like its tensor, "
                f"found {value.dtype} {value.shape}"
            )
        self.node.grad = value

    # -- the data on its own ---------------------------------------------------------------------

    def detach(self) -> "Tensor":
        """The same data (memory shared) off the tape."""
        return _tensor(self.data, None)

    def numpy(self) -> np.ndarray:
        """The data as a numpy array: the tensor's own memory on the CPU, a copy from a GPU."""
        return cast(np.ndarray, backend.move(self.data, "cpu"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> float | int | bool:
        """The value of a tensor of one element as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item() needs a tensor of one element, found shape {self.shape}")
        return cast(float | int | bool, self.data.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous: compare its numpy() "
                "with .any() or .all()"
            )
        return bool(self.data.item())

    def __len__(self) -> int:
        if not self.data.shape:
            raise TypeError("a tensor of shape () has no length")
        return int(self.data.shape[0])

    def __iter__(self) -> Iterator["Tensor"]:
        raise TypeError("a Tensor is not iterated: index it (x[0]), or iterate over x.numpy()")

    __hash__ = object.__hash__  # by identity, although == compares elements

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), precision=4, threshold=20, prefix="Tensor(")
        made = "" if self.node is None else f", op={self.node.op}" if self.node.op else ", leaf"
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}{made}{device})"

    # -- the tape --------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that self was computed from.

        `gradient` is the gradient with respect to self, of its shape; a tensor of one element has
        1 as its default. The rules, and the arrays that they saved, are freed on the way unless
        `retain_graph`. Nothing reaches any `.grad` if a rule raises.
        """
        if self.node is None:
            raise RuntimeError(
                "backward: nothing was recorded for this tensor: none of its inputs requires a "
                "gradient, or it was made under no_grad()"
            )
        waiting = _count_children(self.node)
        grads: dict[Node, Array] = {self.node: self._upstream(gradient)}
        ready, leaves = [self.node], []
        while ready:
            node = ready.pop()
            dy = grads.pop(node)
            if node.op is None:
                leaves.append((node, dy))
                continue
            for parent, rule in zip(node.inputs, node.rules or ()):
                if rule is None or isinstance(parent, tuple):
                    continue
                dx = _apply_rule(rule, dy, node, parent)
                if parent in grads:
                    grads[parent] = grads[parent] + dx  # not in place: dx may be a view of dy
                else:
                    grads[parent] = dx
                left = waiting[parent] - 1
                if left:
                    waiting[parent] = left
                else:
                    ready.append(parent)
            if not retain_graph:
                node.rules = rule = None  # what they saved dies here
        for node, dy in leaves:
            grad = dy if node.grad is None else node.grad.data + dy
            node.grad = _tensor(np.asarray(grad) if isinstance(grad, np.generic) else grad, None)

    def _upstream(self, gradient: Any) -> Array:
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward of {_made_by(self.node)} needs a gradient of shape {self.shape}: "
                    "only a tensor of one element has a default"
                )
            return backend.of(self.data).ones_like(self.data)
        dy = gradient.data if isinstance(gradient, Tensor) else gradient
        if not backend.is_array(dy):
            dy = backend.of(self.data).asarray(dy, dtype=self.dtype)
        if (dy.shape, dy.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"backward of {_made_by(self.node)}: the gradient must be {self.dtype} "
                f"{self.shape}, found {dy.dtype} {dy.shape}"
            )
        if backend.device_of(dy) != self.device:
            raise ValueError(
                f"backward of {_made_by(self.node)}: the gradient is on "
                f"{backend.device_of(dy)}, the tensor on {self.device}"
            )
        return dy.copy() if self.node and self.node.op is None else dy

    # -- operators and methods: each is put here by the op that it names -------------------------

    if TYPE_CHECKING:

        def __add__(self, other: Any) -> "Tensor": ...
        def __radd__(self, other: Any) -> "Tensor": ...
        def __sub__(self, other: Any) -> "Tensor": ...
        def __rsub__(self, other: Any) -> "Tensor": ...
        def __mul__(self, other: Any) -> "Tensor": ...
        def __rmul__(self, other: Any) -> "Tensor": ...
        def __truediv__(self, other: Any) -> "Tensor": ...
        def __rtruediv__(self, other: Any) -> "Tensor": ...
        def __pow__(self, other: Any) -> "Tensor": ...
        def __rpow__(self, other: Any) -> "Tensor": ...
        def __matmul__(self, other: Any) -> "Tensor": ...
        def __rmatmul__(self, other: Any) -> "Tensor": ...
        def __neg__(self) -> "Tensor": ...
        def __abs__(self) -> "Tensor": ...
        def __lt__(self, other: Any) -> "Tensor": ...
        def __le__(self, other: Any) -> "Tensor": ...
        def __gt__(self, other: Any) -> "Tensor": ...
        def __ge__(self, other: Any) -> "Tensor": ...
        def __eq__(self, other: Any) -> "Tensor": ...  # type: ignore[override]
        def __ne__(self, other: Any) -> "Tensor": ...  # type: ignore[override]
        def __getitem__(self, index: Any) -> "Tensor": ...
        def exp(self) -> "Tensor": ...
        def log(self) -> "Tensor": ...
        def sqrt(self) -> "Tensor": ...
        def tanh(self) -> "Tensor": ...
        def sigmoid(self) -> "Tensor": ...
        def relu(self) -> "Tensor": ...
        def clip(self, low: Any = None, high: Any = None) -> "Tensor": ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def var(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def astype(self, dtype: Any) -> "Tensor": ...
        def to(self, device: str) -> "Tensor": ...

    def abs(self) -> "Tensor":
        """The absolute value."""
        return self.__abs__()

    # these take their sizes one by one as well as in a tuple

    def reshape(self, *shape: Any) -> "Tensor":
        """The same elements in another shape: `x.reshape(2, 3)` or `x.reshape((2, 3))`."""
        return OPS["reshape"](self, shape=_spread(shape))

    def transpose(self, *axes: Any) -> "Tensor":
        """The axes in another order, reversed without arguments."""
        return OPS["transpose"](self, axes=_spread(axes) or None)

    def flatten(self, start: int = 0) -> "Tensor":
        """The axes from `start` on made one: (n, c, h, w) -> (n, c h w) for `start=1`."""
        if not 0 <= start <= max(self.ndim - 1, 0):
            raise ValueError(f"flatten: there is no axis {start} in shape {self.shape}")
        rest = math.prod(self.shape[start:])  # -1 cannot be told from an empty batch
        return self.reshape((*self.shape[:start], rest))

    @property
    def T(self) -> "Tensor":
        """The axes reversed."""
        return self.transpose()


class Parameter(Tensor):
    """A leaf that an optimiser updates: a Tensor with `requires_grad` that a Module registers."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


def _tensor(data: Array, node: Node | None) -> Tensor:
    """A Tensor of what is an array already."""
    tensor = object.__new__(Tensor)
    tensor.data = data
    tensor.node = node
    return tensor


def _as_array(data: Any) -> Array:
    if isinstance(data, Tensor):
        raise TypeError("Tensor(Tensor): use detach() for the same data off the tape")
    if isinstance(data, list | tuple) and any(isinstance(x, Tensor) for x in data):
        raise TypeError("Tensor([Tensor, ...]) would lose their gradients: use ops.stack")
    if not backend.is_array(data) and not isinstance(data, np.generic):
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: the lists are not of one shape: {error}") from None
        if data.dtype.kind in "iuf":
            data = data.astype(np.float32)
    array = np.asarray(data) if isinstance(data, np.generic) else data
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Tensor: elements must be bool, integer or floating, found {array.dtype}")
    return array


def _spread(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` say the same."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes


def _made_by(node: Node | None) -> str:
    return "a leaf" if node is None or node.op is None else f"the result of {node.op}"


def _count_children(root: Node) -> dict[Node, int]:
    """How many rules will send a gradient to each node. No recursion: a chain may be long."""
    children, stack = {root: 0}, [root]
    while stack:
        node = stack.pop()
        if node.rules is None:
            raise RuntimeError(
                f"backward has passed through {node.op} before and freed what it saved: "
                "use retain_graph=True the first time, or run the forward again"
            )
        for parent, rule in zip(node.inputs, node.rules):
            if rule is None or isinstance(parent, tuple):
                continue
            if parent in children:
                children[parent] += 1
            else:
                children[parent] = 1
                stack.append(parent)
    return children


def _apply_rule(rule: Rule, dy: Array, node: Node, parent: Node) -> Array:
    """The gradient by one input, checked, and in memory of its own if that input is a leaf."""
    try:
        dx = rule(dy)
    except Exception as error:
        error.add_note(f"in the rule of {node.op} for input {node.inputs.index(parent)}")
        raise
    if dx.shape != parent.shape or dx.dtype != parent.dtype:
        raise RuntimeError(
            f"the rule of {node.op} for input {node.inputs.index(parent)} returned {dx.dtype} "
            f"{dx.shape}, the input is {parent.dtype} {parent.shape}"
        )
    if parent.op is None and (dx is dy or dx.base is not None):
        return dx.copy() if backend.of(dx).may_share_memory(dx, dy) else dx
    return dx


# -- ops -------------------------------------------------------------------------------------------


class Op(Protocol[P]):
    """What `@op` makes of a function: called with Tensors; the rest is for tests and kernels."""

    __name__: str
    reference: Callable[..., tuple[Any, ...]]
    variants: dict[ModuleType, list[tuple[Callable[..., bool], Callable[..., Any]]]]
    sampler: Callable[..., Any] | None
    saves: float

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    def samples(self, sampler: Callable[..., Any], /) -> Callable[..., Any]: ...
    def on(
        self, xp: ModuleType, /, *, when: Callable[..., bool]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...


OPS: dict[str, Op[...]] = {}


@overload
def op(function: Callable[Concatenate[Any, P], Any], /) -> Op[P]: ...
@overload
def op(
    *, method: str | None = None, saves: float = 1.0
) -> Callable[[Callable[Concatenate[Any, P], Any]], Op[P]]: ...


def op(function: Any = None, /, *, method: str | None = None, saves: float = 1.0) -> Any:
    """Lift `function(xp, *arrays, **params) -> (output, rule, ...)` to Tensors and enter it in OPS.

    `xp` is the backend of the arrays. Each positional input gets one rule, in order, or None if it
    has no derivative. A rule returns dy, a view of dy, or an array that it alone made, of its
    input's shape and dtype; it changes nothing it was given. What it captures is what is saved.

    Args:
        method: the name under which Tensor gets the op, too. For a binary operator such as
            `__sub__` the reflected `__rsub__` comes with it.
        saves: how many times the bytes of inputs plus output the rules may keep alive; checked by
            `checking.check_op`.

    The lifted op has `.samples`, a decorator for the generator of its test cases (see
    `checking.Draw`), and `.on(xp, when=...)`, which registers a faster variant for one backend,
    used where `when(*arrays, **params)` holds.
    """
    if function is None:
        return functools.partial(op, method=method, saves=saves)

    name = function.__name__
    signature, kinds, variadic = _read_signature(function)
    positional = frozenset(kinds)
    kind_of = tuple(kinds.values())
    arity = None if variadic else len(kinds)
    variants: dict[ModuleType, list[tuple[Callable[..., bool], Callable[..., Any]]]] = {}

    @functools.wraps(function)
    def apply(*inputs: Any, **params: Any) -> Tensor:
        if len(inputs) != arity or (params and not positional.isdisjoint(params)):
            inputs, params = _bind(name, signature, inputs, params)
        xp, arrays = _operands(name, kind_of * len(inputs) if variadic else kind_of, inputs)
        run = function
        try:
            if variants:
                for when, variant in variants.get(xp, ()):
                    if when(*arrays, **params):
                        run = variant
                        break
            result = run(xp, *arrays, **params)
        except (ValueError, TypeError, IndexError) as error:
            kind = next(k for k in (ValueError, TypeError, IndexError) if isinstance(error, k))
            raise kind(f"{_describe(name, kinds, variadic, arrays)}: {error}") from error
        output, rules = result[0], result[1:]
        if type(output) is not np.ndarray:
            output = xp.asarray(output)  # numpy turns what would be a 0-d array into a scalar
        if len(rules) != len(inputs):
            raise TypeError(f"{name} returned {len(rules)} rules for {len(inputs)} inputs")
        node = _record(name, output, inputs, rules) if _thread.recording else None
        return _tensor(output, node)

    if name in OPS and OPS[name].reference.__module__ != function.__module__:
        raise ValueError(
            f"there is an op {name!r} in {OPS[name].reference.__module__} already: rename this one"
        )

    def samples(sampler: Any) -> Any:
        lifted.sampler = sampler
        return sampler

    def on(xp: ModuleType, *, when: Callable[..., bool]) -> Any:
        def register(variant: Any) -> Any:
            variants.setdefault(xp, []).append((when, variant))
            return variant

        return register

    lifted: Any = apply
    lifted.__signature__ = signature  # help(op) shows what callers pass: no xp
    lifted.reference, lifted.variants, lifted.saves = function, variants, saves
    lifted.sampler, lifted.samples, lifted.on = None, samples, on
    OPS[name] = lifted
    if method is not None:
        _add_method(method, lifted, signature)
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
            variadic = p.kind is p.VAR_POSITIONAL
    return inspect.Signature(rest, return_annotation=Tensor), kinds, variadic


def _bind(name: str, signature: inspect.Signature, inputs: Any, params: Any) -> tuple[Any, Any]:
    """Put inputs that were given by name in their places and fill in the optional ones."""
    variadic = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if variadic and len(inputs) == 1 and isinstance(inputs[0], list | tuple):
        inputs = inputs[0]  # stack([a, b]) says the same as stack(a, b)
    try:
        bound = signature.bind(*inputs, **params)
    except TypeError as error:
        raise TypeError(f"{name}{signature.replace(return_annotation=())}: {error}") from None
    bound.apply_defaults()
    return bound.args, {k: v for k, v in bound.kwargs.items() if k in params}


def _operands(
    name: str, kinds: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[ModuleType, list[Any]]:
    """The inputs as arrays of one backend and, where they are computed with, of one dtype."""
    dtype: Any = None
    arrays: list[Any] = []
    for x in inputs:  # the common case first: all of one floating dtype, on the CPU
        data = x.data if isinstance(x, Tensor) else x
        if type(data) is not np.ndarray:
            break
        if dtype is None:
            dtype = data.dtype
        if data.dtype is not dtype and kinds[len(arrays)] is not Index:
            break
        arrays.append(data)
    else:
        if dtype is not None and dtype.kind == "f":
            return np, arrays
    return _convert(name, kinds, inputs)


def _convert(
    name: str, kinds: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[ModuleType, list[Any]]:
    """`_operands` for everything else: numbers, lists, arrays, integers, other devices."""
    values = [x.data if isinstance(x, Tensor) else x for x in inputs]
    devices = {backend.device_of(v) for v in values if backend.is_array(v)}
    if len(devices) > 1:
        where = ", ".join(backend.device_of(v) if backend.is_array(v) else "-" for v in values)
        raise ValueError(f"{name}: its inputs are on different devices ({where}): use to(device)")
    xp = backend.of(next((v for v in values if backend.is_array(v)), np.empty(0)))
    for i, v in enumerate(values):
        if v is None or backend.is_array(v):
            continue
        if kinds[i] is Index:
            values[i] = xp.asarray(v)
        elif not devices or type(v) not in (bool, int, float):
            values[i] = xp.asarray(_as_array(v))
        # else a number stays a number: it takes the dtype of the arrays that it meets
    dtype = _common_dtype(name, kinds, inputs, values)
    for i, v in enumerate(values):
        if backend.is_array(v) and kinds[i] is not Index and dtype is not None and v.dtype != dtype:
            values[i] = v.astype(dtype)
    return xp, values


def _common_dtype(
    name: str, kinds: tuple[Any, ...], inputs: tuple[Any, ...], values: list[Any]
) -> Any:
    """The floating dtype in which the op computes; None to leave integers alone."""
    computed = [i for i, v in enumerate(values) if kinds[i] is not Index and v is not None]
    arrays = [i for i in computed if backend.is_array(values[i])]
    floating = [i for i in arrays if values[i].dtype.kind == "f"]
    tensors = {values[i].dtype for i in floating if isinstance(inputs[i], Tensor)}
    if len(tensors) > 1:
        names = " and ".join(sorted(str(d) for d in tensors))
        raise TypeError(f"{name}: its inputs mix {names}: use astype so that they agree")
    if tensors:
        return tensors.pop()
    if floating:  # no floating Tensor: arrays keep their dtype, lists have become float32
        return np.result_type(*(values[i].dtype for i in floating))
    numbers = any(isinstance(values[i], float) for i in computed)
    if numbers or any(kinds[i] is Float for i in computed):
        return np.dtype(np.float32)
    return None


def _record(
    name: str, output: Array, inputs: tuple[Any, ...], rules: tuple[Rule | None, ...]
) -> Node | None:
    """A Node for the output if somebody upstream wants a gradient; only the rules that serve him.

    A rule whose input needs no gradient is dropped here, with everything that it captured: the
    first layer never keeps its weight alive, nor computes a gradient for the images.
    """
    parents: list[Node | Untracked] = []
    kept: list[Rule | None] = []
    wanted = False
    for x, rule in zip(inputs, rules):
        node = x.node if isinstance(x, Tensor) else None
        if node is not None:
            parents.append(node)
            kept.append(rule)
            wanted = wanted or rule is not None
        else:
            data = x.data if isinstance(x, Tensor) else x
            is_array = hasattr(data, "dtype")
            parents.append((data.shape, data.dtype) if is_array else ((), type(data)))
            kept.append(None)
    return Node(name, output.shape, output.dtype, parents, kept) if wanted else None


def _describe(name: str, kinds: dict[str, Any], variadic: bool, arrays: list[Any]) -> str:
    """`matmul(a: float32 (2, 3), b: float32 (4,))`, to begin an error message with."""
    names = [f"{n}[{i}]" for n in kinds for i in range(len(arrays))] if variadic else list(kinds)
    described = [
        f"{n}: {a.dtype} {a.shape}" if hasattr(a, "shape") else f"{n}: {a!r}"
        for n, a in zip(names, arrays, strict=False)
    ]
    return f"{name}({', '.join(described)})"


def _add_method(method: str, lifted: Any, signature: inspect.Signature) -> None:
    options = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    inputs = len(signature.parameters) - len(options)

    @functools.wraps(lifted)
    def call(*args: Any, **params: Any) -> Tensor:
        # x.sum(0): what comes after the inputs are the options, in their order
        given = dict(zip(options, args[inputs:], strict=False))
        if len(args) > inputs + len(options) or not given.keys().isdisjoint(params):
            raise TypeError(f"{method} takes {', '.join(options)}, each once: see help({method})")
        return cast(Tensor, lifted(*args[:inputs], **given, **params))

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
