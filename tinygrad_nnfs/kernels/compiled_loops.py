"""The functions of `loops`, compiled by numba: one pass over memory instead of several."""

import numba

kernel = numba.njit(nogil=True, error_model="numpy", cache=True)


@kernel
def leaky_relu(x, slope, y):
    slope = x.dtype.type(slope)
    for i in range(x.size):
        y[i] = x[i] if x[i] > 0 else slope * x[i]


@kernel
def leaky_relu_gradient(signed, dy, slope, dx):
    slope = dy.dtype.type(slope)
    for i in range(dy.size):
        dx[i] = dy[i] if signed[i] > 0 else slope * dy[i]


@kernel
def keep_scaled(x, keep, scale, y):
    scale = x.dtype.type(scale)
    for i in range(x.size):
        y[i] = scale * x[i] if keep[i] else x.dtype.type(0)


@kernel
def momentum_step(theta, velocity, gradient, lr, momentum, weight_decay):
    lr, momentum = theta.dtype.type(lr), theta.dtype.type(momentum)
    decay = theta.dtype.type(weight_decay)
    for i in range(theta.size):
        velocity[i] = momentum * velocity[i] + lr * (gradient[i] + decay * theta[i])
        theta[i] -= velocity[i]


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
                for l in range(channels):
                    upper = b[l] if b[l] > a[l] else a[l]
                    lower = d[l] if d[l] > c[l] else c[l]
                    largest[l] = lower if lower > upper else upper
                for l in range(channels):
                    upper = b[l] if b[l] > a[l] else a[l]
                    lower = d[l] if d[l] > c[l] else c[l]
                    which[l] = (2 + (d[l] > c[l])) if lower > upper else (b[l] > a[l])


@kernel
def max_pool_gradient(dy, winner, dx):
    n, h, w, channels = dy.shape
    for image in range(n):
        for i in range(h):
            for j in range(w):
                for k in range(4):
                    share = dx[image, 2 * i + k // 2, 2 * j + k % 2]
                    given, which = dy[image, i, j], winner[image, i, j]
                    for l in range(channels):
                        share[l] = given[l] if which[l] == k else 0
