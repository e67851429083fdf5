"""The functions of `loops`, and some more, compiled by numba: one pass over memory, not several."""

import math

import numba

kernel = numba.njit(nogil=True, error_model="numpy", cache=True)


@kernel
def leaky_relu(x, slope, y, positive):
    slope = x.dtype.type(slope)
    for i in range(x.size):
        positive[i] = x[i] > 0
        y[i] = x[i] if x[i] > 0 else slope * x[i]


@kernel
def leaky_relu_gradient(positive, dy, slope, dx):
    slope = dy.dtype.type(slope)
    for i in range(dy.size):
        dx[i] = dy[i] if positive[i] else slope * dy[i]


@kernel
def keep_scaled(x, keep, scale, y):
    scale = x.dtype.type(scale)
    for i in range(x.size):
        y[i] = scale * x[i] if keep[i] else x.dtype.type(0)


@kernel
def gradient_step(theta, gradient, lr, weight_decay):
    lr, decay = theta.dtype.type(lr), theta.dtype.type(weight_decay)
    for i in range(theta.size):
        theta[i] -= lr * (gradient[i] + decay * theta[i])


@kernel
def momentum_step(theta, gradient, velocity, lr, weight_decay, momentum):
    lr, momentum = theta.dtype.type(lr), theta.dtype.type(momentum)
    decay = theta.dtype.type(weight_decay)
    for i in range(theta.size):
        velocity[i] = momentum * velocity[i] + lr * (gradient[i] + decay * theta[i])
        theta[i] -= velocity[i]


@numba.njit(inline="always")
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
def softmax_cross_entropy(logits, labels, smoothing, softmax, losses):
    """The softmax of each row of (n, k), and its loss against the smoothed label."""
    n, k = logits.shape
    for i in range(n):
        largest = logits[i].max()
        total, mean = 0.0, 0.0
        for j in range(k):
            shifted = logits[i, j] - largest  # exp never overflows
            mean += shifted / k
            softmax[i, j] = math.exp(shifted)
            total += softmax[i, j]
        label = logits[i, labels[i]] - largest
        losses[i] = math.log(total) - (1 - smoothing) * label - smoothing * mean
        for j in range(k):
            softmax[i, j] /= total


@kernel
def softmax_cross_entropy_gradient(softmax, labels, smoothing, scale, gradient):
    """scale (softmax - target), row by row."""
    n, k = softmax.shape
    for i in range(n):
        for j in range(k):
            gradient[i, j] = scale[i] * (softmax[i, j] - smoothing / k)
        gradient[i, labels[i]] -= scale[i] * (1 - smoothing)
