"""conv2d of any kind on numpy: the op itself on a few images at a time.

So its columns, which are kh kw times the images, never exist all at once, and the pieces can go to
several threads.
"""

from typing import Any

import numpy as np

from tinygrad_nnfs.kernels import memory, threads
from tinygrad_nnfs.ops.convolution import Geometry, conv2d

SIZE = 2**19  # elements of the columns of a piece, in whole images: as in shared_columns


def _applies(x, weight, bias=None, **_):
    return x.ndim == weight.ndim == 4 and len(x) > 1 and threads.is_large(x.size)


@conv2d.on(np, when=_applies)
def conv2d_in_pieces(
    xp,
    x,
    weight,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    precision="fast",
):
    geometry = Geometry(x, weight, bias, stride, padding, dilation, groups)
    oh, ow = geometry.output_size
    columns = x.shape[1] * weight[0, 0].size * oh * ow
    images = threads.pieces(len(x), max(1, SIZE // columns))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = memory.empty((len(x), geometry.outputs, oh, ow), x.dtype)
    weight = np.ascontiguousarray(weight)  # or each piece would make such a copy, and keep it
    rules = [None] * len(images)

    def forward(i):
        y[images[i]], *rules[i] = conv2d.reference(
            np, x[images[i]], weight, bias, **options, precision=precision
        )

    threads.run(forward, range(len(images)))

    def dx(dy):
        gradient = memory.empty(x.shape, dy.dtype)

        def backward(i):
            gradient[images[i]] = rules[i][0](dy[images[i]])

        threads.run(backward, range(len(images)))
        return gradient

    def total(rule):
        def add(dy):
            parts: list[Any] = [None] * len(images)

            def backward(i):
                parts[i] = rules[i][rule](dy[images[i]])

            threads.run(backward, range(len(images)))
            return np.sum(parts, axis=0)

        return add

    return y, dx, total(1), None if bias is None else total(2)
