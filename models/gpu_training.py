"""Training on a GPU: everything that is learnt lies there, and an epoch passes without waiting."""

import math
import time
from typing import Any

import numpy as np
from tinygrad_nnfs.models import augmentation
from tinygrad_nnfs.models.training import (
    AUGMENTATION,
    AVERAGE_EVERY,
    Progress,
    Training,
    TrainingError,
)

from tinygrad_nnfs import Tensor, backend, capture, optim
from tinygrad_nnfs.kernels.cuda import add_metrics, gather_batch
from tinygrad_nnfs.replay import live

xp = backend.cupy
SECONDS = 1.0  # between two looks at the metrics, within an epoch that takes longer


class GpuTraining(Training):
    """A `Training` on "cuda": the same order of images, augmentation and dropout masks.

    A step is one CUDA graph (see `capture`); images, labels and the order of an epoch lie on the
    GPU, and metrics are added up there and read at the end of an epoch, or once a second. So a loss
    that is not finite is found then, and with it the step at which it first was. What the recipe's
    `erase` or `clip` do needs the CPU: with `clip` steps run one by one, `erase` is refused.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings, device="cuda")
        recipe, count = self.recipe, len(self.images)
        if recipe.erase:
            raise TrainingError("erase is not there on device 'cuda': use device 'cpu', or erase 0")
        self.resident = backend.move(self.images, "cuda")  # row by row, as the kernel reads them
        self.resident_labels = xp.asarray(self.labels).astype(np.int64)
        self.resident_targets: Any = None
        self.order = xp.zeros(count, np.int64)
        self.shifts = xp.zeros((2, count), np.int64) if recipe.shift else (None, None)
        self.mirrored = xp.zeros(count, bool) if recipe.mirror else None
        self.totals = xp.zeros(4, np.float64)  # see add_metrics
        self.first = 0  # the place in the order where the next step begins
        self.began = 0  # how many steps there were before this epoch, or this session of it
        self.seen_at = time.perf_counter()
        self.step = self.learn_batch if recipe.clip else capture(self.learn_batch, "cuda")

    def begin_epoch(self, order: np.ndarray) -> None:
        shown_before, targets_before = self.shown, self.targets
        super().begin_epoch(order)
        # written in place, for a captured step reads where it has read before
        self.order[...] = xp.asarray(order)
        if self.shown is not shown_before:
            self.resident[...] = xp.asarray(self.shown)
        if self.targets is not targets_before:
            if self.resident_targets is None:
                self.resident_targets = xp.empty(self.targets.shape, np.float32)
            self.resident_targets[...] = xp.asarray(self.targets, np.float32)
        self.augment(len(order))
        at = self.at
        self.began = at.step
        self.totals[...] = xp.asarray([at.loss_sum, at.correct, 0.0, 0.0])

    def augment(self, count: int) -> None:
        """Draw for the whole epoch what the CPU draws step by step."""
        recipe, size = self.recipe, self.recipe.batch_size
        shifts, mirrored = np.zeros((2, count), np.int64), np.zeros(count, bool)
        first_step = self.at.step - self.at.samples // size  # of this epoch
        if recipe.shift or recipe.mirror:
            for begin in range(self.at.samples, count, size):
                batch = slice(begin, min(begin + size, count))
                n = batch.stop - begin
                random = self.random(AUGMENTATION, first_step + begin // size)
                if recipe.shift:
                    shifts[:, batch] = augmentation.draw_shift(n, recipe.shift, random)
                if recipe.mirror:
                    mirrored[batch] = augmentation.draw_mirror(n, random)
        if recipe.shift:
            self.shifts[...] = xp.asarray(shifts)
        if recipe.mirror:
            self.mirrored[...] = xp.asarray(mirrored)

    def learn(self, chosen: np.ndarray) -> None:
        at = self.at
        self.first = at.samples
        backend.restart_keys(self.seed, at.step)
        # the second input is a constant to `capture`: where it changes, another graph is needed
        self.step(len(chosen), tuple(layer.p for layer, _ in self.dropouts))
        at.step += 1
        at.samples += len(chosen)
        if self.average and at.step % AVERAGE_EVERY == 0:
            self.average.update()

    def learn_batch(self, size: int, dropout: tuple[float, ...]) -> None:
        """One step on the next `size` images of the order; `dropout` is what the layers have."""
        first = live(lambda: [self.first])
        images, labels, chosen = gather_batch(
            self.resident,
            self.resident_labels,
            self.order,
            first if backend.is_array(first) else first[0],
            size,
            rows=self.shifts[0],
            columns=self.shifts[1],
            mirrored=self.mirrored,
        )
        logits = self.network(Tensor(images))
        learnt = labels
        if self.targets is not None:
            learnt = xp.take(self.resident_targets, chosen, axis=0)
        loss = self.loss(logits, Tensor(learnt))
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip:
            optim.clip_grad_norm(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        add_metrics(self.totals, logits.data, labels, loss.data)

    def is_due(self) -> bool:
        at = self.at
        ends = at.samples == len(self.images) or at.step == self.recipe.max_steps
        return ends or time.perf_counter() - self.seen_at >= SECONDS

    def account(self) -> Progress:
        at = self.at
        loss_sum, correct, finite, spoilt = backend.move(self.totals, "cpu").tolist()
        if spoilt or not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss is not finite in epoch {at.epoch + 1}, "
                f"step {self.began + int(finite) + 1}: "
                f"try a smaller learning rate than {self.optimizer.lr:g}"
            )
        at.loss_sum, at.correct = loss_sum, int(correct)
        progress = super().account()
        self.seen_at = time.perf_counter()
        return progress
