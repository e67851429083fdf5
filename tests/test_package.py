"""What is installed and imported."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/"
    ).stdout


def test_import_needs_numpy_alone():
    code = """
import sys
before = set(sys.modules)
import numpy
with_numpy = set(sys.modules)
import tinygrad_nnfs
new = {name.partition('.')[0] for name in set(sys.modules) - with_numpy}
print(*sorted(n for n in new if n not in sys.stdlib_module_names and "cython" not in n))
"""
    assert python(code).split() == ["numpy", "tinygrad_nnfs"]


def test_py_typed_is_shipped():
    assert (ROOT / "tinygrad_nnfs" / "py.typed").exists()


def test_wheel_has_no_generic_top_level_name(tmp_path):
    pytest.importorskip("build")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"tinygrad_nnfs"}
    for name in ("models/cli.py", "models/cnn.py", "kernels/shared_columns.py", "py.typed"):
        assert f"tinygrad_nnfs/{name}" in names


def test_public_names_exist():
    import tinygrad_nnfs
    from tinygrad_nnfs import ops

    for module in (tinygrad_nnfs, ops):
        assert all(hasattr(module, name) for name in module.__all__)
    assert set(ops.__all__) == set(tinygrad_nnfs.OPS)
