"""Is a backward rule right? Gradient checks for functions and for ops, on numpy alone.

`gradcheck(fn, *inputs)` checks any differentiable function of Tensors. `check_op(op)` draws cases
from the op's own samples and holds it to everything that this library asks of an op; `CHECKS` names
them one by one. Every failure is a CheckError, which is an AssertionError.
"""

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tinygrad_nnfs.checking.cases import Case, CheckError, Draw, cases_of
from tinygrad_nnfs.checking.gradients import gradcheck
from tinygrad_nnfs.checking.reproduction import call_of, literal
from tinygrad_nnfs.checking.requirements import (
    CHECKS,
    implementations,
    precisions,
    run_on,
    strided,
    transposed,
)
from tinygrad_nnfs.registry import Op

__all__ = [
    "CHECKS",
    "Case",
    "CheckError",
    "Checked",
    "Draw",
    "Report",
    "cases_of",
    "check_coverage",
    "check_op",
    "gradcheck",
    "implementations",
    "note",
    "precisions",
    "run_checks",
    "strided",
    "transposed",
]


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


def _size(case: Case) -> tuple[bool, int, int]:
    """Whether arrays are empty, their elements, and the digits it takes to write few of them."""
    sizes = [x.size for x in case.inputs if isinstance(x, np.ndarray)]
    return 0 in sizes, sum(sizes), len(literal(case)) if sum(sizes) < 50 else 0


def run_checks(op: Op[...], case: Case) -> dict[int, float]:
    """Every check in CHECKS on one case. The worst relative error by the input's number."""
    _check_call(op, case)
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


def _check_call(op: Op[...], case: Case) -> None:
    """The op takes what its samples give it: inputs by position, options by name."""
    signature = inspect.signature(op)
    options = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    inputs = [name for name in case.params if name in signature.parameters and name not in options]
    reason = f"{inputs[0]} is an input" if inputs else ""
    try:
        signature.bind(*case.inputs, **case.params)
    except TypeError as error:
        reason = str(error)
    if reason:
        raise CheckError(
            f"{op.__name__}{signature}: its samples give it ({case}): {reason}; draw.case takes "
            "inputs by position, and options, which stand behind a *, by name"
        )


def note(report: Report, op: Op[...], case: Case, errors: Mapping[int, float]) -> None:
    """Enter what `run_checks` found of one case into the report."""
    report.cases += 1
    names = [
        f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name
        for p in inspect.signature(op).parameters.values()
    ]
    for i, rule in enumerate(run_on(op.reference, case)[1]):
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
                f"{report.op}: no case gives input {name} a float64 array of some elements that "
                "do not all lie on kinks: its rule was never checked"
            )
