"""The four transforms of Winograd convolution F(4x4, 3x3), compiled by numba.

Lavin and Gray, 2016, with the interpolation points 0, 1, -1, 2, -2 and infinity. A tile of 4x4
outputs is computed from 6x6 inputs, and tiles stand 4 pixels apart; beyond the image are zeros.
Images (n, h, w, c) and tiles (36, n th tw, c) come as flat arrays.

A transform is one of 6 (or 4) numbers, done along the columns of a tile and then along its rows,
for LANES channels at a time. The compiler makes one vector instruction of a loop over LANES only if
it sees that what is written is not what is read, so the arithmetic goes from one small buffer to
another, at constant distances, and `_copy` is all that touches images and tiles.
"""

import numba
import numpy as np

LANES = 16  # channels side by side: the float32 numbers of one AVX-512 register
STRETCH = 16  # tiles of a row that are transformed together
LINE = (4 * STRETCH + 2) * LANES  # from one row of their pixels to the next

f32 = np.float32
kernel = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
inline = numba.njit(inline="always")


@inline
def _bt(d0, d1, d2, d3, d4, d5):
    """B^T d: what a row (or column) of 6 inputs is evaluated at."""
    e, o = d4 - f32(4) * d2, d3 - f32(4) * d1
    e2, o2 = d4 - d2, f32(2) * (d3 - d1)
    first, last = f32(4) * d0 - f32(5) * d2 + d4, f32(4) * d1 - f32(5) * d3 + d5
    return first, e + o, e - o, e2 + o2, e2 - o2, last


@inline
def _b(v0, v1, v2, v3, v4, v5):
    """B v, the transpose of _bt."""
    s, d, s2, d2 = v1 + v2, v1 - v2, v3 + v4, f32(2) * (v3 - v4)
    return (
        f32(4) * v0,
        f32(4) * (v5 - d) - d2,
        -f32(5) * v0 - f32(4) * s - s2,
        d + d2 - f32(5) * v5,
        v0 + s + s2,
        v5,
    )


@inline
def _at(m0, m1, m2, m3, m4, m5):
    """A^T m: 4 outputs from 6 products."""
    s, d, s2, d2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s + s2, d + f32(2) * d2, s + f32(4) * s2, d + f32(8) * d2 + m5


@inline
def _a(y0, y1, y2, y3):
    """A y, the transpose of _at."""
    e, o = y0 + y2, y1 + y3
    e2, o2 = y0 + f32(4) * y2, f32(2) * y1 + f32(8) * y3
    return y0, e + o, e - o, e2 + o2, e2 - o2, y3


@inline
def _copy(source, target):
    for lane in range(LANES):
        target[lane] = source[lane]


@inline
def _six(f, source, s, target, t):
    """Six numbers at distances s in `source` to six at distances t in `target`, by f."""
    for lane in range(LANES):
        q0, q1, q2, q3, q4, q5 = f(
            source[lane],
            source[s + lane],
            source[2 * s + lane],
            source[3 * s + lane],
            source[4 * s + lane],
            source[5 * s + lane],
        )
        target[lane], target[t + lane], target[2 * t + lane] = q0, q1, q2
        target[3 * t + lane], target[4 * t + lane], target[5 * t + lane] = q3, q4, q5


@inline
def _at_pixel(shape, image, i, j):
    """Where the channels of a pixel begin; -1 beyond the image."""
    _, height, width, channels = shape
    inside = 0 <= i < height and 0 <= j < width
    return ((image * height + i) * width + j) * channels if inside else -1


@kernel
def transform_input(x, shape, padding, v):
    """V = B^T d B: images (n, h, w, c) -> tiles (36, n th tw, c)."""
    n, height, width, channels = shape
    ph, pw = padding
    th, tw = (height + 2 * ph + 1) // 4, (width + 2 * pw + 1) // 4
    plane = n * th * tw * channels  # from one of the 36 to the next
    column = np.zeros(6 * LANES, np.float32)
    half = np.zeros(6 * LINE, np.float32)  # B^T d, of the pixels under a stretch of tiles
    tile = np.zeros(36 * LANES, np.float32)
    zeros = np.zeros(LANES, np.float32)
    for image in range(n):
        for i in range(th):
            for first in range(0, tw, STRETCH):
                tiles = min(STRETCH, tw - first)
                for b in range(0, channels, LANES):
                    for j in range(4 * tiles + 2):
                        for k in range(6):
                            at = _at_pixel(shape, image, 4 * i + k - ph, 4 * first + j - pw)
                            _copy(x[at + b :] if at >= 0 else zeros, column[k * LANES :])
                        _six(_bt, column, LANES, half[j * LANES :], LINE)
                    for t in range(tiles):
                        for k in range(6):
                            source = half[k * LINE + 4 * t * LANES :]
                            _six(_bt, source, LANES, tile[6 * k * LANES :], LANES)
                        at = ((image * th + i) * tw + first + t) * channels + b
                        for p in range(36):
                            _copy(tile[p * LANES :], v[p * plane + at :])


@kernel
def transform_input_adjoint(v, shape, padding, dx):
    """The transpose of transform_input: tiles (36, n th tw, c) -> images (n, h, w, c)."""
    n, height, width, channels = shape
    ph, pw = padding
    th, tw = (height + 2 * ph + 1) // 4, (width + 2 * pw + 1) // 4
    plane = n * th * tw * channels
    column = np.zeros(6 * LANES, np.float32)
    half = np.zeros(6 * LINE, np.float32)
    tile = np.zeros(36 * LANES, np.float32)
    part = np.zeros(6 * LANES, np.float32)
    dx[:] = 0  # tiles overlap: their shares of a pixel are added up
    for image in range(n):
        for i in range(th):
            for first in range(0, tw, STRETCH):
                tiles = min(STRETCH, tw - first)
                for b in range(0, channels, LANES):
                    half[:] = 0
                    for t in range(tiles):
                        at = ((image * th + i) * tw + first + t) * channels + b
                        for p in range(36):
                            _copy(v[p * plane + at :], tile[p * LANES :])
                        for k in range(6):
                            _six(_b, tile[6 * k * LANES :], LANES, part, LANES)
                            target = half[k * LINE + 4 * t * LANES :]
                            for lane in range(6 * LANES):
                                target[lane] += part[lane]
                    for j in range(4 * tiles + 2):
                        _six(_b, half[j * LANES :], LINE, column, LANES)
                        for k in range(6):
                            at = _at_pixel(shape, image, 4 * i + k - ph, 4 * first + j - pw)
                            if at >= 0:
                                target, source = dx[at + b :], column[k * LANES :]
                                for lane in range(LANES):
                                    target[lane] += source[lane]


@kernel
def transform_output(m, bias, y, shape):
    """y = A^T m A + bias: tiles (36, n th tw, o) -> images (n, oh, ow, o)."""
    n, height, width, channels = shape
    th, tw = (height + 3) // 4, (width + 3) // 4
    plane = n * th * tw * channels
    tile = np.zeros(36 * LANES, np.float32)
    half = np.zeros(24 * LANES, np.float32)  # A^T m: 4 rows of 6
    outputs = np.zeros(16 * LANES, np.float32)
    shift = np.zeros(LANES, np.float32)
    for image in range(n):
        for i in range(th):
            for t in range(tw):
                for b in range(0, channels, LANES):
                    at = ((image * th + i) * tw + t) * channels + b
                    for p in range(36):
                        _copy(m[p * plane + at :], tile[p * LANES :])
                    _copy(bias[b:], shift)
                    for k in range(6):
                        s, h = tile[k * LANES :], half[k * LANES :]
                        for lane in range(LANES):
                            y0, y1, y2, y3 = _at(
                                s[lane],
                                s[6 * LANES + lane],
                                s[12 * LANES + lane],
                                s[18 * LANES + lane],
                                s[24 * LANES + lane],
                                s[30 * LANES + lane],
                            )
                            h[lane], h[6 * LANES + lane] = y0, y1
                            h[12 * LANES + lane], h[18 * LANES + lane] = y2, y3
                    for k in range(4):
                        h, o = half[6 * k * LANES :], outputs[4 * k * LANES :]
                        for lane in range(LANES):
                            y0, y1, y2, y3 = _at(
                                h[lane],
                                h[LANES + lane],
                                h[2 * LANES + lane],
                                h[3 * LANES + lane],
                                h[4 * LANES + lane],
                                h[5 * LANES + lane],
                            )
                            o[lane], o[LANES + lane] = y0 + shift[lane], y1 + shift[lane]
                            o[2 * LANES + lane], o[3 * LANES + lane] = (
                                y2 + shift[lane],
                                y3 + shift[lane],
                            )
                    for p in range(16):
                        at = _at_pixel(shape, image, 4 * i + p // 4, 4 * t + p % 4)
                        if at >= 0:
                            _copy(outputs[p * LANES :], y[at + b :])


@kernel
def transform_output_adjoint(dy, shape, m):
    """The transpose of transform_output: images (n, oh, ow, o) -> tiles (36, n th tw, o)."""
    n, height, width, channels = shape
    th, tw = (height + 3) // 4, (width + 3) // 4
    plane = n * th * tw * channels
    outputs = np.zeros(16 * LANES, np.float32)
    half = np.zeros(24 * LANES, np.float32)  # dy A^T: 4 rows of 6
    tile = np.zeros(36 * LANES, np.float32)
    zeros = np.zeros(LANES, np.float32)
    for image in range(n):
        for i in range(th):
            for t in range(tw):
                for b in range(0, channels, LANES):
                    for p in range(16):
                        at = _at_pixel(shape, image, 4 * i + p // 4, 4 * t + p % 4)
                        _copy(dy[at + b :] if at >= 0 else zeros, outputs[p * LANES :])
                    for k in range(4):
                        o, h = outputs[4 * k * LANES :], half[6 * k * LANES :]
                        for lane in range(LANES):
                            q0, q1, q2, q3, q4, q5 = _a(
                                o[lane], o[LANES + lane], o[2 * LANES + lane], o[3 * LANES + lane]
                            )
                            h[lane], h[LANES + lane], h[2 * LANES + lane] = q0, q1, q2
                            h[3 * LANES + lane], h[4 * LANES + lane], h[5 * LANES + lane] = (
                                q3,
                                q4,
                                q5,
                            )
                    for k in range(6):
                        h, s = half[k * LANES :], tile[k * LANES :]
                        for lane in range(LANES):
                            q0, q1, q2, q3, q4, q5 = _a(
                                h[lane],
                                h[6 * LANES + lane],
                                h[12 * LANES + lane],
                                h[18 * LANES + lane],
                            )
                            s[lane], s[6 * LANES + lane], s[12 * LANES + lane] = q0, q1, q2
                            s[18 * LANES + lane], s[24 * LANES + lane], s[30 * LANES + lane] = (
                                q3,
                                q4,
                                q5,
                            )
                    at = ((image * th + i) * tw + t) * channels + b
                    for p in range(36):
                        _copy(tile[p * LANES :], m[p * plane + at :])
