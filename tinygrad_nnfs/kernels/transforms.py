"""The transforms of Winograd's convolution F(m, 3) of rows, m outputs at a time.

A convolution of m + 2 inputs d and 3 weights g is a product of polynomials, turned around, and
polynomials are multiplied by their values at enough points (Toom and Cook; Lavin and Gray, 2016):
values of the inputs times values of the weights, point by point, give the m outputs

    y = A^T ((B^T d) * (G g))

B^T, G and A have a row for each of the m + 1 points and one for infinity. Small numbers and their
inverses as points keep the rounding errors small.
"""

import functools

import numpy as np

POINTS = np.array([0, 1, -1, 2, -2, -1 / 2])  # enough for m = 5


@functools.cache
def matrices(m):
    """B^T, G and A of F(m, 3), by name."""
    points = POINTS[: m + 1]
    inputs, weights, outputs = np.zeros((m + 2, m + 2)), np.zeros((m + 2, 3)), np.zeros((m + 2, m))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        inputs[i, :-1] = np.poly(others)[::-1]  # the polynomial that is 0 at all other points
        weights[i] = point ** np.arange(3) / np.prod(point - others)
        outputs[i] = point ** np.arange(m)
    inputs[-1] = np.poly(points)[::-1]
    weights[-1, -1] = outputs[-1, -1] = 1
    return {"B^T": inputs, "G": weights, "A": outputs}


def tile_size(oh, ow):
    """m, the outputs of a tile in a row, and the number of tiles of an image."""
    four, five = (-(-oh // m) * -(-ow // m) for m in (4, 5))
    # the transforms of tiles of 5x5 take longer, and are worth it for a tenth of the products
    return (5, five) if 49 * five < 0.9 * 36 * four else (4, four)
