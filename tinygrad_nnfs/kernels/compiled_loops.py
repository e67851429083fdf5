"""The functions of `loops`, and some more, compiled by numba: one pass over memory, not several."""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiler import inline, kernel, kernel_in_any_order


@kernel
def leaky_relu(x, y, positive, slope):
    x, y, positive = x.ravel(), y.ravel(), positive.ravel()
    slope = x.dtype.type(slope)
    for i in range(x.size):
        positive[i] = x[i] > 0
        y[i] = x[i] if x[i] > 0 else slope * x[i]


@kernel
def leaky_relu_gradient(positive, dy, dx, slope):
    positive, dy, dx = positive.ravel(), dy.ravel(), dx.ravel()
    slope = dy.dtype.type(slope)
    for i in range(dy.size):
        dx[i] = dy[i] if positive[i] else slope * dy[i]


@kernel
def keep_scaled(x, keep, y, scale):
    x, keep, y = x.ravel(), keep.ravel(), y.ravel()
    scale = x.dtype.type(scale)
    for i in range(x.size):
        y[i] = x[i] * (scale if keep[i] else x.dtype.type(0))  # a NaN goes through, as elsewhere


@intrinsic
def _full_product(typingctx, a, b):
    """The 128 bits of a product of two uint64, as the upper and the lower 64."""

    def build(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(*[builder.zext(a, wide) for a in args])
        upper = builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))
        lower = builder.trunc(product, ir.IntType(64))
        return context.make_tuple(builder, signature.return_type, (upper, lower))

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), build


@inline
def _philox(key, block):
    """256 random bits, as four uint64: Philox4x64-10 of Salmon et al., 2011."""
    k0, k1 = key
    c0, c1, c2, c3 = block, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        upper0, lower0 = _full_product(np.uint64(0xD2E7470EE14C6C93), c0)
        upper1, lower1 = _full_product(np.uint64(0xCA5A826395121157), c2)
        c0, c1, c2, c3 = upper1 ^ c1 ^ k0, lower1, upper0 ^ c3 ^ k1, lower0
        k0 += np.uint64(0x9E3779B97F4A7C15)
        k1 += np.uint64(0xBB67AE8584CAA73B)
    return c0, c1, c2, c3


BLOCKS = 64  # of 16 elements, that get their random bits together


@kernel
def dropout(x, keep, y, key0, key1, least, scale, first, last):
    x, keep, y = x.ravel(), keep.ravel(), y.ravel()
    key = np.uint64(key0), np.uint64(key1)
    words = np.empty((BLOCKS, 4), np.uint64)
    bits = words.reshape(-1).view(np.uint16)
    for begin in range(first, last, bits.size):
        end = min(begin + bits.size, last)
        place = np.uint64(begin // 16 + 1)  # numpy's stream begins with 1
        _draw(key, place, words[: (end - begin + 15) // 16])
        _drop(x[begin:end], bits, np.int32(least), scale, keep[begin:end], y[begin:end])


# Functions of their own, for whose loops the compiler makes better instructions.


@kernel
def _draw(key, place, words):
    for block in range(len(words)):
        a, b, c, d = _philox(key, place + np.uint64(block))
        words[block, 0], words[block, 1], words[block, 2], words[block, 3] = a, b, c, d


@kernel
def _drop(x, bits, least, scale, keep, y):
    for i in range(x.size):
        keep[i] = np.int32(bits[i]) >= least
    keep_scaled(x, keep, y, scale)


@kernel
def add_row_product(row, matrix, total):
    whole = row.size // 4 * 4  # rows that are added four at a time: the total is read less often
    for i in range(0, whole, 4):
        a, b, c, d = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
        for k in range(total.size):
            total[k] += row[i] * a[k] + row[i + 1] * b[k] + row[i + 2] * c[k] + row[i + 3] * d[k]
    for i in range(whole, row.size):
        for k in range(total.size):
            total[k] += row[i] * matrix[i, k]


@kernel_in_any_order
def add_column_product(column, matrix, total):
    for i in range(total.size):
        row, value = matrix[i], total[i]
        for k in range(column.size):
            value += row[k] * column[k]
        total[i] = value


@kernel
def outer(column, product, row):
    for i in range(column.size):
        target, factor = product[i], column[i]
        for j in range(row.size):
            target[j] = factor * row[j]


@kernel
def gradient_step(theta, gradient, lr, weight_decay):
    theta, gradient = theta.ravel(), gradient.ravel()
    lr, decay = theta.dtype.type(lr), theta.dtype.type(weight_decay)
    for i in range(theta.size):
        slope = gradient[i]
        if decay != 0:  # 0 times an infinite weight would be NaN
            slope += decay * theta[i]
        theta[i] -= lr * slope


@kernel
def momentum_step(theta, gradient, velocity, lr, weight_decay, momentum):
    theta, gradient, velocity = theta.ravel(), gradient.ravel(), velocity.ravel()
    lr, momentum = theta.dtype.type(lr), theta.dtype.type(momentum)
    decay = theta.dtype.type(weight_decay)
    for i in range(theta.size):
        slope = gradient[i]
        if decay != 0:
            slope += decay * theta[i]
        velocity[i] = momentum * velocity[i] + lr * slope
        theta[i] -= velocity[i]


@inline
def _beats(b, a):
    return b > a or b != b  # a NaN is the largest of all


@kernel
def max_pool(x, y, winner):
    # several short loops: the compiler makes vector instructions of a loop only if there are few
    # arrays of which it must see that they do not overlap
    n, h, w, channels = y.shape
    for image in range(n):
        for i in range(h):
            for j in range(w):
                a, b = x[image, 2 * i, 2 * j], x[image, 2 * i, 2 * j + 1]
                c, d = x[image, 2 * i + 1, 2 * j], x[image, 2 * i + 1, 2 * j + 1]
                largest, which = y[image, i, j], winner[image, i, j]
                for lane in range(channels):
                    upper = b[lane] if _beats(b[lane], a[lane]) else a[lane]
                    lower = d[lane] if _beats(d[lane], c[lane]) else c[lane]
                    largest[lane] = lower if _beats(lower, upper) else upper
                for lane in range(channels):
                    right_above, right_below = _beats(b[lane], a[lane]), _beats(d[lane], c[lane])
                    upper = b[lane] if right_above else a[lane]
                    lower = d[lane] if right_below else c[lane]
                    which[lane] = 2 + right_below if _beats(lower, upper) else right_above


@kernel
def max_pool_gradient(dy, winner, dx):
    n, h, w, channels = dy.shape
    for image in range(n):
        for i in range(h):
            for j in range(w):
                for k in range(4):
                    share = dx[image, 2 * i + k // 2, 2 * j + k % 2]
                    given, which = dy[image, i, j], winner[image, i, j]
                    for lane in range(channels):
                        share[lane] = given[lane] if which[lane] == k else 0


@kernel
def softmax_cross_entropy(logits, labels, smoothing, softmax):
    """The softmax of each row of (n, k); the sum of the losses, NaN if a label is out of range."""
    n, k = logits.shape
    loss = 0.0
    for i in range(n):
        if not 0 <= labels[i] < k:
            return np.nan
        largest = logits[i].max()
        total, mean = 0.0, 0.0
        for j in range(k):
            shifted = logits[i, j] - largest  # exp never overflows
            mean += shifted / k
            softmax[i, j] = math.exp(shifted)
            total += softmax[i, j]
        label = logits[i, labels[i]] - largest
        loss += math.log(total) - (1 - smoothing) * label
        if smoothing:  # 0 * -inf, of a class that is masked, would be NaN
            loss -= smoothing * mean
        for j in range(k):
            softmax[i, j] /= total
    return loss


@kernel
def softmax_cross_entropy_gradient(softmax, labels, smoothing, scale, gradient):
    """scale (softmax - target)."""
    n, k = softmax.shape
    for i in range(n):
        for j in range(k):
            gradient[i, j] = scale * (softmax[i, j] - smoothing / k)
        gradient[i, labels[i]] -= scale * (1 - smoothing)
