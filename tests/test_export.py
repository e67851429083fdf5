"""`nnfs export`."""

import json
import os
import sys

import numpy as np
import pytest
from tinygrad_nnfs.models import cli
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import checkpoint

pytest.importorskip("onnx", reason="the extra onnx is not installed")


def export(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs export arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", *map(str, arguments)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    metadata = {"format": checkpoint.MODEL_FORMAT, "data": "digits"}
    checkpoint.save(path, MLP().state_dict(), metadata)
    return path


def test_the_line_that_it_prints_runs(capsys, tmp_path, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    target = tmp_path / 'a "quoted" name.onnx'
    status, out, err = export(capsys, model, "--onnx", target)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{target}: MLP, {target.stat().st_size:,} bytes"
    assert lines[1] == "input:  images, float32 (batch, 1, 28, 28), pixels in [0, 1]"
    assert lines[2] == "output: logits, float32 (batch, 10)"
    names = {"onnxruntime": onnxruntime, "images": np.zeros((2, 1, 28, 28), np.float32)}
    (logits,) = eval(lines[3].removeprefix("to run: "), names)
    assert logits.shape == (2, 10)


def test_json_of_a_run(capsys, tmp_path, model):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    status, out, err = export(capsys, model.parent, "--onnx", target, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "onnx": str(target),
        "bytes": target.stat().st_size,
        "shapes": {"images": ["batch", 1, 28, 28], "logits": ["batch", 10]},
        "metadata": {"format": checkpoint.MODEL_FORMAT, "data": "digits"},
    }


def test_mistakes_are_one_line_and_write_nothing(capsys, tmp_path, model):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "empty").touch()
    before = model.read_bytes()
    for arguments, status, message in (
        ((model, "--onnx", tmp_path / "folder.onnx"), 1, "cannot be written: Is a directory"),
        ((model, "--onnx", tmp_path / "none" / "a.onnx"), 1, "cannot be written: No such file"),
        ((model, "--onnx", model), 2, "must end in .onnx"),
        ((model,), 2, "required: --onnx"),
        ((tmp_path / "none", "--onnx", tmp_path / "a.onnx"), 1, "cannot be read: No such file"),
        ((tmp_path / "empty", "--onnx", tmp_path / "a.onnx"), 1, "has 0 bytes: it is empty"),
        ((tmp_path, "--onnx", tmp_path / "a.onnx"), 1, "has no model.safetensors"),
    ):
        found, out, err = export(capsys, *arguments)
        assert (found, out) == (status, "")
        assert message in err.splitlines()[-1]
        assert status == 2 or len(err.splitlines()) == 1
    assert set(os.listdir(tmp_path)) == {"run", "folder.onnx", "empty"}
    assert model.read_bytes() == before


def test_a_missing_package_is_one_line(capsys, tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, out, err = export(capsys, model, "--onnx", tmp_path / "model.onnx")
    assert (status, out) == (1, "")
    assert err == "nnfs: this needs onnx: pip install 'tinygrad_nnfs[onnx]'\n"


def test_help_has_an_example(capsys):
    status, out, _ = export(capsys, "--help")
    assert status == 0
    assert "example: nnfs export model.safetensors --onnx model.onnx" in out
