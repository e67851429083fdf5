"""The training loop: epochs of shuffled mini-batches, which can go on from any step."""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from tinygrad_nnfs.models import augmentation
from tinygrad_nnfs.models.evaluation import BATCH_SIZE, evaluate, probabilities
from tinygrad_nnfs.models.networks import NETWORKS, build, load_model, shipped
from tinygrad_nnfs.models.recipes import OPTIMIZERS, Recipe

from tinygrad_nnfs import (
    AnomalyError,
    Tensor,
    debug,
    get_rng_state,
    manual_seed,
    nn,
    optim,
    set_rng_state,
)
from tinygrad_nnfs.backend import restart_keys
from tinygrad_nnfs.data import CLASS_NAMES, scale
from tinygrad_nnfs.ops import soft_cross_entropy, softmax_cross_entropy

# what random numbers are for: each purpose has streams of its own
ORDER, AUGMENTATION, MIXTURE = 1, 2, 3
MIXTURES = 8  # of the images, taken in turns: a teacher judges each of them once
JUDGED = 4 * BATCH_SIZE  # images at a time; whole batches, so that it changes no bit
AVERAGE_EVERY = 8  # steps between updates of the weights' average: one costs as much as SGD's step


class TrainingError(Exception):
    """Training cannot go on; the message says where it stopped and what to try."""


class InterruptError(Exception):
    """Training shall stop before its next step."""


@dataclass(frozen=True)
class Progress:
    """Where training is after a step.

    `loss` and `accuracy` are means over the epoch so far, of a network that was learning and, with
    dropout, handicapped: evaluation afterwards finds better ones.
    """

    epoch: int  # from 1
    step: int  # from 1, since training began
    samples: int  # of this epoch
    loss: float
    accuracy: float
    lr: float
    end_of_epoch: bool
    validation_loss: float | None = None  # at the end of an epoch
    validation_accuracy: float | None = None


@dataclass
class Counters:
    """Where a training is, besides its arrays: plain numbers."""

    epoch: int = 0  # complete epochs
    step: int = 0  # since training began
    samples: int = 0  # of the epoch that is not complete
    loss_sum: float = 0.0  # over them
    correct: int = 0  # of them
    best_epoch: int = 0
    best_score: float = -math.inf
    stopped: str = ""  # why training ended before its last epoch

    def check(self, epochs: int, images: int) -> None:
        """Raise ValueError for what cannot be in a training of so many epochs and images."""
        for name, kind in (("loss_sum", float), ("best_score", float), ("stopped", str)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        limits = {"epoch": epochs, "step": math.inf, "samples": images - 1}
        for name, limit in {**limits, "correct": images, "best_epoch": self.epoch}.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= limit:
                raise ValueError(f"{name} is {value!r}, expected an integer in 0..{limit}")


class Training:
    """A network that is trained by a recipe, and everything that going on later depends on.

    `images` uint8 (n, 28, 28) and `labels` (n) are learnt; `validation`, a pair of such arrays,
    measures each epoch. All that is random follows from `seed` and the place in the training: the
    initial weights from `manual_seed(seed)`, which this calls, the order of an epoch from (seed,
    epoch), the augmentation and the dropout masks of a batch from (seed, step).
    """

    def __init__(
        self,
        recipe: Recipe,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int = 0,
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        device: str = "cpu",
    ) -> None:
        manual_seed(seed)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.images, self.labels, self.validation = images, labels, validation
        self.network = NETWORKS[recipe.network]().to(device)
        dropouts = [layer for layer in self.network.modules() if isinstance(layer, nn.Dropout)]
        self.dropouts = [(layer, layer.p if recipe.dropout else 0.0) for layer in dropouts]
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        biases = [p for p in self.network.parameters() if p.ndim == 1]
        momentum = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            [
                {"params": weights, "weight_decay": recipe.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=recipe.lr,
            **momentum,
        )
        self.average = None
        if recipe.average:
            self.average = optim.WeightAverage(self.network.parameters(), recipe.average)
        self.teacher = teacher_of(recipe).to(device) if recipe.teacher else None
        self.taught: dict[int, np.ndarray] = {}  # what it says, by the number of the mixture
        self.shown, self.targets = images, None  # in this epoch; None: the labels
        self.best: dict[str, np.ndarray] = {}  # the weights of the best epoch
        self.at = Counters()
        self.interrupted: Callable[[], bool] = lambda: False  # asked where no step ends for long

    def steps(self) -> Iterator[Progress]:
        """Go on until training is finished; yields after every step (on a GPU not as often).

        Ends early if `interrupted` while a teacher judges images, which may take a minute.
        Each epoch sees every image once; its last batch is smaller where the batch size does not
        divide. Raises TrainingError when the loss is not finite, before the weights learn from it.
        """
        at, count, size = self.at, len(self.images), self.recipe.batch_size
        steps_of_epoch = -(-count // size)
        while at.epoch < self.recipe.epochs and not at.stopped:
            order = self.random(ORDER, at.epoch).permutation(count)
            try:
                self.begin_epoch(order)
            except InterruptError:
                return
            self.network.train()
            for start in range(at.samples, count, size):
                self.optimizer.lr = self.recipe.learning_rate(at.step / steps_of_epoch)
                self.learn(order[start : start + size])
                if self.is_due():
                    yield self.account()
                if at.stopped:
                    return

    def is_due(self) -> bool:
        """Whether the last step is to be accounted for."""
        return True

    def begin_epoch(self, order: np.ndarray) -> None:
        """Switch dropout on or off, and choose what is shown and what a teacher says of it."""
        recipe, epoch = self.recipe, self.at.epoch
        for layer, p in self.dropouts:
            layer.p = p if epoch < recipe.dropout_until * recipe.epochs else 0.0
        mixture = 0
        if recipe.mixup:
            mixture = epoch % MIXTURES
            random = self.random(MIXTURE, mixture)
            self.shown = augmentation.mix(self.images, recipe.mixup, random)
        if self.teacher:
            if mixture not in self.taught:
                self.taught[mixture] = self.judged(self.shown)
            self.targets = self.taught[mixture]

    def judged(self, images: np.ndarray) -> np.ndarray:
        """What the teacher makes of images: float32 (n, classes), the targets to learn.

        A teacher's probabilities say more than labels do: what else an image might have been
        (Hinton et al., "Distilling the knowledge in a neural network", 2015). Where images are
        mirrored, the mean of what it makes of an image and of its mirror image.
        """
        views = [images, images[:, :, ::-1]] if self.recipe.mirror else [images]
        classes = CLASS_NAMES[self.recipe.data]
        found: list[list[np.ndarray]] = [[] for _ in views]
        for start in range(0, len(images), JUDGED):
            if self.interrupted():
                raise InterruptError
            for view, parts in zip(views, found):
                part = view[start : start + JUDGED]
                parts.append(probabilities(self.teacher, part, classes, self.device))
        return np.mean([np.concatenate(parts) for parts in found], axis=0)

    def learn(self, chosen: np.ndarray) -> None:
        """One step on the images with the indices `chosen`."""
        at = self.at
        images = self.augmented(self.shown[chosen])
        logits, loss = self.forward(images, chosen)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {at.epoch + 1}, step {at.step + 1}: "
                f"{self.fault(images, chosen)}"
                f"try a smaller learning rate than {self.optimizer.lr:g}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip:
            optim.clip_grad_norm(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()

        at.step += 1
        at.samples += len(chosen)
        at.loss_sum += value * len(chosen)
        at.correct += int((logits.numpy().argmax(axis=1) == self.labels[chosen]).sum())
        if self.average and at.step % AVERAGE_EVERY == 0:
            self.average.update()

    def forward(self, images: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits and loss of `images`, those `chosen` as augmented, with this step's dropout."""
        restart_keys(self.seed, self.at.step)
        logits = self.network(Tensor(scale(images)).to(self.device))
        learnt = self.labels if self.targets is None else self.targets
        return logits, self.loss(logits, Tensor(learnt[chosen]).to(self.device))

    def loss(self, logits: Tensor, learnt: Tensor) -> Tensor:
        """The loss by labels, or by a teacher's probabilities where there is one."""
        if self.targets is not None:
            return soft_cross_entropy(logits, learnt)
        smoothing = self.recipe.label_smoothing
        return softmax_cross_entropy(logits, learnt, label_smoothing=smoothing)

    def fault(self, images: np.ndarray, chosen: np.ndarray) -> str:
        """What made the loss of these images NaN or infinite, as a clause that ends with ": ".

        Either parameters that the step before has spoilt, whose gradients are still there to see,
        or the op that another forward finds. Weights and random streams stay as they are.
        """
        parameters = dict(self.network.named_parameters())
        spoilt = [name for name, p in parameters.items() if not debug.is_finite(p.data)]
        if spoilt:
            name = spoilt[-1]  # backward begins at the last layer
            more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
            where = f"{debug.count(parameters[name].data)} in parameter {name}{more}"
            gradient = parameters[name].grad
            if gradient is None:  # there was no step before, in this process
                return f"{where}: "
            seen = debug.describe(gradient.data)
            return f"the step before made {where} (its gradient: {seen}): "
        state = get_rng_state()
        try:
            with debug.detect_anomaly():
                self.forward(images, chosen)
        except AnomalyError as error:
            return str(error).partition("\n")[0] + ": "
        finally:
            set_rng_state(state)
        return ""

    def augmented(self, images: np.ndarray) -> np.ndarray:
        recipe = self.recipe
        if recipe.shift or recipe.mirror or recipe.erase:
            random = self.random(AUGMENTATION, self.at.step)
            if recipe.shift:
                images = augmentation.shift(images, recipe.shift, random)
            if recipe.mirror:
                images = augmentation.mirror(images, random)
            if recipe.erase:
                images = augmentation.erase(images, recipe.erase, random)
        return images

    def random(self, purpose: int, place: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, place))

    def account(self) -> Progress:
        """What the last step has led to. An epoch that it ends is measured and closed."""
        at, recipe = self.at, self.recipe
        loss, accuracy = at.loss_sum / at.samples, at.correct / at.samples
        end_of_epoch = at.samples == len(self.images)
        place = (at.epoch + 1, at.step, at.samples, loss, accuracy, self.optimizer.lr)
        validation: tuple[float, float] | tuple[()] = ()
        if end_of_epoch:
            at.epoch, at.samples, at.loss_sum, at.correct = at.epoch + 1, 0, 0.0, 0
            if self.validation:
                with self.averaged():
                    validation = evaluate(self.network, *self.validation, self.device)
            self.compare(score=validation[1] if validation else -loss)
            measured = validation[1] if validation else accuracy
            if recipe.target_accuracy and measured >= recipe.target_accuracy:
                at.stopped = f"accuracy {measured:.2%} reached"
        if at.step == recipe.max_steps:
            at.stopped = f"{at.step} steps done"
        return Progress(*place, end_of_epoch, *validation)

    def compare(self, score: float) -> None:
        """Keep the weights if this epoch is the best so far; stop if none has been for long."""
        at, patience = self.at, self.recipe.patience
        if score > at.best_score:
            at.best_score, at.best_epoch = score, at.epoch
            self.best = self.weights()
        elif patience and at.epoch - at.best_epoch >= patience:
            at.stopped = f"no better epoch than {at.best_epoch} in {patience}"

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the network has the weights that it is to be used with."""
        begun = self.average and self.average.t
        return self.average.applied() if begun else contextlib.nullcontext()

    def weights(self) -> dict[str, np.ndarray]:
        """The network's state_dict as it is to be used: averaged, if the recipe says so."""
        with self.averaged():
            return self.network.state_dict()

    def finish(self) -> None:
        """Give the network its final weights: with `patience` the best epoch's."""
        restored = self.best if self.recipe.patience and self.best else self.weights()
        self.network.load_state_dict(restored)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Everything that `restore` needs: arrays by name, and text."""
        parts = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "best": self.best,
        }
        arrays = {f"{part}.{name}": state[name] for part, state in parts.items() for name in state}
        return arrays, {
            "seed": str(self.seed),
            "recipe": json.dumps(vars(self.recipe)),
            "counters": json.dumps(vars(self.at)),
        }

    def restore(self, arrays: Mapping[str, np.ndarray], text: Mapping[str, str]) -> None:
        """Go on from `state`: what follows is then the same to the last bit, on the same machine.

        Raises ValueError, KeyError or TypeError if the state is of another training or not whole.
        """
        if Recipe(**json.loads(text["recipe"])) != self.recipe or text["seed"] != str(self.seed):
            raise ValueError("the state is of a training by another recipe or seed")
        parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        for full_name, array in arrays.items():
            part, _, name = full_name.partition(".")
            parts[part][name] = array
        at = Counters(**json.loads(text["counters"]))
        at.check(epochs=self.recipe.epochs, images=len(self.images))
        self.network.load_state_dict(parts["network"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.check_optimizer(at.step)
        if self.average:
            self.average.load_state_dict(parts["average"])
        if at.best_epoch:
            build(self.recipe.network).load_state_dict(parts["best"])  # does it fit?
        self.best, self.at = parts["best"], at

    def check_optimizer(self, step: int) -> None:
        """Raise ValueError unless the optimiser remembers for every parameter what it should."""
        remembers = step and (self.recipe.optimizer != "sgd" or self.recipe.momentum)
        expected = (self.optimizer.keeps or {}).keys() if remembers else set()
        for name, parameter in self.network.named_parameters():
            found = self.optimizer.state.get(parameter, {}).keys()
            if found != expected:
                raise ValueError(f"the optimiser's memory of {name} is {sorted(found)}")


def teacher_of(recipe: Recipe) -> nn.Module:
    """The network that the recipe names as a teacher. Raises TrainingError."""
    network, text = load_model(shipped(recipe.teacher))
    if text.get("data") != recipe.data:
        raise TrainingError(
            f"the teacher {recipe.teacher} knows {text.get('data')}, not {recipe.data}"
        )
    return network
