"""Training progress: a live bar on a terminal, plain lines in a log file."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tinygrad_nnfs.models.training import Progress

BAR_EVERY = 0.1  # seconds between updates of the bar
EPOCH_EVERY = 1.0  # seconds between lines at the ends of epochs, at least
LINE_EVERY = 15.0  # seconds between lines within an epoch
SPEED_OVER = 10.0  # seconds over which the speed is measured


class Display:
    """Shows the `Progress` of a training run of `epochs` times `samples`: `with Display(...)`.

    `done` samples have been learnt before, in an earlier session.
    """

    def __init__(self, console: Console, epochs: int, samples: int, done: int = 0) -> None:
        self.console, self.epochs, self.samples = console, epochs, samples
        self.shown = time.perf_counter()
        self.marks = deque([(self.shown, done)])  # (time, samples done) of the last seconds
        self.bar = None
        if console.is_terminal:
            self.bar = Bar(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=None),
                TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
                TextColumn("{task.fields[speed]} samples/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
                expand=True,
            )
            self.task = self.bar.add_task(
                "train",
                total=epochs * samples,
                completed=done,
                epoch="1",
                loss="-",
                accuracy="-",
                speed="-",
            )

    def __enter__(self) -> "Display":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, progress: Progress) -> None:
        """Show the progress, if it is time to."""
        now = time.perf_counter()
        done = (progress.epoch - 1) * self.samples + progress.samples
        finished = done == self.epochs * self.samples
        if self.bar:
            if now - self.shown < BAR_EVERY and not finished:
                return
            speed = self._speed(now, done)
            self.bar.update(
                self.task,
                completed=done,
                epoch=f"{progress.epoch}/{self.epochs}",
                loss=f"{progress.loss:.4f}",
                accuracy=f"{progress.accuracy:.2%}",
                speed=f"{speed:,.0f}",
            )
        else:
            wait = EPOCH_EVERY if progress.end_of_epoch else LINE_EVERY
            if now - self.shown < wait and not finished:
                return
            speed = self._speed(now, done)
            left = (self.epochs * self.samples - done) / speed
            self.console.print(
                f"epoch {progress.epoch}/{self.epochs}  "
                f"samples {progress.samples:,}/{self.samples:,}  "
                f"loss {progress.loss:.4f}  accuracy {progress.accuracy:.2%}  "
                f"{speed:,.0f} samples/s  {_duration(left)} left",
                highlight=False,
                soft_wrap=True,
            )
        self.shown = now

    def _speed(self, now: float, done: int) -> float:
        """Samples a second, lately: the machine may have become faster or slower."""
        self.marks.append((now, done))
        while len(self.marks) > 2 and now - self.marks[1][0] > SPEED_OVER:
            self.marks.popleft()
        then, before = self.marks[0]
        return (done - before) / (now - then)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
