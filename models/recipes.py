"""The recipes: how each network is trained, number by number.

The first eleven are those of the source, "CNN & multi-layer perceptrons from scratch". Those whose
names end in -plus are our own, of the same architectures, and made to beat them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tinygrad_nnfs.models.networks import NETWORKS, SHIPPED

from tinygrad_nnfs import optim
from tinygrad_nnfs.data import CLASS_NAMES

OPTIMIZERS = {"sgd": optim.SGD, "adamw": optim.AdamW}
SCHEDULES = ("constant", "inverse-time", "cosine", "one-cycle")
SPLITS = ("standard", "resplit")
TEACHERS = ("", SHIPPED)


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a Recipe: also a flag of `nnfs train`, which takes its meaning and limits.

    `limits`: `choices`, or `low`, `high` (both allowed) and `above`, `below` (neither allowed).
    """
    return field(default=default, metadata={"meaning": meaning, **limits})


def wrong(value: Any, kind: type, limits: Mapping[str, Any]) -> str:
    """What is expected in place of `value`: "" if it is of this kind and within its limits."""
    if "choices" in limits:
        return "" if value in limits["choices"] else f"one of {', '.join(limits['choices'])}"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    signs = {"low": ">=", "above": ">", "high": "<=", "below": "<"}
    bounds = " and ".join(
        f"{sign} {limits[name]}" for name, sign in signs.items() if name in limits
    )
    fits = (
        type(value) in (int, kind)
        and limits.get("low", -math.inf) <= value <= limits.get("high", math.inf)
        and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
    )
    return "" if fits else f"{'an integer' if kind is int else 'a number'} {bounds}"


@dataclass(frozen=True)
class Recipe:
    """Everything that a training depends on, but for its seed."""

    network: str = setting("mlp", "what is trained", choices=tuple(NETWORKS))
    data: str = setting("digits", "the images", choices=tuple(CLASS_NAMES))
    epochs: int = setting(20, "passes over the training images", low=1)
    batch_size: int = setting(64, "images in a training step", low=1)
    lr: float = setting(0.02, "learning rate, the highest of a schedule", low=0)
    optimizer: str = setting("sgd", "the rule of the update", choices=tuple(OPTIMIZERS))
    momentum: float = setting(
        0.9, "share of the last update in the next one, of sgd", low=0, below=1
    )
    schedule: str = setting("constant", "how the learning rate changes", choices=SCHEDULES)
    decay: float = setting(0.0, "of inverse-time: lr / (1 + decay * epoch)", low=0)
    warmup: float = setting(
        0.2, "of one-cycle: share of the steps with a rising rate", above=0, below=1
    )
    weight_decay: float = setting(0.0, "added times weight to its gradient; not for biases", low=0)
    dropout: bool = setting(True, "dropout as the network has it")
    dropout_until: float = setting(1.0, "share of the epochs with dropout", low=0, high=1)
    label_smoothing: float = setting(
        0.0, "share of the target spread over all classes", low=0, below=1
    )
    teacher: str = setting(
        "", "a model that comes with the package, to learn from", choices=TEACHERS
    )
    mixup: float = setting(
        0.0, "largest share of another image in one, for a teacher to judge", low=0, high=1
    )
    shift: int = setting(0, "each image moved by up to so many pixels", low=0, high=27)
    mirror: bool = setting(False, "half of the images mirrored")
    erase: float = setting(0.0, "share of the images with a rectangle of noise", low=0, high=1)
    average: float = setting(
        0.0, "decay of the average of weights per 8 steps; 0: none", low=0, below=1
    )
    clip: float = setting(0.0, "largest joint norm of the gradients; 0: no limit", low=0)
    split: str = setting("standard", "test images as published or drawn anew", choices=SPLITS)
    validation: int = setting(0, "training images held out to measure each epoch by", low=0)
    patience: int = setting(0, "epochs without a better validation before stopping; 0: all", low=0)
    max_steps: int = setting(0, "training steps at most; 0: all", low=0)
    target_accuracy: float = setting(0.0, "stop at this accuracy, 0 to 1; 0: go on", low=0, high=1)

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that is out of its range or fits no other."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            expected = wrong(value, type(setting.default), setting.metadata)
            if expected:
                raise ValueError(f"{setting.name} must be {expected}, found {value!r}")
        if self.patience and not self.validation:
            raise ValueError("patience needs validation images to measure by: set validation, too")
        if self.decay and self.schedule != "inverse-time":
            raise ValueError(f"decay is of the schedule inverse-time, not of {self.schedule}")
        if self.warmup != Recipe.warmup and self.schedule != "one-cycle":
            raise ValueError(f"warmup is of the schedule one-cycle, not of {self.schedule}")
        if self.teacher and self.label_smoothing:
            raise ValueError("a teacher's targets are smooth: set label_smoothing to 0")
        if self.mixup and not self.teacher:
            raise ValueError("mixup needs a teacher, to say what a mixture is: set teacher, too")
        if self.teacher and self.split != "standard":
            raise ValueError("a teacher has learnt by the standard split: set split to standard")

    def learning_rate(self, time: float) -> float:
        """The learning rate after `time` epochs."""
        if self.schedule == "inverse-time":
            return optim.InverseTimeDecay(self.lr, self.decay)(math.floor(time))
        if self.schedule == "cosine":
            return optim.CosineDecay(self.lr, self.epochs)(time)
        if self.schedule == "one-cycle":
            return optim.OneCycle(self.lr, self.epochs, self.warmup)(time)
        return self.lr

    def differences(self, other: "Recipe") -> dict[str, Any]:
        """The settings that differ from `other`'s."""
        mine, theirs = vars(self), vars(other)
        return {name: value for name, value in mine.items() if value != theirs[name]}


_SGD = Recipe(batch_size=1, lr=0.001, momentum=0.0, epochs=3, dropout=False)
_MINIBATCH = Recipe(lr=0.001, epochs=100, dropout=False)
_DROPOUT = Recipe(lr=0.01, epochs=100, schedule="inverse-time", decay=0.0005)
_VARIANTS = {
    "sgd": _SGD,
    "momentum": replace(_SGD, momentum=0.9),
    "minibatch": _MINIBATCH,
    "dropout": _DROPOUT,
    # the source adds lambda / (2 m) |W|^2 to the loss of a batch of m images, lambda = 0.001
    "dropout-l2": replace(_DROPOUT, weight_decay=0.001 / 64),
}
_CNN = Recipe(
    network="cnn",
    data="fashion-mnist",
    epochs=40,
    lr=0.005,
    schedule="inverse-time",
    decay=0.001,
)
_MNIST_PLUS = Recipe(
    data="mnist",
    epochs=100,
    lr=0.05,
    schedule="one-cycle",
    label_smoothing=0.1,
    shift=1,
    average=0.99,
)
_FASHION_PLUS = Recipe(
    data="fashion-mnist",
    epochs=120,
    lr=0.1,
    schedule="one-cycle",
    teacher=SHIPPED,
    mirror=True,
    average=0.99,
)
# With dropout SGD is still far from where it could get after this time, and without it at the end
# the network fits better (Liu et al., "Dropout reduces underfitting", 2023).
_FASHION_DROPOUT_PLUS = replace(
    _FASHION_PLUS, epochs=240, optimizer="adamw", lr=0.002, mixup=0.5, dropout_until=0.5
)
_CNN_PLUS = Recipe(
    network="cnn",
    epochs=40,
    optimizer="adamw",
    lr=0.002,
    schedule="one-cycle",
    weight_decay=0.02,
    dropout_until=0.7,
    label_smoothing=0.1,
    shift=1,
    average=0.99,
)


RECIPES = {
    **{f"mnist-{name}": replace(recipe, data="mnist") for name, recipe in _VARIANTS.items()},
    **{
        f"fashion-{name}": replace(recipe, data="fashion-mnist")
        for name, recipe in _VARIANTS.items()
    },
    "fashion-cnn": _CNN,
    "mnist-minibatch-plus": replace(_MNIST_PLUS, dropout=False),
    "mnist-dropout-plus": _MNIST_PLUS,
    "mnist-dropout-l2-plus": replace(_MNIST_PLUS, weight_decay=1e-5),
    "fashion-minibatch-plus": replace(_FASHION_PLUS, dropout=False),
    "fashion-dropout-plus": _FASHION_DROPOUT_PLUS,
    "fashion-dropout-l2-plus": replace(_FASHION_DROPOUT_PLUS, weight_decay=0.01),
    "fashion-cnn-plus": replace(_CNN_PLUS, data="fashion-mnist", mirror=True),
    "mnist-cnn-plus": replace(_CNN_PLUS, data="mnist", epochs=20),
}

# what `nnfs train mlp --data digits` and the like begin with: quick rather than best
DEFAULTS = {
    ("mlp", "digits"): Recipe(epochs=60),  # the digits are few: more epochs take less time
    ("mlp", "mnist"): Recipe(data="mnist"),
    ("mlp", "fashion-mnist"): Recipe(data="fashion-mnist"),
    ("cnn", "digits"): Recipe(network="cnn", epochs=10),
    ("cnn", "mnist"): Recipe(network="cnn", data="mnist", epochs=5),
    ("cnn", "fashion-mnist"): Recipe(network="cnn", data="fashion-mnist", epochs=10),
}


@dataclass(frozen=True)
class Published:
    """What others report of a recipe, in per cent."""

    train: float  # the source's
    test: float  # the source's; on a split of Kaggle's for Fashion-MNIST
    pytorch: tuple[float, ...] = ()  # PyTorch's test accuracy by the same recipe, seed by seed
    pytorch_resplit: float | None = None


PUBLISHED = {
    "mnist-minibatch": Published(99.84, 97.67, (97.68,)),
    "mnist-dropout": Published(99.97, 98.22, (98.17, 98.22)),
    "mnist-dropout-l2": Published(99.99, 98.21, (98.15, 98.24)),
    "fashion-minibatch": Published(94.7, 89.21, (88.23, 88.77), 89.26),
    "fashion-dropout": Published(
        95.4, 90.07, (88.78, 88.91, 89.34, 89.23, 89.26, 89.30, 88.34, 89.27), 89.55
    ),
    "fashion-dropout-l2": Published(95.6, 90.18, (89.04, 89.16, 89.08), 89.71),
    "fashion-cnn": Published(97.92, 94.17, (93.03,)),
}


def published(name: str) -> Published | None:
    """What others report of the recipe `name`, or of the one that is to be beaten by it."""
    return PUBLISHED.get(name.removesuffix("-plus"))
