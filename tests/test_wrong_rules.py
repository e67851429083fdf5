"""The program that makes wrong rules: a sample of them, and that it does not fool itself."""

import importlib
import inspect

import pytest
import wrong_rules

from tinygrad_nnfs import OPS, Tensor, ops


def test_a_sample_of_the_wrong_rules_is_caught():
    every = list(wrong_rules.mutants())
    assert len(every) > 1500
    sample = [m for m in every[:: len(every) // 60] if not wrong_rules.why_equivalent(m)]
    missed = [str(m) for m in sample if wrong_rules.caught(m) == ""]
    assert not missed
    assert OPS["relu"] is ops.relu  # they have left no trace
    assert Tensor.relu is not None
    assert len({m.kind for m in sample}) >= 10


def test_each_kind_of_wrong_rule_is_made():
    assert {m.kind for m in wrong_rules.mutants()} >= {
        *("sign", "factor", "transposed", "missing un-broadcast", "axis", "stale save"),
        *("off by one", "ties", "in-place mutation", "swapped", "forgotten rule", "dtype"),
    }


@pytest.mark.parametrize("name", ["multiply", "softmax", "max_pool2d", "layer_norm", "reshape"])
def test_the_unchanged_source_is_right(name):
    """Else wrong rules might be caught for what the program itself does to them."""
    mutant = next(m for m in wrong_rules.mutants() if m.op == name)
    source = inspect.getsource(importlib.import_module(mutant.module))
    assert wrong_rules.caught(mutant._replace(source=source), cases=10) in ("", None)
