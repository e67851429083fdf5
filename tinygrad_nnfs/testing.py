"""`check_op` with cases drawn by hypothesis, which shrinks a failure to a small one (extra: test).

In a test file of your own:

    from tinygrad_nnfs.testing import check_op

    def test_my_op():
        check_op(my_op)

Hypothesis' own settings apply: profiles, `@settings` on a test of yours that calls `op_cases`.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_nnfs.checking import Case, Draw, cases_of, check_coverage, run_checks
from tinygrad_nnfs.registry import Op


class _HypothesisDraw(Draw):
    """Sizes and choices come from hypothesis, which can shrink them; values from a drawn seed."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        super().__init__(draw(st.integers(0, 2**16)))
        self._draw = draw

    def integer(self, smallest: int, largest: int) -> int:
        return int(self._draw(st.integers(smallest, largest)))


def op_cases(op: Op[...]) -> st.SearchStrategy[list[Case]]:
    """A strategy for the cases that the op's samples make of one draw."""

    @st.composite
    def cases(draw: Callable[[Any], Any]) -> list[Case]:
        return list(cases_of(op, _HypothesisDraw(draw)))

    return cases()


def check_op(op: Op[...]) -> None:
    """Hold an op to every check in `checking.CHECKS` on cases that hypothesis draws."""
    seen: list[Case] = list(cases_of(op, Draw()))  # refuses an op without samples at once

    @settings(report_multiple_bugs=False)  # one wrong rule fails in many ways: the first will do
    @given(op_cases(op))
    def check(cases: list[Case]) -> None:
        for case in cases:
            run_checks(op, case)
        seen.extend(cases)

    check()
    check_coverage(op, seen)
