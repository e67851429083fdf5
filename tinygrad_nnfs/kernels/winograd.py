"""conv2d of 3x3 kernels and stride 1 in float32, by Winograd's minimal filtering F(4x4, 3x3).

A tile of 4x4 outputs costs 36 products instead of 144. Input tiles d, kernels g and products are

    V = B^T d B        U = G g G^T        m[p] = V[p] @ U[p], p = 0..35        y = A^T m A

where the product over channels is a matrix product for each of the 36 p (Lavin and Gray, "Fast
algorithms for convolutional neural networks", 2016). The backward is the transpose of each step, so
that one transform of dy serves both gradients. The error is 3 to 6e-6 of the largest value, where
im2col's is 2 to 4e-7: hence float32 alone, and `precision="exact"` does without.
"""

import numpy as np

from tinygrad_nnfs.kernels import blas, loops, memory, threads
from tinygrad_nnfs.kernels.shared_columns import channels_first, channels_last, is_plain
from tinygrad_nnfs.ops.convolution import Geometry, conv2d
from tinygrad_nnfs.registry import once

TILES = 72  # that a piece of work holds, in whole images, so that it stays in a core's cache


def _applies(x, weight, bias=None, *, stride=1, dilation=1, groups=1, precision="fast", **_):
    return (
        precision == "fast"
        and x.dtype == np.float32
        and is_plain(x, weight, stride=stride, dilation=dilation, groups=groups)
        and weight.shape[2:] == (3, 3)
        and weight.shape[0] % loops.LANES == weight.shape[1] % loops.LANES == 0
        and loops.numba_is_installed()
        and blas.openblas() is not None
    )


def _taps(weight, *channels):
    """(o, c, 3, 3) as (9, o c), or (9, c o), in C order."""
    return np.ascontiguousarray(weight.transpose(2, 3, *channels)).reshape(9, -1)


@conv2d.on(np, when=_applies)
def conv2d_winograd(
    xp, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, precision="fast"
):
    from tinygrad_nnfs.kernels import compiled_winograd as compiled  # numba: only when used

    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    padding = geometry.padding
    n = len(x)
    o, c = weight.shape[:2]
    oh, ow = geometry.output_size
    tiles = -(-oh // 4) * -(-ow // 4)  # of one image
    pieces = threads.pieces(n, max(1, TILES // tiles))

    u = memory.empty((36, c, o), np.float32)
    compiled.transform_kernels(_taps(weight, 1, 0), u)
    images = channels_last(x)
    shift = np.zeros(o, np.float32) if bias is None else np.ascontiguousarray(bias)
    y = memory.empty((n, oh, ow, o), np.float32)

    def tiles_of(piece, name, channels):
        size = piece.stop - piece.start
        return threads.scratch(name, (36, size * tiles, channels), np.float32)

    def forward(piece):
        v, m = tiles_of(piece, "v", c), tiles_of(piece, "m", o)
        compiled.forward(images[piece], padding, u, shift, v, m, y[piece])

    threads.run(forward, pieces)

    @once
    def gradients(dy):
        """By images, by weight and bias of each piece, together: they share the transform of dy."""
        dy = channels_last(dy)
        dimages = memory.empty(images.shape, np.float32)
        dweights = memory.empty((len(pieces), 9, o * c), np.float32)
        dbiases = np.empty((len(pieces), o), np.float32)
        u = memory.empty((36, o, c), np.float32)
        compiled.transform_kernels(_taps(weight, 0, 1), u)

        def backward(i):
            piece = pieces[i]
            v, m = tiles_of(piece, "v", c), tiles_of(piece, "m", o)
            du = threads.scratch("du", (36, o, c), np.float32)
            compiled.backward(
                *(images[piece], padding, u, dy[piece], v, m, du),
                *(dimages[piece], dweights[i], dbiases[i]),
            )

        threads.run(backward, range(len(pieces)))
        return dimages, dweights, dbiases

    def dx(dy):
        return channels_first(gradients(dy)[0])

    def dweight(dy):
        return np.ascontiguousarray(gradients(dy)[1].sum(axis=0).T).reshape(weight.shape)

    def dbias(dy):
        return gradients(dy)[2].sum(axis=0)

    return channels_first(y), dx, dweight, None if bias is None else dbias
