"""The command line: what it prints, how it fails."""

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_files import write_csv_set
from rich.console import Console
from tinygrad_nnfs.models import cli, progress
from tinygrad_nnfs.models.recipes import RECIPES
from tinygrad_nnfs.models.training import Progress

from tinygrad_nnfs import __version__, data
from tinygrad_nnfs.kernels import threads

DIGITS = data.load("digits")
NNFS = [sys.executable, "-m", "tinygrad_nnfs.models.cli"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs are kept in the current folder."""
    monkeypatch.chdir(tmp_path)


def nnfs(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_train_prints_plain_lines_and_a_table(capsys):
    status, out, err = nnfs(capsys, "train", "--epochs", "2", "--seed", "3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "mlp on digits: 1,437 training images, 2 epochs, batch 64, lr 0.02, momentum 0.9, "
        "seed 3, cpu"
    )
    (last,) = [line for line in lines if line.startswith("epoch 2/2  samples 1,437/1,437  loss ")]
    for word in ("accuracy", "samples/s", "left"):
        assert word in last
    assert "train │  1,437 │" in out
    assert "test  │    360 │" in out
    (folder,) = Path("runs").iterdir()
    assert lines[-2].startswith("Trained in ")
    assert lines[-2].endswith(f" s, kept in {folder}.")
    assert lines[-1].startswith(f"Next: nnfs evaluate {folder}, nnfs train cnn")
    assert "\x1b" not in out


def test_same_seed_same_output(capsys):
    tables = []
    for _ in range(2):
        _, out, _ = nnfs(capsys, "train", "--epochs", "1")
        tables.append([line for line in out.splitlines() if "│" in line])
    assert tables[0] == tables[1]


def test_live_progress_on_a_terminal():
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*NNFS, "train", "--epochs", "3"], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end has closed
            break
        if not chunk:
            break
        seen += chunk
    assert process.wait() == 0
    text = seen.decode()
    assert "epoch 3/3" in text
    assert "samples/s" in text
    assert "\x1b[" in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "rnn"], 2, "'rnn' is not a network (mlp, cnn) or a recipe"),
        (["train", "--epochs", "0"], 2, "argument --epochs: '0' is not an integer >= 1"),
        (["train", "--batch-size", "1.5"], 2, "'1.5' is not an integer >= 1"),
        (["train", "--lr", "fast"], 2, "argument --lr: 'fast' is not a finite number"),
        (["train", "--lr", "nan"], 2, "'nan' is not a finite number"),
        (["train", "--lr", "inf"], 2, "'inf' is not a finite number"),
        (["train", "--momentum", "1"], 2, "'1' is not a number >= 0 and < 1"),
        (["train", "--seed", "-1"], 2, "'-1' is not an integer >= 0"),
        (["train", "--device", "tpu"], 2, "invalid choice: 'tpu'"),
        (["train", "--data", "mnist", "--data-dir", "/nowhere"], 1, "no train-images-idx3-ubyte"),
        (["train", "--lr", "1e8", "--epochs", "1"], 1, "in epoch 1, step"),
        ([], 2, "required: COMMAND"),
        (["train", "--batch_size", "3"], 2, "'3' is not a network (mlp, cnn) or a recipe; is an"),
        (["train", "--lr", "-1"], 2, "'-1' is not a number >= 0"),
        (["train", "--patience", "3"], 2, "patience needs validation images"),
        (["train", "--decay", "3"], 2, "decay is of the schedule inverse-time, not of constant"),
        (["train", "--warmup", "0.5"], 2, "warmup is of the schedule one-cycle, not of constant"),
        (["train", "--warmup", "0"], 2, "'0' is not a number > 0 and < 1"),
        (["train", "--shift", "28"], 2, "'28' is not an integer >= 0 and <= 27"),
        (["train", "--teacher", "me"], 2, "invalid choice: 'me'"),
        (["train", "--validation", "5"], 1, "5 of 1,437 images cannot be split off"),
        (["train", "--resume", "nowhere"], 1, "nowhere: is not the folder of a run"),
        (["train", "cnn", "--resume", "x", "--lr", "1"], 2, "leave out cnn, --lr"),
        (["train", "--runs", "/dev/null"], 1, "/dev/null/mlp-digits"),
        (["train", "--schedule", "zigzag"], 2, "invalid choice: 'zigzag'"),
        (["train", "--erase", "2"], 2, "'2' is not a number >= 0 and <= 1"),
        (["reproduce", "mnist-minibtach"], 2, "invalid choice: 'mnist-minibtach'"),
        (["reproduce", "mnist-minibatch"], 1, "docs: is no folder"),
        (
            ["reproduce", "fashion-minibatch-plus", "--split", "resplit", "--docs", "."],
            *(2, "a teacher has learnt by the standard split"),
        ),
        (["train", "--device", "cuda"], 1, "device 'cuda' "),
        (["train", "--seed", "1" + 20 * "0"], 1, "the seed must be in 0..2**64-1"),
        (["train", "--speed"], 2, "unrecognized arguments: --speed"),
        (["train", "mnist"], 2, "'mnist' is not a network but a data set: nnfs train --data mnist"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(capsys, arguments, status, message):
    found, _, err = nnfs(capsys, *arguments)
    assert found == status
    assert message in err
    assert len(err.splitlines()) == 1


def interrupt(*_, **__):
    raise KeyboardInterrupt


def interrupt_while_a_class_is_made(*_, **__):
    raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()


@pytest.mark.parametrize("interrupted", [interrupt, interrupt_while_a_class_is_made])
def test_interrupt_exits_with_130(capsys, monkeypatch, interrupted):
    monkeypatch.setattr(cli.train, "run", interrupted)
    status, _, err = nnfs(capsys, "train")
    assert (status, err) == (130, "nnfs: interrupted\n")


def test_a_number_of_threads_that_is_none_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("NNFS_NUM_THREADS", "many")
    threads.in_environment.cache_clear()  # it is read once
    status, out, err = nnfs(capsys, "summary", "cnn")
    assert (status, out) == (2, "")
    assert err == "nnfs: NNFS_NUM_THREADS must be an integer >= 1, found 'many'\n"


def test_training_on_csv_files(capsys, tmp_path):
    write_csv_set(tmp_path / "sets", "mnist")
    found = nnfs(capsys, "train", "--data", "mnist", "--data-dir", "sets", "--epochs", "1")
    assert found[0] == 0
    assert "mlp on mnist: 20 training images" in found[1]


def test_adamw_has_no_momentum(capsys):
    status, out, _ = nnfs(capsys, "train", "--optimizer", "adamw", "--max-steps", "1")
    assert status == 0
    assert "lr 0.02, adamw, seed 0" in out


def test_tensorboard_that_is_missing_leaves_no_folder(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    status, _, err = nnfs(capsys, "train", "--tensorboard")
    assert status == 1
    assert err == "nnfs: this needs tensorboardX: pip install 'tinygrad_nnfs[tensorboard]'\n"
    assert not Path("runs").exists()


def test_missing_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = nnfs(capsys, "train")
    assert status == 1
    assert err == "nnfs: this needs rich: pip install 'tinygrad_nnfs[models]'\n"


def test_progress_lines_are_few_and_give_the_speed_of_late(monkeypatch):
    now = iter(np.arange(0.0, 1000.0, 0.25))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    printed = io.StringIO()
    display = progress.Display(Console(file=printed, width=200), epochs=40, samples=100)
    for epoch in range(1, 41):  # 4 epochs a second, 100 samples each
        display.update(Progress(epoch, epoch, 100, 0.5, 0.5, 0.02, True))
    lines = printed.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("epoch 40/40")
    assert all("400 samples/s" in line for line in lines)


def test_progress_of_a_resumed_run_does_not_count_what_was_done_before(monkeypatch):
    now = iter(np.arange(0.0, 1000.0, 2.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    printed = io.StringIO()
    display = progress.Display(Console(file=printed, width=200), epochs=9, samples=100, done=700)
    display.update(Progress(8, 8, 100, 0.5, 0.5, 0.02, True))
    assert "50 samples/s  0:02 left" in printed.getvalue()


@pytest.mark.parametrize("command", [None, *(c.__name__.split(".")[-1] for c in cli.COMMANDS)])
def test_help_has_an_example(capsys, command):
    arguments = [command, "--help"] if command else ["--help"]
    status, out, _ = nnfs(capsys, *arguments)
    assert status == 0
    assert "example: " in out


def test_train_json(capsys):
    status, out, err = nnfs(capsys, "train", "--epochs", "1", "--json")
    assert status == 0
    result = json.loads(out)
    assert set(result) == {"run", "epochs", "steps", "seconds", "train", "test"}
    assert result["test"]["images"] == 360
    assert Path(result["run"]).is_dir()
    assert "epoch 1/1" in err


def test_resume_of_a_finished_run_shows_its_result_again(capsys):
    first = json.loads(nnfs(capsys, "train", "--epochs", "2", "--json")[1])
    status, out, err = nnfs(capsys, "train", "--resume", first["run"], "--json")
    assert status == 0
    assert "is trained already" in err
    assert json.loads(out) == first


def test_flags_override_a_recipe(capsys):
    arguments = (
        "mnist-minibatch",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--no-dropout",
        "--clip",
        "1",
    )
    result = json.loads(nnfs(capsys, "train", *arguments, "--json")[1])
    config = json.loads((Path(result["run"]) / "config.json").read_text())["recipe"]
    assert (config["lr"], config["data"], config["clip"]) == (0.001, "digits", 1)
    assert Path(result["run"]).name.startswith("mnist-minibatch-")


def test_recipes_are_listed(capsys):
    status, out, _ = nnfs(capsys, "recipes")
    assert status == 0
    for name in RECIPES:
        assert name in out
    assert "98.22" in out
    recipes = json.loads(nnfs(capsys, "recipes", "--json")[1])
    assert recipes["fashion-cnn"]["lr"] == 0.005


def test_tensorboard_gets_each_epoch(capsys):
    pytest.importorskip("tensorboardX")
    result = json.loads(nnfs(capsys, "train", "--epochs", "2", "--tensorboard", "--json")[1])
    (events,) = Path(result["run"]).glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"accuracy") == 2


def test_reproduce_records_a_result_once_and_renders_it(capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "mnist-minibatch", replace(RECIPES["mnist-minibatch"], epochs=1))
    monkeypatch.setattr(data, "load", lambda *_, **__: DIGITS)
    Path("docs").mkdir()
    for seed in ("0", "1", "1"):  # the last finds its run done
        status, _, err = nnfs(capsys, "reproduce", "mnist-minibatch", "--seed", seed)
        assert (status, err) == (0, "")
    entries = json.loads(Path("docs/results.json").read_text())
    assert [(e["recipe"], e["seed"]) for e in entries] == [("mnist-minibatch", s) for s in (0, 1)]
    confusion = np.array(entries[0]["confusion"])
    assert confusion.sum() == 360
    assert entries[0]["test"]["accuracy"] == confusion.trace() / 360
    (row,) = [line for line in Path("docs/results.md").read_text().splitlines() if "| 2 |" in line]
    mean = 50 * (entries[0]["test"]["accuracy"] + entries[1]["test"]["accuracy"])
    assert row.startswith(f"| mnist-minibatch | 2 | **{mean:.2f}** |")
    assert "99.84 / 97.67 | 97.68 |" in row
    assert Path("docs/images/confusion-mnist-minibatch.png").exists()
    # what was reached by an earlier version of a recipe does not count
    monkeypatch.setitem(RECIPES, "mnist-minibatch", replace(RECIPES["mnist-minibatch"], lr=0.5))
    assert nnfs(capsys, "reproduce")[0] == 0
    assert "| mnist-minibatch |" not in Path("docs/results.md").read_text()
    for content, message in (
        ("[", "cannot be read"),
        ("{}", "a list"),
        ("[{}]", "a list"),
        ("[1]", ""),
    ):
        Path("docs/results.json").write_text(content)
        for arguments in ((), ("mnist-minibatch", "--seed", "9")):
            status, _, err = nnfs(capsys, "reproduce", *arguments)
            assert status == 1
            assert err.startswith("nnfs: docs/results.json: ")
            assert message in err
            assert len(err.splitlines()) == 1
    assert not list(Path("runs").glob("*seed9"))


def test_reproduce_begins_anew_what_was_killed_before_its_first_checkpoint(capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "mnist-minibatch", replace(RECIPES["mnist-minibatch"], epochs=1))
    monkeypatch.setattr(data, "load", lambda *_, **__: DIGITS)
    Path("docs").mkdir()
    Path("runs/mnist-minibatch-standard-seed0").mkdir(parents=True)
    assert nnfs(capsys, "reproduce", "mnist-minibatch")[0] == 0


def test_a_run_of_a_split_of_its_own_is_evaluated_by_that(capsys):
    result = json.loads(nnfs(capsys, "train", "--split", "resplit", "--epochs", "9", "--json")[1])
    report = json.loads(nnfs(capsys, "evaluate", result["run"], "--json")[1])
    assert report["accuracy"] == result["test"]["accuracy"]


def test_version(capsys):
    assert nnfs(capsys, "--version")[:2] == (0, f"nnfs {__version__}\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*NNFS, "train", "--epochs", "1"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_reader_that_leaves_is_no_traceback():
    command = " ".join([*NNFS, "train", "--epochs", "5"])
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -n 1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mlp on digits")
    assert "Traceback" not in done.stderr
