"""Derivatives without rules: central differences that notice kinks, and the complex step."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.exceptions import ComplexWarning

STEP = 1e-3  # of the central differences, which look at a function within 2 STEP

# -- central differences ---------------------------------------------------------------------------


def slope(f: Callable[[float], Any]) -> Any:
    """f'(0) by central differences of fourth order; f gives arrays."""
    return (8 * (f(STEP) - f(-STEP)) - (f(2 * STEP) - f(-2 * STEP))) / (12 * STEP)


def roughness(f: Callable[[float], Any]) -> Any:
    """Nearly 0 where f is smooth within 2 STEP of 0; else more than the error of `slope`.

    These are the sixth differences of nine values of f, divided by STEP. Where f is smooth they are
    f^(6) STEP^5 / 64, which is nothing, plus rounding. A kink, where the slopes of the two sides
    disagree by J, makes them about J, wherever between the nine values it lies; a jump, more.
    It is found for each element on its own, since kinks of several may cancel in a sum.
    """
    values = [f(i * STEP / 2) for i in range(-4, 5)]
    return abs(np.diff(values, 6, axis=0)).max(axis=0) / STEP


# -- the complex step ------------------------------------------------------------------------------

_TINY = 1e-30

# Whatever is not named here may be no analytic function of a complex number: comparisons, abs, max,
# sorting, .real. Some of those numpy computes for complex numbers all the same, by other meanings.
_ELEMENTWISE = """
    add subtract multiply divide negative positive power float_power reciprocal square
    sqrt exp exp2 expm1 log log2 log10 log1p sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh
    arccosh arctanh matmul
"""
_FUNCTIONS = """
    append broadcast_to concatenate copy cross cumprod cumsum diag diagonal diff dot
    einsum empty_like expand_dims flip full_like hstack inner kron mean moveaxis ndim ones_like
    outer pad permute_dims prod ravel repeat reshape roll rot90 shape size split squeeze stack sum
    swapaxes take tensordot tile trace transpose tril triu vstack where zeros_like
"""
_NEW = "arange array asarray ascontiguousarray empty eye full identity ones zeros"
_ATTRIBUTES = """
    T base cumprod cumsum diagonal dot dtype flags flatten itemsize mT mean nbytes ndim
    prod ravel repeat reshape shape size squeeze strides sum swapaxes take trace transpose copy
"""


class NotAnalyticError(TypeError):
    """The complex step does not apply."""


def _allowed(name: str, names: str) -> None:
    if name not in names.split():
        raise NotAnalyticError(name)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return np.ndarray.view(value, np.ndarray) if isinstance(value, _Analytic) else value


def _analytic(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_analytic, value))
    if getattr(value, "dtype", None) == np.complex128:
        return np.asarray(value).view(_Analytic)
    return value


class _Analytic(np.ndarray):
    """A complex array that takes part in analytic functions only and refuses all others."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _allowed(ufunc.__name__, _ELEMENTWISE)
        return _analytic(getattr(ufunc, method)(*map(_plain, inputs), **_plain_values(kwargs)))

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> Any:
        _allowed(function.__name__, _FUNCTIONS)
        return _analytic(function(*_plain(tuple(inputs)), **_plain_values(options)))

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            _allowed(name, _ATTRIBUTES)
        return super().__getattribute__(name)

    def __getitem__(self, index: Any) -> Any:
        return _analytic(_plain(self)[index])  # a number, too, stays an array that refuses

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def _as_number(self) -> Any:
        raise NotAnalyticError("a Python number")

    __float__ = __int__ = __bool__ = __complex__ = __index__ = _as_number


def _plain_values(options: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in options.items()}


class _AnalyticNumpy:
    """What stands for numpy as `xp` when a forward is run with complex arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if name in _NEW.split():
            return lambda *inputs, **options: _analytic(found(*inputs, **options))
        if callable(found) and not isinstance(found, type):
            _allowed(name, _ELEMENTWISE + _FUNCTIONS)
        return found


def complex_slope(
    forward: Callable[[Any, list[Any]], Any], inputs: list[Any], i: int, direction: Any, dy: Any
) -> float | None:
    """The slope of sum(dy forward(xp, inputs)) by input i along `direction`, exact to rounding.

    f(x + i t d) = f(x) + i t f'(x) d + O(t^2) for an analytic f, and t = 1e-30 subtracts nothing:
    Squire and Trapp, "Using complex variables to estimate derivatives of real functions", 1998.
    None if the forward does something that is not analytic, or does not take complex arrays.
    """
    moved = [_analytic(np.asarray(x, np.complex128)) if _is_real(x) else x for x in inputs]
    moved[i] = _analytic(np.asarray(inputs[i] + 1j * _TINY * direction))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ComplexWarning)
            y = forward(_AnalyticNumpy(), moved)
    except Exception:  # whatever stops a forward that was not written for complex arrays
        return None
    if not isinstance(y, _Analytic):
        return None  # it went through arrays that do not refuse
    return float((dy * _plain(y).imag).sum() / _TINY)


def _is_real(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def unit(shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    """The direction in which one element moves."""
    direction = np.zeros(shape)
    direction[place] = 1
    return direction
