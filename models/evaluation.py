"""How good a trained network is: two numbers, or a whole report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_nnfs import Tensor, nn, no_grad
from tinygrad_nnfs.data import scale
from tinygrad_nnfs.ops import softmax, softmax_cross_entropy

BATCH_SIZE = 256  # keeps the CNN's activations small


class EvaluationError(Exception):
    """A network cannot be judged, or asked, with these images; the message says why."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a network made of n images of c classes.

    `loss` is the mean, `accuracy` in [0, 1]. `labels` and `predictions` are int64 (n),
    `probabilities` (n, c). `confusion` (c, c) counts: a row for each true class, a column for each
    predicted one. `precision`, `recall` and `support` (c) are by class: precision is NaN for a
    class that was never predicted, recall for one without images.
    """

    class_names: tuple[str, ...]
    loss: float
    accuracy: float
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    support: np.ndarray

    def normalized_confusion(self) -> np.ndarray:
        """`confusion` as shares of the true classes: rows sum to 1; NaN for one without images."""
        shares = np.full(self.confusion.shape, np.nan)
        support = self.support[:, None]
        return np.divide(self.confusion, support, out=shares, where=support > 0)

    def mistakes(self) -> np.ndarray:
        """The indices of the images that were taken for another class, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[wrong, self.predictions[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")]

    def to_json(self) -> dict[str, Any]:
        """Everything but what is about single images, as `json` takes it."""
        return {
            "images": len(self.labels),
            "loss": self.loss,
            "accuracy": self.accuracy,
            "classes": [
                {
                    "class": name,
                    "precision": None if np.isnan(precision) else float(precision),
                    "recall": None if np.isnan(recall) else float(recall),
                    "support": int(support),
                }
                for name, precision, recall, support in zip(
                    self.class_names, self.precision, self.recall, self.support
                )
            ],
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, device: str = "cpu"
) -> tuple[float, float]:
    """Mean loss and accuracy (0 to 1) of images uint8 (n, 28, 28). The network stays in eval()."""
    found = logits(network, images, device)
    return _loss(found, labels), float((found.argmax(axis=1) == labels).mean())


def report(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    device: str = "cpu",
) -> Report:
    """The whole report on images uint8 (n, 28, 28) and their labels. Raises EvaluationError."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    found = _checked_logits(network, images, class_names, device)
    predictions = found.argmax(axis=1)
    classes = range(len(class_names))
    precision, recall, _, support = precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=np.nan
    )
    return Report(
        class_names=tuple(class_names),
        loss=_loss(found, labels),
        accuracy=float((predictions == labels).mean()),
        labels=labels,
        predictions=predictions,
        probabilities=_softmax(found),
        confusion=confusion_matrix(labels, predictions, labels=classes),
        precision=precision,
        recall=recall,
        support=support,
    )


def probabilities(
    network: nn.Module, images: np.ndarray, class_names: Sequence[str], device: str = "cpu"
) -> np.ndarray:
    """(n, classes) of images uint8 (n, 28, 28). Raises EvaluationError."""
    return _softmax(_checked_logits(network, images, class_names, device))


@no_grad()
def logits(network: nn.Module, images: np.ndarray, device: str = "cpu") -> np.ndarray:
    """The network's outputs (n, classes) for images uint8 (n, 28, 28), n >= 1.

    The network stays in eval().
    """
    network.eval()
    with np.errstate(all="ignore"):  # what overflows shows in the outputs
        batches = [
            network(Tensor(scale(images[start : start + BATCH_SIZE])).to(device)).numpy()
            for start in range(0, len(images), BATCH_SIZE)
        ]
    return np.concatenate(batches)


def _checked_logits(
    network: nn.Module, images: np.ndarray, class_names: Sequence[str], device: str
) -> np.ndarray:
    found = logits(network, images, device)
    if found.shape[1] != len(class_names):
        raise EvaluationError(
            f"the network tells {found.shape[1]} classes apart, the data set has "
            f"{len(class_names)}: was it trained on another one?"
        )
    bad = int((~np.isfinite(found)).any(axis=1).sum())
    if bad:
        raise EvaluationError(
            f"the network's outputs are NaN or infinite for {bad:,} of {len(images):,} images: "
            "train it again, with a smaller learning rate"
        )
    return found


@no_grad()
def _softmax(found: np.ndarray) -> np.ndarray:
    return softmax(Tensor(found)).numpy()


@no_grad()
def _loss(found: np.ndarray, labels: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return softmax_cross_entropy(Tensor(found), Tensor(labels)).item()
