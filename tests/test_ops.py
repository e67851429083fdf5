"""Every op in OPS, over its own samples, held to everything that is asked of an op."""

import numpy as np
import pytest
from hypothesis import given

from tinygrad_nnfs import OPS
from tinygrad_nnfs.checking import CHECKS, Draw, cases_of, implementations, precisions
from tinygrad_nnfs.kernels import loops, threads
from tinygrad_nnfs.testing import op_cases


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", OPS)
def test_op(name, check):
    op = OPS[name]
    assert op.sampler is not None, f"{name} has no samples: add some with @{name}.samples"

    @given(op_cases(op))
    def run(cases):
        for case in cases:
            try:
                CHECKS[check](op, case)
            except AssertionError as error:
                raise AssertionError(f"{error}\n  case: {name}({case})") from error

    run()


def draws(name, count=60):
    return [case for seed in range(count) for case in cases_of(OPS[name], Draw(seed))]


ELEMENTWISE = [
    *("add", "subtract", "multiply", "divide", "power", "negative", "exp", "log", "sqrt", "abs"),
    *("maximum", "minimum", "where", "clip", "relu", "leaky_relu", "elu", "gelu", "softplus"),
    *("sigmoid", "tanh", "dropout"),
]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_samples_of_elementwise_ops_reach_the_edges(name):
    inputs = [case.inputs for case in draws(name)]
    shapes = [x.shape for xs in inputs for x in xs if isinstance(x, np.ndarray)]
    assert any(shape == () for shape in shapes), "no 0-d input"
    assert any(0 in shape for shape in shapes), "no zero-size input"
    if len(inputs[0]) > 1:
        arrays = [[x for x in xs if isinstance(x, np.ndarray)] for xs in inputs]
        assert any(len({x.shape for x in xs}) > 1 for xs in arrays), "no broadcasting"


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "matmul", "concatenate"])
def test_samples_reach_an_empty_batch(name):
    assert any(0 in case.inputs[0].shape for case in draws(name))


NEED_NUMBA = {
    "conv2d_direct",
    "conv2d_winograd",
    "linear_of_few_rows",
    "softmax_cross_entropy_compiled",
}


def test_samples_meet_the_condition_of_every_variant():
    with threads.tiny_pieces():
        for name, op in OPS.items():
            cases = [low for case in draws(name) for low, _ in precisions(op, case)]
            met = {found for case in cases for found, _ in implementations(op, case)}
            for _, variant in op.variants.get(np, ()):
                if variant.__name__ in NEED_NUMBA and not loops.numba_is_installed():
                    continue
                assert variant.__name__ in met, f"no sample of {name} reaches {variant}"
