"""Training progress: a live bar on a terminal, plain lines in a log file."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tinygrad_nnfs.models.training import Progress

BAR_EVERY = 0.1  # seconds between updates of the bar
LINE_EVERY = 15.0  # seconds between lines within an epoch


class Display:
    """Shows the `Progress` of a training run of `epochs` times `samples`: `with Display(...)`."""

    def __init__(self, console: Console, epochs: int, samples: int) -> None:
        self.console, self.epochs, self.samples = console, epochs, samples
        self.start = self.shown = time.perf_counter()
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
                "train", total=epochs * samples, epoch="1", loss="-", accuracy="-", speed="-"
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
        speed = done / (now - self.start)
        if self.bar:
            if now - self.shown < BAR_EVERY and done < self.epochs * self.samples:
                return
            self.bar.update(
                self.task,
                completed=done,
                epoch=f"{progress.epoch}/{self.epochs}",
                loss=f"{progress.loss:.4f}",
                accuracy=f"{progress.accuracy:.2%}",
                speed=f"{speed:,.0f}",
            )
        else:
            if now - self.shown < LINE_EVERY and not progress.end_of_epoch:
                return
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
