"""softmax_cross_entropy by numba: one pass over each row, where numpy makes a dozen small calls."""

import numpy as np

from tinygrad_nnfs.kernels import loops
from tinygrad_nnfs.ops.loss import check_labels, check_range, softmax_cross_entropy


def _reduces(logits, labels, *, reduction="mean", **_):
    return (
        loops.numba_is_installed()
        and reduction in ("mean", "sum")
        and logits.dtype in loops.COMPILED
        and logits.flags.c_contiguous
    )


@softmax_cross_entropy.on(np, when=_reduces)
def softmax_cross_entropy_compiled(xp, logits, labels, *, label_smoothing=0.0, reduction="mean"):
    check_labels(logits, labels, label_smoothing)
    compiled, dtype = loops.best(), logits.dtype
    n, k = logits.shape
    softmax = np.empty((n, k), dtype)
    # a copy: the kernel writes where they say, and the caller may change them before backward
    classes = labels.astype(np.int64)
    loss = compiled.softmax_cross_entropy(logits, classes, label_smoothing, softmax)
    if loss != loss:
        check_range(labels, k)
    share = 1 / n if reduction == "mean" else 1.0

    def dlogits(dy):
        gradient = np.empty((n, k), dtype)
        scale = share * dy.item()
        compiled.softmax_cross_entropy_gradient(softmax, classes, label_smoothing, scale, gradient)
        return gradient

    return np.array(share * loss, dtype), dlogits, None
