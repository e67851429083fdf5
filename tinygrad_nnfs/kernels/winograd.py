"""conv2d of 3x3 kernels and stride 1 in float32, by Winograd's minimal filtering F(m x m, 3x3).

A tile of 4x4 outputs costs 36 products instead of 144, one of 5x5 costs 49 instead of 225. Input
tiles d, kernels g and products are

    V = B^T d B        U = G g G^T        M[p] = V[p] @ U[p], p = 0..35        y = A^T M A

where the product over channels is a matrix product for each of the 36 (or 49) p (Lavin and Gray,
"Fast algorithms for convolutional neural networks", 2016). The backward is the transpose of each
step, so that one transform of dy serves both gradients. The error is 3 to 9e-6 of the largest
value, where im2col's is 2 to 4e-7: hence float32 alone, and `precision="exact"` does without.
"""

import numpy as np

from tinygrad_nnfs.kernels import helpers, loops, memory, threads
from tinygrad_nnfs.kernels.shared_columns import channels_first, channels_last, is_plain
from tinygrad_nnfs.kernels.transforms import tile_size
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
    )


def _taps(weight):
    """(o, c, 3, 3) as (9, o c): kernels by place, in panels of LANES outputs, (o / 16, c, 16)."""
    o, c = weight.shape[:2]
    panels = weight.reshape(-1, loops.LANES, c, 3, 3).transpose(3, 4, 0, 2, 1)
    return np.ascontiguousarray(panels).reshape(9, o * c)


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
    m, tiles = tile_size(oh, ow)
    pieces = threads.equal_pieces(n, max(1, TILES // tiles))
    step = pieces[0].stop if pieces else 1
    work = n * tiles * (m + 2) ** 2 * max(o, c)

    def apart(size):
        """The shape of tiles or kernels: see compiled_winograd."""
        return (m + 2) ** 2, size + loops.LANES

    def transformed(weight):
        u = memory.empty(apart(o * c), np.float32)
        compiled.transform_kernels(helpers.team(u.size), m, _taps(weight), u)
        return u

    def scratch(name, team, size):
        _, workers, _ = team
        return threads.scratch(name, (workers, *apart(size)), np.float32)

    def tiles_of(team):
        """Of a piece of each worker: v and products."""
        return scratch("v", team, step * tiles * c), scratch("products", team, step * tiles * o)

    images = channels_last(x)
    shift = np.zeros(o, np.float32) if bias is None else np.ascontiguousarray(bias)
    y = memory.empty((n, oh, ow, o), np.float32)
    team = helpers.team(work)
    u = transformed(weight)
    compiled.forward(team, step, m, images, padding, u, shift, *tiles_of(team), y)
    del u

    @once
    def gradients(dy):
        """By images, by weight and bias of each piece, together: they share the transform of dy."""
        dy = channels_last(dy)
        dimages = memory.empty(images.shape, np.float32)
        dweights = memory.empty((len(pieces), 9, o * c), np.float32)
        dbiases = np.empty((len(pieces), o), np.float32)
        team = helpers.team(work)
        u, du = transformed(weight.swapaxes(0, 1)), scratch("du", team, o * c)
        compiled.backward(
            *(team, step, m, images, padding, u, dy),
            *(*tiles_of(team), du, dimages, dweights, dbiases),
        )
        return dimages, dweights, dbiases

    def dx(dy):
        return channels_first(gradients(dy)[0])

    def dweight(dy):
        return np.ascontiguousarray(gradients(dy)[1].sum(axis=0).T).reshape(weight.shape)

    def dbias(dy):
        return gradients(dy)[2].sum(axis=0)

    return channels_first(y), dx, dweight, None if bias is None else dbias
