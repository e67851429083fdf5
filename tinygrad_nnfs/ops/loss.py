"""Losses. `reduction` is "mean" (default), "sum" or "none", as in PyTorch.

In the formulas spread(dy) is the share of dy that each single loss gets: dy, for "mean" dy / n.
"""

from tinygrad_nnfs import backend
from tinygrad_nnfs.registry import Float, Index, op


def reduce_losses(reduction, losses):
    """The reduced losses, and the function that spreads dy over them again."""
    if reduction == "none":
        return losses, lambda dy: dy
    if reduction == "sum":
        return losses.sum(), lambda dy: dy
    if reduction != "mean":
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', found {reduction!r}")
    if not losses.size:
        raise ValueError("the batch is empty: its mean loss is not defined")
    share = 1 / losses.size  # the size itself may be too large for float16
    return losses.mean(), lambda dy: dy * share


def check_labels(logits, labels, label_smoothing):
    if labels.ndim == 2 and labels.shape == logits.shape:
        raise ValueError("labels look one-hot: they must be class indices, labels.argmax(axis=1)")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError("logits must be (n, classes) and labels (n,)")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integers, found {labels.dtype}: give the list or an integer array of "
            "class indices (a Tensor of a list is float32)"
        )
    if len(labels) == 0:
        raise ValueError("the batch is empty: its loss is not defined")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), found {label_smoothing}")


def labels_out_of_range(k):
    return f"softmax_cross_entropy: labels must be in 0..{k - 1}"


def check_range(labels, k):
    if backend.device_of(labels) == "cuda":
        backend.report_later(labels_out_of_range(k), ((labels < 0) | (labels >= k)).any())
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= k:
        raise ValueError(f"labels must be in 0..{k - 1}, found {lowest}..{highest}")


@op
def softmax_cross_entropy(
    xp, logits: Float, labels: Index, *, label_smoothing=0.0, reduction="mean"
):
    """The negative log-likelihood of `labels` under softmax(logits): (n, k), (n,) -> () or (n,).

    `labels` are class indices 0..k-1 of any integer dtype. With `label_smoothing` s the target is
    1 - s on the label plus s / k on every class (Szegedy et al., 2016, section 7).

    dlogits = spread(dy) * (softmax(logits) - target)
    with target = (1 - s) * onehot(labels) + s / k
    with s = label_smoothing
    """
    check_labels(logits, labels, label_smoothing)
    n, k = logits.shape
    check_range(labels, k)
    labels = labels.copy()  # a loader may fill the same array again before backward
    shifted = logits - logits.max(axis=1, keepdims=True)  # exp never overflows
    exponentials = xp.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - (1 - label_smoothing) * shifted[xp.arange(n), labels]
    if label_smoothing:
        losses -= label_smoothing * shifted.mean(axis=1)
    loss, spread = reduce_losses(reduction, losses)

    def dlogits(dy):
        # softmax - target: the softmax's Jacobian and the log's derivative cancel to this
        gradient = exponentials / total
        gradient[xp.arange(n), labels] -= 1 - label_smoothing
        if label_smoothing:
            gradient -= label_smoothing / k
        gradient *= spread(dy).reshape(-1, 1)
        return gradient

    return loss, dlogits, None


@softmax_cross_entropy.samples
def _(draw):
    n, k = draw.sizes(2)
    yield draw.case(
        draw.normal(n, k),
        draw.labels(n, k),
        label_smoothing=draw.choice([0.0, 0.1]),
        reduction=draw.choice(["mean", "sum", "none"]),
    )


@op
def soft_cross_entropy(xp, logits: Float, targets: Float, *, reduction="mean"):
    """The cross-entropy of softmax(logits) to probabilities: (n, k), (n, k) -> () or (n,).

    -sum_k targets_k log softmax(logits)_k: the targets of a teacher (Hinton et al., 2015), say.

    dlogits = spread(dy) * (p * sum(targets, 1) - targets)
    dtargets = -spread(dy) * log(p)
    with p = softmax(logits)
    """
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise ValueError("logits and targets must both be (n, classes)")
    shifted = logits - logits.max(axis=1, keepdims=True)  # exp never overflows
    log_softmax = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    loss, spread = reduce_losses(reduction, -(targets * log_softmax).sum(axis=1))

    def dlogits(dy):
        gradient = xp.exp(log_softmax) * targets.sum(axis=1, keepdims=True) - targets
        return gradient * spread(dy).reshape(-1, 1)

    def dtargets(dy):
        return -log_softmax * spread(dy).reshape(-1, 1)

    return loss, dlogits, dtargets


@soft_cross_entropy.samples
def _(draw):
    n, k = draw.sizes(2)
    reduction = draw.choice(["mean", "sum", "none"])
    yield draw.case(draw.normal(n, k), draw.positive(n, k), reduction=reduction)


@op
def mse_loss(xp, prediction: Float, target: Float, *, reduction="mean"):
    """The squared error (prediction - target)^2: two tensors of one shape -> () or that shape.

    dprediction = 2 * spread(dy) * (prediction - target)
    dtarget = 2 * spread(dy) * (target - prediction)
    """
    if getattr(prediction, "shape", None) != getattr(target, "shape", None):
        raise ValueError("prediction and target must have one shape")
    loss, spread = reduce_losses(reduction, (prediction - target) ** 2)

    def dprediction(dy):
        return 2 * spread(dy) * (prediction - target)

    def dtarget(dy):
        return 2 * spread(dy) * (target - prediction)

    return loss, dprediction, dtarget


@mse_loss.samples
def _(draw):
    shape = draw.shape(smallest=1)
    reduction = draw.choice(["mean", "sum", "none"])
    yield draw.case(draw.normal(*shape), draw.normal(*shape), reduction=reduction)
