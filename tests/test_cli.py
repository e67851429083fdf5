"""The command line: what it prints, how it fails."""

import io
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tinygrad_nnfs.models import cli, progress
from tinygrad_nnfs.models.training import Progress

from tinygrad_nnfs import __version__

NNFS = [sys.executable, "-m", "tinygrad_nnfs.models.cli"]


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
    assert "Next: nnfs train cnn" in lines[-1]
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
        (["train", "rnn"], 2, "'rnn' is not a network (mlp, cnn)"),
        (["train", "--epochs", "0"], 2, "argument --epochs: '0' is not an integer >= 1"),
        (["train", "--batch-size", "1.5"], 2, "'1.5' is not an integer >= 1"),
        (["train", "--lr", "fast"], 2, "argument --lr: 'fast' is not a finite number >= 0"),
        (["train", "--lr", "nan"], 2, "'nan' is not a finite number >= 0"),
        (["train", "--lr", "inf"], 2, "'inf' is not a finite number >= 0"),
        (["train", "--momentum", "1"], 2, "'1' is not a number in [0, 1)"),
        (["train", "--seed", "-1"], 2, "'-1' is not an integer >= 0"),
        (["train", "--device", "tpu"], 2, "invalid choice: 'tpu'"),
        (["train", "--data", "mnist", "--data-dir", "/nowhere"], 1, "no train-images-idx3-ubyte"),
        (["train", "--lr", "1e8", "--epochs", "1"], 1, "in epoch 1, step"),
        ([], 2, "required: COMMAND"),
        (["train", "--batch_size", "3"], 2, "'3' is not a network (mlp, cnn); is an option"),
        (["train", "--speed"], 2, "unrecognized arguments: --speed"),
        (["train", "mnist"], 2, "'mnist' is not a network but a data set: nnfs train --data mnist"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(capsys, arguments, status, message):
    found, _, err = nnfs(capsys, *arguments)
    assert found == status
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    if status == 1:
        assert len(err.splitlines()) == 1


def test_interrupt_exits_with_130(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "run", interrupted)
    status, _, err = nnfs(capsys, "train")
    assert (status, err) == (130, "nnfs: interrupted\n")


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
        display.update(Progress(epoch, 100, 0.5, 0.5, True))
    lines = printed.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("epoch 40/40")
    assert all("400 samples/s" in line for line in lines)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_has_an_example(capsys, arguments):
    status, out, _ = nnfs(capsys, *arguments)
    assert status == 0
    assert "example: " in out


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
