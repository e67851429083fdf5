"""A failure as code to copy and paste: imports, arrays as literals in full precision, the call."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_nnfs import backend

LIMIT = 10_000  # characters: nobody reads or pastes more


def literal(value: Any) -> str:
    """An expression for `value`, in full precision and the same memory order."""
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, np.generic):
        return literal(value.item())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, tuple):
        inside = ", ".join(map(literal, value))
        if hasattr(value, "_fields"):  # a Case
            return f"{type(value).__name__}({inside})"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, type):
        return f"np.{value.__name__}" if issubclass(value, np.generic) else value.__name__
    return f"np.{value!r}" if isinstance(value, np.dtype) else repr(value)


def _array(x: Any) -> str:
    dtype = "" if x.dtype in (np.float64, np.int64, np.bool_) else f", dtype={x.dtype.name!r}"
    if not x.size:
        return f"np.zeros({x.shape}, dtype={x.dtype.name!r})"
    if x.flags.c_contiguous:
        return f"np.array({x.tolist()}{dtype})"
    if x.flags.f_contiguous:
        return f'np.array({x.tolist()}{dtype}, order="F")'
    if min(x.strides) < 0:
        return f"strided(np.array({x.tolist()}{dtype}))"
    order = backend.axes_by_stride(x.strides)
    back = tuple(order.index(axis) for axis in range(x.ndim))
    return f"np.array({x.transpose(order).tolist()}{dtype}).transpose{back}"


def call_of(checker: str, function: Any, inputs: Sequence[str], options: str = "") -> str:
    """Code that calls a checker of `tinygrad_nnfs.checking` with a function and literals."""
    definition, name = _definition(function)
    call = f"{checker}({name}, {', '.join(inputs)}{options})"
    if len(call) > LIMIT:
        return "  to reproduce: its inputs are too large to be written out; smaller ones may do"
    names = [n for n in ("Case", "strided") if re.search(rf"\b{n}\(", call)]
    numbers = [n for n in ("inf", "nan") if re.search(rf"\b{n}\b", call)]
    lines = [
        "import numpy as np",
        *([f"from numpy import {', '.join(numbers)}"] if numbers else []),
        f"from tinygrad_nnfs.checking import {', '.join(sorted([*names, checker]))}",
        definition,
        "",
        call,
    ]
    return "  to reproduce:\n\n" + "\n".join(lines) + "\n"


def code_in(message: str) -> str:
    """The code that a message of a failure ends with."""
    return message.partition("  to reproduce:\n\n")[2]


def _definition(function: Any) -> tuple[str, str]:
    """The line that imports a function, and the name that it has then."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    can_be_named = module.replace(".", "_").isidentifier() and module != "__main__"
    if can_be_named and getattr(sys.modules.get(module), name, None) is function:
        module = "tinygrad_nnfs.ops" if module.startswith("tinygrad_nnfs.ops.") else module
        return f"from {module} import {name}", name
    name = name if name.isidentifier() else "fn"
    return f"# {name} is the function that was checked: define it here", name
