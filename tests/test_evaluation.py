"""Reports on trained networks, their pictures, and `nnfs evaluate`."""

import errno
import json
import math
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tinygrad_nnfs.models import cli, networks, plots
from tinygrad_nnfs.models.evaluation import EvaluationError, evaluate, probabilities, report
from tinygrad_nnfs.models.mlp import MLP
from tinygrad_nnfs.models.networks import load_model
from tinygrad_nnfs.models.plots import draw_confusion_matrix, draw_mistakes

from tinygrad_nnfs import checkpoint, data, nn


class Told(nn.Module):
    """Finds the logits in the first pixels of each image, as 0..255 / 255 * 10."""

    def __init__(self, classes):
        self.classes = classes

    def forward(self, x):
        return x.flatten(1)[:, : self.classes] * 10.0


def told(rows):
    """Images for a `Told` network: their first pixels are `rows` (n, classes)."""
    images = np.zeros((len(rows), 28, 28), np.uint8)
    images[:, 0, : len(rows[0])] = rows
    return images


@st.composite
def cases(draw):
    """(class names, pixels (n, classes), labels)"""
    classes = draw(st.integers(2, 4))
    count = draw(st.integers(1, 30))
    row = st.lists(st.integers(0, 255), min_size=classes, max_size=classes)
    rows = draw(st.lists(row, min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return "abcd"[:classes], rows, np.array(labels)


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


@given(cases())
def test_report_agrees_with_plain_loops(case):
    names, rows, labels = case
    found = report(Told(len(names)), told(rows), labels, names)

    shares = [softmax([10 * pixel / 255 for pixel in row]) for row in rows]
    predictions = [row.index(max(row)) for row in rows]
    pairs = list(zip(labels.tolist(), predictions))
    losses = [-math.log(share[label]) for share, label in zip(shares, labels)]
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-5)
    assert found.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.predictions.tolist() == predictions
    np.testing.assert_allclose(found.probabilities, shares, atol=1e-5)
    for i in range(len(names)):
        for j in range(len(names)):
            assert found.confusion[i, j] == pairs.count((i, j))
        right = pairs.count((i, i))
        taken = sum(b == i for _, b in pairs)
        there = sum(a == i for a, _ in pairs)
        assert found.support[i] == there
        for value, of in ((found.precision[i], taken), (found.recall[i], there)):
            assert math.isnan(value) if of == 0 else value == pytest.approx(right / of)

    sums = found.normalized_confusion().sum(axis=1)
    np.testing.assert_allclose(sums, np.where(found.support > 0, 1, np.nan))
    mistakes = found.mistakes().tolist()
    assert sorted(mistakes) == [i for i, (a, b) in enumerate(pairs) if a != b]
    confidence = [found.probabilities[i].max() for i in mistakes]
    assert confidence == sorted(confidence, reverse=True)

    assert evaluate(Told(len(names)), told(rows), labels) == (found.loss, found.accuracy)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["confusion"] == found.confusion.tolist()


@given(st.integers(1, 600))
def test_batches_change_nothing(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    network = MLP().eval()
    found = probabilities(network, images, data.DIGITS)
    some = np.unique(np.linspace(0, count - 1, 5).astype(int))
    alone = np.concatenate([probabilities(network, images[i : i + 1], data.DIGITS) for i in some])
    np.testing.assert_allclose(found[some], alone, rtol=1e-4, atol=1e-6)


def test_outputs_that_are_not_finite_are_one_line():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * np.float32(np.inf)  # inf, and NaN where a pixel is 0

    images = told([(1, 1), (0, 1), (0, 0)])
    for judge in (
        lambda: probabilities(Broken(), images, "ab"),
        lambda: report(Broken(), images, np.zeros(3, int), "ab"),
    ):
        with pytest.raises(EvaluationError) as error:
            judge()
        assert str(error.value) == (
            "the network's outputs are NaN or infinite for 3 of 3 images: train it again, with a "
            "smaller learning rate"
        )


def test_another_number_of_classes_is_one_line():
    with pytest.raises(EvaluationError, match="tells 3 classes apart, the data set has 2"):
        report(Told(3), told([(1, 2, 3)]), np.zeros(1, int), "ab")


# -- pictures --------------------------------------------------------------------------------------


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_heat_map_has_true_classes_down_and_predicted_ones_across(tmp_path):
    matrix = np.zeros((3, 3))
    matrix[0, 2] = 1
    draw_confusion_matrix(tmp_path / "a.png", matrix, "abc", "title")
    found = pixels(tmp_path / "a.png")
    height, width, _ = found.shape
    red, _, blue = np.moveaxis(found, 2, 0)
    rows, columns = np.nonzero((blue - red > 60)[:, : int(0.75 * width)])  # but the colour bar
    assert rows.max() < 0.5 * height
    assert columns.min() > 0.4 * width
    assert len(rows) > 0.02 * found[..., 0].size
    draw_confusion_matrix(tmp_path / "b.png", matrix, "abc", "title")
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in content  # whose version would change files under git


def test_a_class_without_images_stays_white(tmp_path):
    matrix = np.array([[np.nan, np.nan], [0.0, 1.0]])
    draw_confusion_matrix(tmp_path / "a.png", matrix, ["T-shirt/top", "$x_1$"], "[title]")
    assert pixels(tmp_path / "a.png").size


@pytest.mark.parametrize("wrong", [0, 1, 7, 40])
def test_the_sheet_shows_the_most_confident_mistakes_first(tmp_path, wrong):
    confidence = np.random.default_rng(0).permutation(50)
    images = told([(100 + c, 0) for c in confidence])
    images[:, 1:] = 5 * np.arange(1, 51)[:, None, None]  # each of a grey of its own
    labels = np.array([1] * wrong + [0] * (50 - wrong))
    draw_mistakes(tmp_path / "a.png", images, report(Told(2), images, labels, "ab"), "title")

    sheet = pixels(tmp_path / "a.png")
    shown = []  # (row, column, image) of what can be seen
    for i in range(50):
        places = np.argwhere(abs(sheet[..., 0] - 5 * (i + 1)) <= 1)
        if len(places) > 10_000:  # the letters have grey edges
            shown.append((*(places.mean(axis=0) // 100), i))
    expected = sorted(range(wrong), key=lambda i: -confidence[i])[: plots.ROWS * plots.COLUMNS]
    assert [i for _, _, i in sorted(shown)] == expected


# -- the command -----------------------------------------------------------------------------------


def nnfs(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_evaluate_prints_tables_and_writes_pictures_into_the_runs_folder(
    capsys, digits_run, tmp_path
):
    run = shutil.copytree(digits_run, tmp_path / "[run] 1")  # no markup, though it looks like it
    status, out, err = nnfs(capsys, "evaluate", run)
    assert (status, err) == (0, "")
    network, _ = load_model(run)
    digits = data.load("digits")
    loss, accuracy = evaluate(network, digits.test_images, digits.test_labels)
    lines = out.splitlines()
    assert lines[0] == f"{run}: 360 test images of digits"
    assert lines[1] == f"accuracy {accuracy:.2%}, mean loss {loss:.4f}"
    assert lines[-2:] == [f"written: {run}/{name}-test.png" for name in ("confusion", "mistakes")]
    assert max(len(line) for line in lines if "│" in line) <= 80
    new = set(os.listdir(run)) - set(os.listdir(digits_run))
    assert new == {"confusion-test.png", "mistakes-test.png"}
    for name in ("confusion", "mistakes"):
        assert pixels(run / f"{name}-test.png").size


def test_evaluate_of_a_file_writes_only_where_it_is_told(capsys, digits_run, tmp_path):
    model = shutil.copy(digits_run / "model.safetensors", tmp_path)
    status, out, _ = nnfs(capsys, "evaluate", model)
    assert status == 0
    assert "written" not in out
    assert os.listdir(tmp_path) == ["model.safetensors"]
    status, out, _ = nnfs(
        capsys, "evaluate", model, "--part", "train", "--json", "--out", tmp_path / "a" / "b"
    )
    assert status == 0
    printed = json.loads(out)
    digits = data.load("digits")
    network, _ = load_model(model)
    expected = report(network, digits.train_images, digits.train_labels, digits.class_names)
    written = [
        str(tmp_path / "a" / "b" / f"{name}-train.png") for name in ("confusion", "mistakes")
    ]
    asked = {"model": str(model), "data": "digits", "part": "train", "pictures": written}
    assert printed == {**asked, **expected.to_json()}
    assert all(os.path.exists(path) for path in written)


def test_evaluate_on_other_data(capsys, digits_run, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in data.FILES.values():
        shape = (20, 28, 28) if "images" in name else (20,)
        header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
        content = random.integers(0, 5, shape).astype(np.uint8)  # classes 5..9 have no images
        (folder / name).write_bytes(header + content.tobytes())
    options = ("--data", "mnist", "--data-dir", tmp_path)
    model = digits_run / "model.safetensors"
    status, out, err = nnfs(capsys, "evaluate", model, *options)
    assert (status, err) == (0, "")
    assert "20 test images of mnist" in out
    status, out, _ = nnfs(capsys, "evaluate", model, *options, "--json")
    classes = json.loads(out)["classes"]
    assert [c["recall"] is None for c in classes] == [False] * 5 + [True] * 5


def test_evaluate_without_a_model(capsys, digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path / "weights")
    assert nnfs(capsys, "evaluate") == (
        *(1, ""),
        "nnfs: no model 'cnn-fashion-mnist' comes with this package: there is none\n",
    )
    (tmp_path / "weights").mkdir()
    shipped = tmp_path / "weights" / "cnn-fashion-mnist.safetensors"
    shutil.copy(digits_run / "model.safetensors", shipped)
    status, out, _ = nnfs(capsys, "evaluate")
    assert status == 0
    assert "360 test images of digits" in out
    assert os.listdir(shipped.parent) == [shipped.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: cannot be read: No such file or directory"),
        (["empty"], "empty: has no model.safetensors"),
        (["text"], "text: has 5 bytes: it is empty or cut off"),
        (["nameless"], "nameless: does not say what data it is for: add --data NAME (digits, "),
        (["cifar"], r"cifar: is for data called 'ci\nfar', unknown here: add --data NAME (digits"),
        (["model", "--data", "mnist", "--data-dir", "empty"], "data set 'mnist' was not found"),
        (["model", "--out", "text"], "text: is no folder to write to: File exists"),
        (["model", "--out", "text/a"], "text/a: is no folder to write to: Not a directory"),
        (["infinite"], "NaN or infinite for 360 of 360 images"),
        (["nan"], "nan: NaN or infinite numbers in"),
    ],
)
def test_evaluate_mistakes_are_one_line(
    capsys, digits_run, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    shutil.copy(digits_run / "model.safetensors", "model")
    arrays, metadata = checkpoint.load("model")
    checkpoint.save("nameless", arrays)
    checkpoint.save("cifar", arrays, {**metadata, "data": "ci\nfar"})
    checkpoint.save("infinite", {k: np.full_like(v, 1e30) for k, v in arrays.items()}, metadata)
    checkpoint.save("nan", {k: v * np.float32(np.nan) for k, v in arrays.items()}, metadata)
    status, out, err = nnfs(capsys, "evaluate", *arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_picture(
    capsys, digits_run, tmp_path, monkeypatch
):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plots, "write_file", full)
    model = digits_run / "model.safetensors"
    status, out, err = nnfs(capsys, "evaluate", model, "--out", tmp_path)
    assert (status, out) == (1, "")
    assert err == f"nnfs: {tmp_path}: cannot be written: No space left on device\n"
    assert os.listdir(tmp_path) == []


# -- the model that comes with the package ---------------------------------------------------------


def test_the_shipped_model_is_small_and_a_cnn():
    path = networks.shipped("cnn-fashion-mnist")
    assert path.stat().st_size < 8e6
    network, metadata = load_model(path)
    assert metadata["data"] == "fashion-mnist"
    assert sum(p.size for p in network.parameters()) == 1_736_714


@pytest.mark.data
def test_the_shipped_model_reaches_what_the_docs_say(capsys):
    if "NNFS_DATA" not in os.environ:
        pytest.skip("NNFS_DATA is not set")
    status, out, _ = nnfs(capsys, "evaluate", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["accuracy"] >= 0.938
    entries = json.loads((Path(__file__).parent.parent / "docs" / "results.json").read_text())
    recorded = [e["test"]["accuracy"] for e in entries if e["recipe"] == "fashion-cnn-plus"]
    assert any(abs(found["accuracy"] - accuracy) < 2e-4 for accuracy in recorded)
