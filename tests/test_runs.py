"""Runs: what their folders hold, and that no interruption costs more than time."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tinygrad_nnfs.models.evaluation import evaluate
from tinygrad_nnfs.models.networks import load_model
from tinygrad_nnfs.models.recipes import Recipe
from tinygrad_nnfs.models.runs import Place, Run, SignalError
from tinygrad_nnfs.models.training import InterruptError, TrainingError

from tinygrad_nnfs.checkpoint import CheckpointError, load, save

RECIPE = Recipe(epochs=3, shift=1, average=0.9, validation=100)
NNFS = [sys.executable, "-m", "tinygrad_nnfs.models.cli"]


def new(folder, recipe=RECIPE, seed=0):
    return Run.new(folder, "mlp-digits", recipe, seed, Place())


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def begun(tmp_path):
    """The folder of a run that nobody trains."""
    return new(tmp_path / "a").folder


def finished(folder, recipe=RECIPE):
    run = new(folder, recipe)
    run.train(lambda progress: None)
    return run


def test_folder_of_a_run(tmp_path):
    run = finished(tmp_path / "runs" / "a")
    config = json.loads((run.folder / "config.json").read_text())
    assert Recipe(**config["recipe"]) == RECIPE
    assert config["seed"] == 0
    assert config["versions"]["numpy"] == np.__version__
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["step"] == run.training.at.step == 3 * -(-1337 // 64)
    for name in ("loss", "accuracy", "validation_loss", "validation_accuracy", "lr", "seconds"):
        assert all(isinstance(line[name], float) for line in lines)
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    images, labels = run.dataset.test_images, run.dataset.test_labels
    expected = evaluate(run.training.network, images, labels)
    network, text = load_model(run.folder)
    assert evaluate(network, images, labels) == expected
    assert (text["data"], text["recipe"], text["seed"]) == ("digits", "mlp-digits", "0")
    best, text = load_model(run.folder / "best.safetensors")
    score = max(line["validation_accuracy"] for line in lines)
    assert evaluate(best, *run.training.validation)[1] == score
    assert lines[int(text["epoch"]) - 1]["validation_accuracy"] == score


def test_splits_follow_from_the_seed(tmp_path):
    recipe = replace(RECIPE, split="resplit")
    sets = [new(tmp_path / str(i), recipe, seed).dataset for i, seed in enumerate((1, 1, 2))]
    np.testing.assert_array_equal(sets[0].test_images, sets[1].test_images)
    assert (sets[0].test_images != sets[2].test_images).any()
    assert len(sets[0].train_images) == 1437 - 100


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    expected = finished(tmp_path / "whole")
    run = new(tmp_path / "cut")

    def stop_at(step):
        def watch(progress):
            if progress.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        return watch

    for step in (1, 25, 42):  # at the beginning, within an epoch, at the end of one
        with pytest.raises(SignalError) as stopped:
            run.train(stop_at(step))
        assert stopped.value.number == signal.SIGTERM
        run = Run.resume(run.folder)
        assert run.training.at.step == run.saved_step == step
    run.train(lambda progress: None)
    assert weights(run.folder) == weights(expected.folder)
    best = [(r.folder / "best.safetensors").read_bytes() for r in (run, expected)]
    assert best[0] == best[1]
    epochs = [{**line, "seconds": 0} for line in run.epochs()]
    assert epochs == [{**line, "seconds": 0} for line in expected.epochs()]
    assert run.finished
    again = Run.resume(run.folder)
    again.train(lambda progress: pytest.fail("there is nothing left to do"))
    assert weights(run.folder) == weights(expected.folder)


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path):
    """Real processes, SIGKILL; a checkpoint after every step, so that most die while saving."""
    arguments = ["--epochs", "2", "--batch-size", "128", "--average", "0.9", "--save-every", "0"]
    recipe = Recipe(epochs=2, batch_size=128, average=0.9)
    expected = finished(tmp_path / "whole", recipe)
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    command = [*NNFS, "train", *arguments, "--runs", str(tmp_path / "runs")]
    luck = random.Random(0)
    kills = 0
    while True:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        folders = list(tmp_path.glob("runs/*"))
        before = folders[0].joinpath("latest.safetensors").stat().st_mtime_ns if folders else 0
        wait = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < wait and kills < 4:
            latest = list(tmp_path.glob("runs/*/latest.safetensors"))
            if latest and latest[0].stat().st_mtime_ns > before:  # training has begun
                time.sleep(luck.uniform(0, 0.1))
                process.kill()
                break
            time.sleep(0.005)
        _, err = process.communicate(timeout=60)
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
        (folder,) = tmp_path.glob("runs/*")
        load(folder / "latest.safetensors")  # whole
        command = [*NNFS, "train", "--resume", str(folder), "--save-every", "0"]
    assert (process.returncode, err) == (0, "")
    assert kills == 4
    assert weights(folder) == weights(expected.folder)
    assert [line["epoch"] for line in expected.epochs()] == [1, 2]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_exit_with_the_conventional_code(tmp_path, number):
    process = subprocess.Popen(
        [*NNFS, "train", "--epochs", "1000", "--runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout.readline()
    while not list(tmp_path.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 20  # seconds; it takes a fraction of one
    assert process.returncode == 128 + number
    (folder,) = tmp_path.iterdir()
    assert err == (
        f"nnfs: stopped by {number.name} and saved; to go on: nnfs train --resume {folder}\n"
    )
    assert Run.resume(folder).training.at.step > 0


def test_a_signal_while_a_teacher_judges_saves_and_stops(tmp_path, monkeypatch):
    run = new(tmp_path / "a")
    judge = run.training.begin_epoch

    def begin_epoch(order):
        if run.training.at.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            assert run.training.interrupted()
            raise InterruptError
        judge(order)

    monkeypatch.setattr(run.training, "begin_epoch", begin_epoch)
    with pytest.raises(SignalError):
        run.train(lambda progress: None)
    assert not (run.folder / "model.safetensors").exists()
    kept = Run.resume(run.folder)
    assert kept.training.at.epoch == 1
    kept.train(lambda progress: None)
    assert weights(kept.folder) == weights(finished(tmp_path / "whole").folder)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    run = new(tmp_path / "a", replace(RECIPE, epochs=20))

    def watch(progress):
        if progress.step == 30:
            for parameter in run.training.network.parameters():
                parameter.data[...] = np.nan

    why = "the loss is nan in epoch 2, step 31: the step before made 10 NaN in parameter 7.bias"
    with pytest.raises(TrainingError, match=why):
        run.train(watch)
    with pytest.raises(TrainingError, match="no longer finite"):
        run.save()
    kept = Run.resume(run.folder)
    assert kept.training.at.step == 0
    kept.train(lambda progress: None)


@pytest.mark.parametrize("file", ["latest", "best"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, file):
    run = new(tmp_path / "a")
    replace_file = os.replace

    def full(source, target):
        if run.training.at.step > 10 and Path(target).name.startswith(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run.train(lambda progress: None, save_every=0)
    monkeypatch.undo()
    kept = Run.resume(run.folder)
    assert 0 < kept.training.at.step == run.saved_step
    kept.train(lambda progress: None)
    assert weights(kept.folder) == weights(finished(tmp_path / "whole").folder)


def test_two_processes_cannot_train_one_run(tmp_path):
    run = new(tmp_path / "a", replace(RECIPE, epochs=2))
    metrics = []

    def watch(progress):
        if progress.epoch == 2 and not metrics:
            with pytest.raises(TrainingError, match="another process is training this run"):
                Run.resume(run.folder)
            metrics.append(run.epochs())  # as they were

    run.train(watch)
    assert [line["epoch"] for line in metrics[0]] == [1]
    assert [line["epoch"] for line in run.epochs()] == [1, 2]
    Run.resume(run.folder)


def test_two_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path):
    folders = [new(tmp_path / "a").folder for _ in range(3)]
    assert [folder.name for folder in folders] == ["a", "a-2", "a-3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "{"}, "is not the checkpoint of a run"),
        ({"recipe": '{"network": "mlp", "speed": 3}'}, "is not the checkpoint of a run"),
        ({"seed": "one"}, "is not the checkpoint of a run"),
        ({"seed": "1"}, "was trained with other images"),  # those held out follow from the seed
        ({"counters": '{"epoch": 1}, {}'}, "is not the checkpoint of a run"),
        ({"counters": '{"age": 1}'}, "is not the checkpoint of a run"),
        ({"place": '{"planet": "Mars"}'}, "is not the checkpoint of a run"),
        ({"counters": '{"epoch": "one"}'}, "epoch is 'one'"),
        ({"counters": '{"samples": -5}'}, "samples is -5, expected an integer in 0.."),
        ({"counters": '{"best_score": null}'}, "best_score is None"),
        ({"recipe": '{"batch_size": 0}'}, "batch_size must be an integer >= 1, found 0"),
        ({"recipe": '{"lr": "fast"}'}, "lr must be a number >= 0, found 'fast'"),
        ({"versions": "{"}, "is not the checkpoint of a run"),
        ({"learnt_crc": "5"}, "was trained with other images than those found now"),
        ({"format": "tinygrad_nnfs model 1"}, "is not the checkpoint of a run"),
    ],
)
def test_checkpoints_that_are_no_checkpoints(tmp_path, change, message):
    folder = begun(tmp_path)
    path = folder / "latest.safetensors"
    arrays, text = load(path)
    save(path, arrays, {**text, **change})
    with pytest.raises(TrainingError, match=message) as error:
        Run.resume(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "name", ["network.1.weight", "average.0", "average.t", "optimizer.0.velocity", "best.1.bias"]
)
def test_checkpoints_that_lack_an_array(tmp_path, name):
    folder = finished(tmp_path / "a").folder
    arrays, text = load(folder / "latest.safetensors")
    del arrays[name]
    save(folder / "latest.safetensors", arrays, text)
    with pytest.raises(TrainingError, match="is not the checkpoint of a run"):
        Run.resume(folder)


def test_checkpoints_of_an_earlier_version_lack_settings_that_came_later(tmp_path):
    folder = begun(tmp_path)
    arrays, text = load(folder / "latest.safetensors")
    recipe = json.loads(text["recipe"])
    del recipe["teacher"], recipe["clip"]
    save(folder / "latest.safetensors", arrays, {**text, "recipe": json.dumps(recipe)})
    assert Run.resume(folder).recipe == RECIPE


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(TrainingError, match="is not the folder of a run"):
        Run.resume(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"latest\.safetensors"):
        Run.resume(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(TrainingError, match="cannot be made: Not a directory"):
        new(tmp_path / "taken" / "a")


def test_metrics_of_a_lost_epoch_are_written_once(tmp_path):
    folder = begun(tmp_path)
    path = folder / "metrics.jsonl"
    for lost in ('{"epoch": 1}\n', '{"epoch": 1, "lo', "\0" * 300, "[1]\n"):
        path.write_text(lost)  # killed after the line, before the checkpoint; a full disk; ...
        assert Run.resume(folder).epochs() == []
    path.unlink()
    assert Run.resume(folder).epochs() == []


def test_signals_that_are_ignored_stay_so(tmp_path):
    """As nohup and shells' background jobs have it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        new(tmp_path / "a").train(
            lambda progress: os.kill(os.getpid(), signal.SIGHUP) if progress.step == 3 else None
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "a" / "model.safetensors").exists()
