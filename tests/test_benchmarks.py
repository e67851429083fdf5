"""The benchmarks run and print what they measured; how fast is no test's business."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_list():
    done = benchmark("--help")
    assert done.returncode == 0
    assert "train-step" in done.stdout
    assert "overhead" in done.stdout


def test_overhead():
    done = benchmark("overhead", "--ops", "50", "--rounds", "4")
    assert done.returncode == 0, done.stderr
    assert "one input" in done.stdout


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train_step_alone(model):
    done = benchmark(
        "train-step", "--model", model, "--against", "--rounds", "2", "--batch-size", "4"
    )
    assert done.returncode == 0, done.stderr
    assert "tinygrad_nnfs" in done.stdout


def test_train_step_against_torch():
    pytest.importorskip("torch")
    done = benchmark("train-step", "--model", "mlp", "--rounds", "2", "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
    assert "ratio" in done.stdout


def test_too_few_rounds_are_named():
    done = benchmark("overhead", "--rounds", "1")
    assert done.returncode == 2
    assert "argument --rounds: 1 is less than 2" in done.stderr
