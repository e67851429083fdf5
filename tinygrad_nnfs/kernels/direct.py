"""conv2d with few taps in float32, such as the first layer's, by its definition.

Where a window has a few elements only, laying it out as a column takes as long as the convolution.
It pays for the gradients alone, some rows of outputs at a time.
"""

import numpy as np

from tinygrad_nnfs.kernels import helpers, loops, memory, threads
from tinygrad_nnfs.kernels.shared_columns import channels_first, channels_last, pad
from tinygrad_nnfs.ops.convolution import Geometry, check_precision, conv2d
from tinygrad_nnfs.registry import once

TAPS = 32  # at most: kh kw c
SIZE = 2**18  # elements of the outputs of a piece, in whole images


def _applies(x, weight, bias=None, *, groups=1, **_):
    return (
        x.dtype == np.float32
        and x.ndim == weight.ndim == 4
        and groups == 1
        and len(weight) % loops.LANES == 0
        and 0 < weight.size <= TAPS * len(weight)
        and x.size > 0
        and loops.numba_is_installed()
    )


@conv2d.on(np, when=_applies)
def conv2d_direct(
    xp, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, precision="fast"
):
    from tinygrad_nnfs.kernels import compiled_direct as compiled  # numba: only when used

    check_precision(precision)
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    stride, (ph, pw) = geometry.stride, geometry.padding
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    y = memory.empty((n, *geometry.output_size, o), np.float32)
    step = threads.piece_size(max(1, n * SIZE // y.size))
    pieces = -(-n // step)

    images = channels_last(x)
    kernels = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, o)
    shift = np.zeros(o, np.float32) if bias is None else np.ascontiguousarray(bias)
    down, right = np.arange(kh) * geometry.dilation[0], np.arange(kw) * geometry.dilation[1]
    pixels = down[:, None] * (w + 2 * pw) + right
    taps = (pixels[:, :, None] * c + np.arange(c)).reshape(-1)

    def padded():
        return pad(images, geometry.padding)

    compiled.forward(helpers.team(y.size), step, padded(), taps, stride, kernels, shift, y)

    def dx(dy):
        dy = channels_last(dy)
        filled = loops.filled_up(kernels.T)
        gradient = memory.empty((n, h + 2 * ph, w + 2 * pw, c), np.float32)
        compiled.gradient_of_images(helpers.team(dy.size), step, dy, taps, stride, filled, gradient)
        return channels_first(gradient[:, ph : ph + h, pw : pw + w])

    @once
    def gradients(dy):
        dy = channels_last(dy)
        dweights = np.empty((pieces, len(taps), o), np.float32)
        dbiases = np.empty((pieces, o), np.float32)
        compiled.gradients_of_weight_and_bias(
            helpers.team(dy.size), step, padded(), taps, stride, dy, dweights, dbiases
        )
        return dweights, dbiases

    def dweight(dy):
        gradient = gradients(dy)[0].sum(axis=0).reshape(kh, kw, c, o)
        return np.ascontiguousarray(gradient.transpose(3, 2, 0, 1))

    def dbias(dy):
        return gradients(dy)[1].sum(axis=0)

    return channels_first(y), dx, dweight, None if bias is None else dbias
