"""Finding a fault: which op made the first NaN or Inf, and which array was changed too early."""

import contextlib
import functools
import math
import sys
import threading
import traceback
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any

import numpy as np

from tinygrad_nnfs import backend
from tinygrad_nnfs.backend import Array
from tinygrad_nnfs.registry import Op, captured_arrays, input_names, observed_by
from tinygrad_nnfs.tensor import Node, Scope, recording


class AnomalyError(RuntimeError):
    """What `detect_anomaly` found. The first line of the message says it all, the others show it.

    A RuntimeError as in PyTorch: neither a wrong argument nor one operation's arithmetic.
    """


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise AnomalyError at the op that first makes a NaN or Inf, and where memory was changed.

        with detect_anomaly():
            loss = softmax_cross_entropy(network(images), labels)
            loss.backward()

    Every op that runs inside, in all threads, is watched, and its backward whenever that runs. The
    message names the op, the module and the user's line that called it, and shows its inputs.

    What is a fault:
    - a NaN or Inf in a result, of the forward or of a rule, whose inputs are finite;
    - a NaN made from an Inf;
    - a NaN or Inf that comes in with an input. But an Inf given as a number, or -Inf in an array
      that is no parameter, is taken as meant, and may be passed on: so masks are written,
      `where(mask, scores, -inf)` or `scores + mask`;
    - an array that a rule saved and that is not the same when `backward` comes to it: a parameter
      that was updated in between, a numpy array whose memory a Tensor shares that was overwritten.

    A step takes two to three times as long, and inputs live until the backward. Nestable, also
    with `profile`.
    """
    with observed_by(_Detector()):
        yield


# The slots keep `captured_arrays` out when detectors nest: a call has more arrays than rules saved.
@dataclass(slots=True)
class _Call:
    """One call of an op, as far as messages about it and its rules need it."""

    op: Op[...]
    arrays: Sequence[Any]
    output: Array
    scope: Scope | None = field(default_factory=lambda: recording.scope)
    line: str = field(default_factory=lambda: _line_of_user())
    # what each rule saved, by the input that it is for, with fingerprints
    saved: dict[int, list[tuple[Array, int]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return input_names(self.op, len(self.arrays))

    def parameter(self, array: Any) -> str:
        """The full name of the parameter or buffer that has this array, "" if none has."""
        if self.scope is None:
            return ""
        tensors = _outermost(self.scope)._named_tensors()
        return next((name for name, tensor in tensors if tensor.data is array), "")

    def label(self, i: int) -> str:
        """The name of input i: "weight (0.weight)" if it is a parameter."""
        name, full = self.names[i], self.parameter(self.arrays[i])
        return f"{name} ({full})" if full else name

    def labels(self, chosen: Sequence[int]) -> str:
        return " and ".join(self.label(i) for i in chosen)

    def origin(self, array: Array) -> tuple[str, Array]:
        """What an array that a rule saved is to the user, by the memory that it lies in.

        Its name, and the array that the user knows: a rule may save another view of it.
        """
        xp = backend.of(array)
        known = {self.label(i): x for i, x in enumerate(self.arrays)} | {"the result": self.output}
        for name, x in known.items():
            if backend.is_array(x) and backend.of(x) is xp and xp.may_share_memory(x, array):
                return name, x
        return "an array that the forward saved", array

    def __str__(self) -> str:
        return self.op.__name__ + _place(self.scope)

    def error(self, what: str, **others: Any) -> AnomalyError:
        """`what` as the first line, then where it was called, the inputs and `others`."""
        rows = {self.label(i): x for i, x in enumerate(self.arrays) if x is not None} | others
        shown = [f"  {name}: {describe(x)}" for name, x in rows.items()]
        return AnomalyError("\n".join([what, f"  called at {self.line}", *shown]))


class _Detector:
    """The observer: see `registry.Observer`."""

    def __init__(self) -> None:
        # results of ops seen, by id: what they hold has been judged already
        self._judged: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._last = threading.local()

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
        with np.errstate(all="ignore"):  # this says it better than numpy's warning
            result = run(xp, *arrays, **params)
        output, rules = result[0], result[1:]
        call = _Call(op, arrays, output)
        self._judge(call, params)
        self._judged[id(output)] = output
        self._last.made = call, rules
        watched = [
            rule and functools.partial(self._apply, rule, call, i) for i, rule in enumerate(rules)
        ]
        return (output, *watched)

    def recorded(self, node: Node) -> None:
        """Remember what the rules saved; those that the node has no use for are gone."""
        call, rules = vars(self._last).pop("made")
        prints: dict[int, int] = {}
        for i, rule in enumerate(rules):
            if rule is None or (node.rules and node.rules[i] is None):
                continue
            arrays = captured_arrays([rule])
            for array in arrays:
                if id(array) not in prints:
                    prints[id(array)] = fingerprint(array)
            call.saved[i] = [(array, prints[id(array)]) for array in arrays]

    def _judge(self, call: _Call, params: dict[str, Any]) -> None:
        output = call.output
        if is_finite(output):
            return
        bad = [i for i, x in enumerate(call.arrays) if not is_finite(x)]
        nan = [i for i in bad if has_nan(call.arrays[i])]
        strange = [i for i in bad if not self._may_be_infinite(call, i)]
        if nan:
            what = f"NaN came into {call} with {call.labels(nan)}"
        elif strange:
            what = f"Inf came into {call} with {call.labels(strange)}"
        elif bad and has_nan(output):
            what = f"{call} made {count(output)} out of the Inf in {call.labels(bad)}"
        elif bad or _asks_for_infinity(params, output):
            return
        else:
            what = f"{call} made {count(output)} out of finite inputs"
        raise call.error(what, output=output)

    def _may_be_infinite(self, call: _Call, i: int) -> bool:
        """Is the Inf in input i meant: a number, a mask of -Inf, what an earlier op let pass?"""
        x = call.arrays[i]
        if not backend.is_array(x) or self._judged.get(id(x)) is x:
            return True
        return not call.parameter(x) and not (x == math.inf).any()

    def _apply(self, rule: Callable[[Any], Any], call: _Call, i: int, dy: Any) -> Any:
        """Run the rule of input i if all that it saved is as it was, and judge the gradient."""
        for array, before in call.saved.get(i, ()):
            if fingerprint(array) != before:
                name, changed = call.origin(array)
                raise AnomalyError(
                    f"{name} of {call} was changed after the forward, and the "
                    f"backward needs it as it was\n"
                    f"  forward called at {call.line}\n"
                    f"  backward called at {_line_of_user()}\n"
                    f"  now: {describe(changed)}\n"
                    "  call backward before optimizer.step(), and copy what will be overwritten"
                )
        with np.errstate(all="ignore"):
            dx = rule(dy)
        if is_finite(dx):
            return dx
        target = f"the gradient by {call.label(i)}"
        bad = [j for j, x in enumerate(call.arrays) if not is_finite(x)]
        if not is_finite(dy):
            kind = "NaN" if has_nan(dy) else "Inf"
            what = f"{kind} came into the backward of {call} with dy, the gradient by its output"
        elif bad:
            made = f"made {count(dx)} in {target} out of what"
            what = f"the backward of {call} {made} {call.labels(bad)} holds"
        else:
            made = f"made {count(dx)} in {target} out of finite inputs"
            what = f"the backward of {call} {made}"
        raise call.error(what, dy=dy, **{target: dx})


def _asks_for_infinity(params: dict[str, Any], output: Array) -> bool:
    """Is an Inf in the result what an option asks for, as in pad(x, value=-inf)?"""
    numbers = [value for value in params.values() if isinstance(value, float)]
    return any(map(math.isinf, numbers)) and not has_nan(output)


# -- places ----------------------------------------------------------------------------------------


def _outermost(scope: Scope) -> Any:
    while scope[1] is not None:
        scope = scope[1]
    return scope[0]


def _place(scope: Scope | None) -> str:
    """` in CNN, layer 8 (MaxPool2d),`: the outermost module, and the one that called the op."""
    if scope is None:
        return ""
    module, root = scope[0], _outermost(scope)
    if module is root:
        return f" in {type(root).__name__}"
    path = next((path for path, found in root.named_modules() if found is module), "")
    layer = f"layer {path} ({type(module).__name__})" if path else f"a {type(module).__name__}"
    return f" in {type(root).__name__}, {layer},"


def _line_of_user() -> str:
    """`file:line, in function: source` of the innermost frame outside of this library.

    A user's own ops and modules are outside, and so are the library's own `models`.
    """
    frame: FrameType = sys._getframe(1)
    while frame.f_back and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    code = frame.f_code
    line = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
    return f"{line.filename}:{line.lineno}, in {line.name}: {line.line}".rstrip(": ")


def _is_ours(module: str) -> bool:
    return module.startswith("tinygrad_nnfs.") and not module.startswith("tinygrad_nnfs.models.")


# -- arrays ----------------------------------------------------------------------------------------


def is_finite(x: Any) -> bool:
    """False if x, a number or an array, holds a NaN or Inf."""
    if not backend.is_array(x) and not isinstance(x, np.generic):
        return not isinstance(x, float) or math.isfinite(x)
    return x.dtype.kind != "f" or bool(backend.of(x).isfinite(x).all())


def has_nan(x: Any) -> bool:
    """x holds a NaN."""
    return bool((x != x).any()) if hasattr(x, "dtype") else x != x


def count(x: Array) -> str:
    """How much of x is not finite: "2 NaN, 1 +Inf, 3 -Inf", or ""."""
    masks = {"NaN": x != x, "+Inf": x == math.inf, "-Inf": x == -math.inf}
    counts = {kind: int(mask.sum()) for kind, mask in masks.items()}
    return ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n)


def describe(x: Any) -> str:
    """`float32 (2, 3), -1.5 to 2, 1 NaN`: dtype, shape, range of what is finite, and the rest."""
    if not hasattr(x, "dtype"):
        return repr(x)
    finite = x[backend.of(x).isfinite(x)]
    numbers = "d" if x.dtype.kind in "iu" else "" if x.dtype.kind == "b" else ".4g"
    span = "no finite element" if x.size else "no elements"
    if finite.size:
        low, high = (f"{end.item():{numbers}}" for end in (finite.min(), finite.max()))
        span = f"{low} to {high}" if low != high else f"all {low}"
    return ", ".join(filter(None, (f"{x.dtype} {x.shape}", span, count(x))))


def fingerprint(array: Array) -> int:
    """A checksum of the elements, CRC-32: two arrays of one shape that differ differ in it.

    But for one in 4e9. Elements are read as they lie in memory, so most arrays are not copied.
    """
    array = backend.move(array, "cpu")
    as_it_lies = array.transpose(backend.axes_by_stride(array.strides))
    return zlib.crc32(np.ascontiguousarray(as_it_lies).data)
