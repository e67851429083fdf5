"""A run: one training, and the folder that holds all that is kept of it.

config.json           the recipe, the seed, and the versions of what it was trained with
metrics.jsonl         one line for each epoch
curves.png            loss and accuracy over the epochs
model.safetensors     the weights to use, at the end
best.safetensors      the weights of the best epoch so far
latest.safetensors    the checkpoint: all that `nnfs train --resume` needs
"""

import contextlib
import errno
import json
import os
import platform
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tinygrad_nnfs.models.gpu_training import GpuTraining
from tinygrad_nnfs.models.recipes import Recipe
from tinygrad_nnfs.models.training import Progress, Training, TrainingError

from tinygrad_nnfs import data
from tinygrad_nnfs.checkpoint import (
    CHECKPOINT_FORMAT,
    MODEL_FORMAT,
    load,
    save,
    write_file,
)

LATEST, METRICS = "latest.safetensors", "metrics.jsonl"
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class SignalError(Exception):
    """A signal has stopped the training; everything is saved."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class Place:
    """Where a run happens. Its result depends on that in the last bits at most."""

    device: str = "cpu"
    data_dir: str | None = None
    offline: bool = False


class Run:
    """A training in its folder. `new` begins one, `resume` goes on with one, `train` trains."""

    def __init__(self, folder: Path, name: str, recipe: Recipe, seed: int, place: Place) -> None:
        self.folder, self.name, self.recipe, self.place = folder, name, recipe, place
        self.lock = FileLock(folder / ".lock")
        self.dataset, validation = prepare(recipe, seed, place)
        images, labels = self.dataset.train_images, self.dataset.train_labels
        try:
            kind = GpuTraining if place.device == "cuda" else Training
            self.training = kind(recipe, images, labels, seed=seed, validation=validation)
        except (RuntimeError, ValueError) as error:  # no such device; a seed out of range
            raise TrainingError(str(error)) from None
        self.learnt_crc = zlib.crc32(labels, zlib.crc32(images))
        if self.training.teacher:
            for array in self.training.teacher.state_dict().values():
                self.learnt_crc = zlib.crc32(array, self.learnt_crc)
        self.seconds = 0.0  # of training, all sessions together
        self.saved_step = 0
        self.saved_best = 0  # the epoch that best.safetensors is of
        self.trained_with = versions()

    @classmethod
    def new(cls, folder: Path, name: str, recipe: Recipe, seed: int, place: Place) -> "Run":
        """A run that begins, in `folder`, or beside it with a number if that is taken."""
        run = cls(folder, name, recipe, seed, place)
        config = {
            "name": name,
            "recipe": vars(recipe),
            "seed": seed,
            "place": vars(place),
            "command": sys.argv[1:],
            "versions": run.trained_with,
        }
        try:
            run.folder = make_folder(folder)
            run.take_lock()
            write_file(run.folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
            write_file(run.folder / METRICS, b"")
        except OSError as error:
            raise TrainingError(
                f"{folder}: cannot be made: {error.strerror}; choose another place by --runs DIR"
            ) from None
        run.save()
        return run

    @classmethod
    def resume(cls, folder: Path, **moved: Any) -> "Run":
        """The run that `folder` is of, where its last checkpoint left it.

        `moved` are the fields of its Place that are others now. Raises TrainingError and
        CheckpointError.
        """
        path = folder / LATEST
        if not folder.is_dir():
            raise TrainingError(f"{folder}: is not the folder of a run: it has no {LATEST}")
        text = load(path)[1]
        if text.get("format") != CHECKPOINT_FORMAT:
            raise TrainingError(f"{path}: is not the checkpoint of a run: found another format")
        try:
            recipe = Recipe(**json.loads(text["recipe"]))
            place = Place(**{**json.loads(text["place"]), **moved})
            run = cls(folder, text["name"], recipe, int(text["seed"]), place)
            run.take_lock()
            for leftover in folder.glob(".*.partial"):
                leftover.unlink()
            arrays, text = load(path)  # whoever had the lock may have written another
            if run.learnt_crc != int(text["learnt_crc"]):
                raise TrainingError(f"{folder}: was trained with other images than those found now")
            run.training.restore(arrays, text)
            run.seconds, run.saved_step = float(text["seconds"]), run.training.at.step
            run.trained_with = json.loads(text["versions"])
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path}: is not the checkpoint of a run: {error}") from None
        # an epoch may have been logged and then lost with what came after the checkpoint
        kept = [line for line in run.epochs() if line["epoch"] <= run.training.at.epoch]
        lines = "".join(json.dumps(line) + "\n" for line in kept)
        try:
            write_file(folder / METRICS, lines.encode())
        except OSError as error:
            raise TrainingError(
                f"{folder / METRICS}: cannot be written: {error.strerror}"
            ) from None
        return run

    def take_lock(self) -> None:
        """Keep other processes from training this run, until `train` has ended."""
        self.lock = FileLock(self.folder / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(f"{self.folder}: another process is training this run") from None
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be written: {error.strerror}") from None

    @property
    def finished(self) -> bool:
        at = self.training.at
        return bool(at.stopped) or at.epoch >= self.recipe.epochs

    def train(self, watch: Callable[[Progress], None], save_every: float = 30) -> None:
        """Train to the end, with a checkpoint every so many seconds; `watch` sees every step.

        Raises SignalError after SIGINT, SIGTERM or SIGHUP, when all is saved; TrainingError for a
        loss that is not finite; CheckpointError where the disk is full.
        """
        before, began = self.seconds, time.perf_counter()
        saved_at = began
        try:
            with catch_signals() as caught:
                self.training.interrupted = lambda: bool(caught)
                for progress in self.training.steps():
                    now = time.perf_counter()
                    self.seconds = before + now - began
                    watch(progress)
                    if progress.end_of_epoch:
                        self.log(progress)
                    if caught or now - saved_at >= save_every:
                        self.save()
                        saved_at = time.perf_counter()
                    if caught:
                        break
                else:
                    self.save()
                    if self.finished:  # and not interrupted between steps
                        self.training.finish()
                        self.save_model("model.safetensors", self.training.network.state_dict())
                self.draw_curves()
                if caught:
                    raise SignalError(caught[0])
        finally:
            self.lock.release()

    def draw_curves(self) -> None:
        from tinygrad_nnfs.models.plots import draw_curves  # matplotlib takes a second to import

        draw_curves(self.folder / "curves.png", self.epochs(), self.name)

    def log(self, progress: Progress) -> None:
        """Append an epoch to metrics.jsonl."""
        line = {name: value for name, value in vars(progress).items() if value is not None}
        del line["end_of_epoch"]
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps({**line, "seconds": round(self.seconds, 3)}) + "\n")

    def epochs(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / METRICS).read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # a full disk or a power cut spoilt it
                    lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and "epoch" in line]

    def save(self) -> None:
        """Write the checkpoint, and the best epoch's weights."""
        at = self.training.at
        arrays, text = self.training.state()
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise TrainingError(
                f"{bad[0]} is no longer finite after epoch {at.epoch}, step {at.step}: "
                "try a smaller learning rate"
            )
        run = {
            "format": CHECKPOINT_FORMAT,
            "name": self.name,
            "place": json.dumps(vars(self.place)),
            "learnt_crc": str(self.learnt_crc),
            "seconds": str(self.seconds),
            "versions": json.dumps(self.trained_with),
        }
        if at.best_epoch != self.saved_best:
            self.save_model("best.safetensors", self.training.best, epoch=str(at.best_epoch))
            self.saved_best = at.best_epoch
        save(self.folder / LATEST, arrays, {**text, **run})
        self.saved_step = at.step

    def save_model(self, file: str, weights: dict[str, np.ndarray], **text: str) -> None:
        recipe = self.recipe
        about = {"data": recipe.data, "split": recipe.split, "seed": str(self.training.seed)}
        about["recipe"] = self.name
        save(self.folder / file, weights, {"format": MODEL_FORMAT, **about, **text})


def prepare(
    recipe: Recipe, seed: int, place: Place
) -> tuple[data.Dataset, tuple[np.ndarray, np.ndarray] | None]:
    """The images that `recipe` learns and is tested with, and those held out for validation."""
    dataset = data.load(recipe.data, place.data_dir, offline=place.offline)
    if recipe.split == "resplit":
        dataset = data.resplit(dataset, seed)
    if not recipe.validation:
        return dataset, None
    dataset, images, labels = data.hold_out(dataset, recipe.validation, seed)
    return dataset, (images, labels)


def make_folder(folder: Path) -> Path:
    """A new folder: `folder`, or if another run has taken that, `folder`-2 and so on."""
    for candidate in (folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))):
        with contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))


def versions() -> dict[str, str]:
    """What a result may depend on, besides the recipe and the seed."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("tinygrad_nnfs", "numpy", "numba", "cupy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Within this context signals to stop are put into a list; a second one interrupts at once."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python gives signals to the main thread alone
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, catch) for number in heeded}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
