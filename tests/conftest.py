"""Hypothesis profiles: 25 cases a property in the ordinary run, 1,000 in `make test-thorough`."""

import os

import cuda_on_cpu
import pytest
from hypothesis import HealthCheck, settings

from tinygrad_nnfs import OPS, manual_seed

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci",
    max_examples=25,
    deadline=None,
    suppress_health_check=slow,
    derandomize="CI" in os.environ,  # a change must not fail for a case that it has no part in
)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def _compile_cuda_once(tmp_path_factory):
    """The processes of pytest-xdist share the kernels that g++ has compiled."""
    folder = tmp_path_factory.getbasetemp()
    cuda_on_cpu.FOLDER = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(autouse=True)
def _same_start():
    """Every test begins with the same seed and leaves OPS as it was."""
    manual_seed(0)
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The folder of an MLP trained on the digits for a second: 95 % right, some mistakes."""
    from tinygrad_nnfs.models.recipes import Recipe
    from tinygrad_nnfs.models.runs import Place, Run

    folder = tmp_path_factory.mktemp("runs") / "mlp-digits"
    Run.new(folder, "mlp-digits", Recipe(epochs=15), 0, Place()).train(lambda progress: None)
    return folder
