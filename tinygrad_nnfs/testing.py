"""`check_op` with cases drawn by hypothesis, which shrinks a failure to a small one (extra: test).

In a test file of your own:

    from tinygrad_nnfs.testing import check_op

    def test_my_op():
        check_op(my_op)

Hypothesis' own settings apply. The profile that is loaded counts; for one test, give `settings`:

    check_op(my_op, settings=settings(max_examples=1000, deadline=None))

`@settings` above such a test is refused by hypothesis itself, since the test is not a `@given`. One
that is can draw the cases on its own:

    @settings(max_examples=1000)
    @given(op_cases(my_op))
    def test_my_op(cases):
        for case in cases:
            run_checks(my_op, case)  # of tinygrad_nnfs.checking
"""

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import hypothesis
    from hypothesis import given
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: pip install 'tinygrad_nnfs[test]'", name=error.name
    ) from None

from tinygrad_nnfs.checking import (
    Case,
    Draw,
    Report,
    cases_of,
    check_coverage,
    note,
    run_checks,
    strided,
    transposed,
)
from tinygrad_nnfs.registry import Op


class _HypothesisDraw(Draw):
    """Sizes, choices and memory orders come from hypothesis, which can shrink them.

    Values come from a seed that it draws: as many as a convolution takes would be slow one by one.
    """

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw
        super().__init__(draw(st.integers(0, 2**16)))

    def integer(self, smallest: int, largest: int) -> int:
        return int(self._draw(st.integers(smallest, largest)))

    def case(self, *inputs: Any, **params: Any) -> Case:
        case = super().case(*inputs, **params)
        order = self.choice([None, None, transposed, strided])
        if order is None:
            return case
        return Case(
            tuple(order(x) if isinstance(x, np.ndarray) else x for x in case.inputs), case.params
        )


def op_cases(op: Op[...]) -> st.SearchStrategy[list[Case]]:
    """A strategy for the cases that the op's samples make of one draw."""

    @st.composite
    def cases(draw: Callable[[Any], Any]) -> list[Case]:
        return list(cases_of(op, _HypothesisDraw(draw)))

    return cases()


def check_op(op: Op[...], *, settings: hypothesis.settings | None = None) -> Report:
    """Hold an op to every check in `checking.CHECKS` on cases that hypothesis draws.

    `settings` are hypothesis's, the loaded profile's unless given. Raises CheckError as
    `checking.check_op` does, with the smallest case that hypothesis finds to fail.
    """
    for _ in cases_of(op, Draw()):
        pass  # refuses an op without samples at once
    report = Report(op.__name__)

    def check(cases: list[Case]) -> None:
        for case in cases:
            note(report, op, case, run_checks(op, case))

    check.__qualname__ = f"check_op({op.__name__})"  # by which hypothesis remembers what failed
    # one wrong rule fails in many ways: the first will do
    chosen = hypothesis.settings(settings, report_multiple_bugs=False)
    chosen(given(op_cases(op))(check))()
    check_coverage(report)
    return report
