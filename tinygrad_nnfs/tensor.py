"""Tensor and the tape: the whole of reverse-mode differentiation.

An op is a function on arrays that returns its output and, for each input, a *rule*: a closure that
turns `dy`, the gradient of the loss with respect to the output, into the gradient with respect to
that input. `op` (in registry.py) records the rules on the tape as it computes; `Tensor.backward`
walks the record from the loss to the parameters and applies them.
"""

import contextlib
import copy
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy import ndarray

from tinygrad_nnfs import backend
from tinygrad_nnfs.backend import Array

Rule = Callable[[Array], Array]
Untracked = tuple[tuple[int, ...], Any]  # the shape and dtype of an input without gradient
Scope = tuple[Any, "Scope | None"]  # the Module that is being called, and the scope of that call


class _Recording(threading.local):
    """What a thread's tape goes by: each thread records, or not, on its own."""

    on = True
    scope: Scope | None = None  # which Modules are being called


recording = _Recording()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing in this thread, as a `with` block or as a decorator."""
    before, recording.on = recording.on, False
    try:
        yield
    finally:
        recording.on = before


_countdown = itertools.count(0, -1)
_accumulating = backend.lock()  # threads may add to the gradient of one leaf


class Node:
    """A place on the tape: which op made a tensor, from what, and the rule for each input.

    `inputs` has one entry per positional input and outlives `backward`: the input's Node, or just
    its shape and dtype where it needs no gradient. A Node never points at a Tensor that points
    back, so there are no reference cycles, and an activation that no rule asked for dies at once.
    """

    __slots__ = (
        "__weakref__",
        "dtype",
        "grad",
        "inputs",
        "keeps_grad",
        "op",
        "order",
        "rules",
        "scope",
        "shape",
    )

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
        # The Modules that it was made in, for pictures and messages. A leaf has none: a Module
        # that made its parameters in a call would hold itself through them.
        self.scope = recording.scope if op is not None else None
        self.keeps_grad = op is None  # see Tensor.retain_grad
        self.grad: Tensor | None = None
        self.order = next(_countdown)  # the smaller, the younger: inputs are older than outputs


def _leaf(data: Array) -> Node:
    if data.dtype.kind != "f":
        raise TypeError(
            f"only floating-point tensors have gradients, found {data.dtype}: use "
            "astype('float32') first"
        )
    return Node(None, data.shape, data.dtype)


class Tensor:
    """An array and its place on the tape.

    `data` may be an array (kept as it is, memory shared: numpy's float64 stays float64), a number
    or a nested list (float32, integers too; bool where all are bool). `requires_grad=True` makes it
    a leaf whose `.grad` `backward` fills.
    """

    __slots__ = ("__weakref__", "data", "node")

    data: Array
    node: Node | None

    def __init__(self, data: Any, *, requires_grad: bool = False) -> None:
        self.data = as_array(data)
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
        """True if `backward` sends a gradient here.

        Can be switched for a leaf; switching it off forgets its gradient and its place on the tape.
        """
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(
                f"requires_grad of the result of {self.node.op} follows from its inputs: "
                "use detach() for a tensor without gradient"
            )
        leaf = _leaf(self.data) if wanted else None
        if wanted != self.requires_grad:
            self.node = leaf

    @property
    def grad(self) -> "Tensor | None":
        """The gradient that `backward` added up for this leaf, or None.

        For the result of an op as well if `retain_grad` was called in time.
        """
        return self.node.grad if self.node else None

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        if self.node is None or self.node.op is not None:
            raise RuntimeError("grad can be set only on a leaf that requires a gradient")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"grad must be a Tensor or None, found {type(value).__name__}")
        if value is not None and (value.shape, value.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"grad must be {self.dtype} {self.shape} like its tensor, "
                f"found {value.dtype} {value.shape}"
            )
        self.node.grad = value

    def retain_grad(self) -> None:
        """Let `backward` keep the gradient by this result of an op in its `.grad`, as a leaf's."""
        if self.node is None:
            raise RuntimeError("retain_grad: there will be no gradient: requires_grad is False")
        self.node.keeps_grad = True

    # -- the data on its own ---------------------------------------------------------------------

    def detach(self) -> "Tensor":
        """The same data (memory shared) off the tape."""
        return make_tensor(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a numpy array: the tensor's own memory on the CPU, a copy from a GPU."""
        return cast(np.ndarray, backend.move(self.data, "cpu"))

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """`ndarray * Tensor` comes here and is left to Tensor; np.exp(Tensor) is refused."""
        symbol = _OPERATORS.get(function.__name__)
        if symbol and method == "__call__" and isinstance(inputs[-1], Tensor) and not options:
            a, b = inputs
            return getattr(b, symbol)(a)
        raise TypeError(
            f"np.{function.__name__} knows nothing of the tape: use an op of tinygrad_nnfs.ops or "
            "x.numpy(); to change a parameter in place, update its .data with arrays"
        )

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(
            f"np.{function.__name__} knows nothing of the tape: use an op of tinygrad_nnfs.ops or "
            "x.numpy()"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise TypeError(
                "numpy would take this tensor off the tape without a word: use x.numpy() or "
                "x.detach(), or an op of tinygrad_nnfs.ops"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """Share the memory with another library: `torch.from_dlpack(x)`, `np.from_dlpack(x)`."""
        if self.requires_grad:
            raise BufferError(
                "another library would change this tensor's memory behind the tape: share "
                "x.detach()"
            )
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.data.__dlpack_device__()
        return device

    def item(self) -> float | int | bool:
        """The value of a tensor of one element as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item() needs a tensor of one element, found shape {self.shape}")
        array = self.data if type(self.data) is ndarray else self.numpy()
        return cast(float | int | bool, array.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous: compare its numpy() "
                "with .any() or .all()"
            )
        return bool(self.item())

    def __len__(self) -> int:
        if not self.data.shape:
            raise TypeError("a tensor of shape () has no length")
        return int(self.data.shape[0])

    def __iter__(self) -> Iterator["Tensor"]:
        raise TypeError("a Tensor is not iterated: index it (x[0]), or iterate over x.numpy()")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(
                f"a copy of {_made_by(self.node)} would have a tape of its own: copy x.detach()"
            )
        clone = make_tensor(self.data.copy(order="K"))  # Linear's weights lie in an order of theirs
        clone.__class__ = type(self)
        clone.requires_grad = self.requires_grad
        if self.grad is not None:
            clone.grad = copy.deepcopy(self.grad, memo)
        return clone

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
        `retain_graph`. If a rule raises, nothing reaches any `.grad`, and the forward must be run
        again. Saved arrays are not copies: change none in place (an optimiser's step does) between
        a forward and its backward.
        """
        if self.node is None:
            raise RuntimeError(
                "backward: nothing was recorded for this tensor: none of its inputs requires a "
                "gradient, it was made under no_grad(), or detach() or numpy() came in between"
            )
        grads: dict[Node, Array] = {self.node: self._upstream(gradient)}
        retained: dict[Node, Array] = {}
        # The youngest first: when a node's turn comes, all that was made from it has had its own.
        ready = [(self.node.order, self.node)] if self.node.op is not None else []
        while ready:
            node = heappop(ready)[1]
            if node.rules is None:
                raise RuntimeError(
                    f"backward has passed through {node.op} before and freed what it saved: "
                    "use retain_graph=True the first time, or run the forward again"
                )
            dy = grads.pop(node)
            if node.keeps_grad:
                retained[node] = dy.copy()
            for i, rule in enumerate(node.rules):
                if rule is None:
                    continue
                parent: Any = node.inputs[i]  # a Node: it has a rule
                try:
                    dx = rule(dy)
                except Exception as error:
                    error.add_note(
                        f"in the rule of {node.op} for input {i}, which must return an array, "
                        f"{parent.dtype} {parent.shape}"
                    )
                    raise
                # `is`: a comparison of dtypes takes as long as the rest of the line
                if (
                    type(dx) is not ndarray
                    or dx.shape != parent.shape
                    or dx.dtype is not parent.dtype
                ):
                    _check_gradient(dx, node, i)
                if parent in grads:
                    grads[parent] = grads[parent] + dx  # not in place: dx may be a view of dy
                elif parent.op is not None:
                    grads[parent] = dx
                    heappush(ready, (parent.order, parent))
                else:  # a leaf keeps its gradient: that must not be a view of another's memory
                    is_own = dx is not dy and backend.owns_memory(dx)
                    grads[parent] = dx if is_own else dx.copy()
            if not retain_graph:
                node.rules = rule = None  # what they saved dies here
        retained |= grads  # only leaves are left there
        with _accumulating:
            for node, grad in retained.items():
                if node.grad is not None:
                    grad = node.grad.data + grad
                if type(grad) is not ndarray:  # numpy turns what would be a 0-d array into a scalar
                    grad = backend.of(grad).asarray(grad)
                node.grad = make_tensor(grad)

    def _upstream(self, gradient: Any) -> Array:
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward of {_made_by(self.node)} needs a gradient of shape {self.shape}: "
                    "only a tensor of one element has a default; reduce it with sum() or mean()"
                )
            one = backend.of(self.data).empty(self.shape, self.dtype)
            one.fill(1)  # `ones` takes four times as long
            return one
        dy = gradient.data if isinstance(gradient, Tensor) else gradient
        if not backend.is_array(dy):
            dy = backend.of(self.data).asarray(dy)
        if not isinstance(gradient, Tensor) and dy.dtype != self.dtype:
            dy = dy.astype(self.dtype)  # as every other operand that is no Tensor
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
        # never the caller's own array: a leaf would keep it, and `once` would know it again
        return dy.copy() if self.node and self.node.op is None else dy.view()

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
        def var(
            self, axis: Any = None, keepdims: bool = False, correction: int = 1
        ) -> "Tensor": ...
        def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor": ...
        def astype(self, dtype: Any) -> "Tensor": ...
        def to(self, device: str) -> "Tensor": ...
        def reshape(self, *sizes: Any, shape: Any = ...) -> "Tensor": ...
        def transpose(self, *axes: Any) -> "Tensor": ...

    def abs(self) -> "Tensor":
        """The absolute value."""
        return self.__abs__()

    def flatten(self, start: int = 0) -> "Tensor":
        """The axes from `start` on made one: (n, c, h, w) -> (n, c h w) for `start=1`."""
        shape = self.data.shape
        if not 0 <= start <= max(len(shape) - 1, 0):
            raise ValueError(f"flatten: there is no axis {start} in shape {shape}")
        flat = (*shape[:start], math.prod(shape[start:]))  # -1: not to be told of an empty batch
        if self.node is None and self.data.flags.c_contiguous:  # a batch of data: a view, no op
            return make_tensor(self.data.reshape(flat))
        return self.reshape(shape=flat)

    @property
    def T(self) -> "Tensor":
        """The axes reversed."""
        return self.transpose()


# numpy's name for an operator, and the method of Tensor that takes the array as its other operand
_OPERATORS = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "power": "__rpow__",
    "matmul": "__rmatmul__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
    "equal": "__eq__",
    "not_equal": "__ne__",
}


class Stored(Tensor):
    """What a Module keeps. `data` may also be a Tensor off the tape, whose memory is then shared.

    Whatever is assigned to `data` later becomes an array, too: numpy's result of an operation on a
    0-d array is a scalar, which could not be changed in place. With another shape or dtype it is
    another leaf, without gradient.
    """

    __slots__ = ()

    def __init__(self, data: Any, *, requires_grad: bool = False) -> None:
        super().__init__(unwrap(data), requires_grad=requires_grad)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            value = as_array(unwrap(value))
            node = getattr(self, "node", None)
            if node is not None and (node.shape, node.dtype) != (value.shape, value.dtype):
                super().__setattr__("node", _leaf(value))
        super().__setattr__(name, value)


class Parameter(Stored):
    """A leaf that an optimiser updates: a Tensor with `requires_grad` that a Module registers."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


def unwrap(data: Any) -> Any:
    """The array of a Tensor off the tape; anything else as it is."""
    return data.data if isinstance(data, Tensor) and data.node is None else data


def make_tensor(data: Array) -> Tensor:
    """A Tensor, off the tape, of what is an array already."""
    tensor = new_tensor()
    tensor.data = data
    tensor.node = None
    return tensor


def from_dlpack(array: Any) -> Tensor:
    """A Tensor in the memory of another library's array, on its device: PyTorch's, JAX's, cupy's.

    Nothing is copied, so what one side changes the other sees. Raises TypeError for what is no such
    array or cannot be shared.
    """
    if not hasattr(array, "__dlpack__"):
        raise TypeError(
            f"from_dlpack: expected an array that has __dlpack__, found a {type(array).__name__}"
        )
    try:
        device = array.__dlpack_device__()[0]
        library = np if device == _DLPACK_CPU else backend.cupy
        return Tensor(library.from_dlpack(array))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TypeError(
            f"from_dlpack: this {type(array).__name__} cannot be shared: {reason}"
        ) from None


_DLPACK_CPU = 1  # kDLCPU of DLPack's header

FLOAT32 = np.dtype(np.float32)
new_tensor = functools.partial(object.__new__, Tensor)


def as_array(data: Any, keep_integers: bool = False) -> Array:
    """What a user gives for data as an array: lists and numbers become float32 (or stay bool)."""
    if type(data) is ndarray and data.dtype is FLOAT32:
        return data  # the usual case, which small networks spend their time on
    if isinstance(data, Tensor):
        raise TypeError("Tensor(Tensor): use detach() for the same data off the tape")
    if _contains_tensor(data):
        raise TypeError("a list of Tensors would lose their gradients: use ops.stack")
    if not backend.is_array(data) and not isinstance(data, np.generic):
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"the lists are not of one shape: {error}") from None
        if data.dtype.kind == "f" or (data.dtype.kind in "iu" and not keep_integers):
            data = data.astype(np.float32)
    if data.dtype.kind not in "biuf":
        raise TypeError(f"elements must be bool, integer or floating, found {data.dtype}")
    if isinstance(data, np.generic | np.ndarray) and type(data) is not np.ndarray:
        data = np.asarray(data)  # a scalar, or a subclass with arithmetic of its own (np.matrix)
    return data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))


def _contains_tensor(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(
        isinstance(x, Tensor) or _contains_tensor(x) for x in data
    )


def _check_gradient(dx: Any, node: Node, i: int) -> None:
    """Raise RuntimeError unless `dx` is an array of the shape and dtype of the node's input i."""
    parent: Any = node.inputs[i]
    is_array = hasattr(dx, "base")  # not a Tensor, a number, or None where `return` was forgotten
    if is_array and dx.shape == parent.shape and dx.dtype == parent.dtype:
        return
    found = f"{dx.dtype} {dx.shape}" if is_array else f"a {type(dx).__name__}"
    raise RuntimeError(
        f"the rule of {node.op} for input {i} returned {found}, "
        f"the input is {parent.dtype} {parent.shape}"
    )


def _made_by(node: Node | None) -> str:
    return "a leaf" if node is None or node.op is None else f"the result of {node.op}"
