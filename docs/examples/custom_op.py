"""A custom op in 15 lines, checked, and trained with.

The op is snake (Ziyin et al., 2020), whose frequency `a` is learnt: it has two inputs, so it has
two rules. A network with it goes on with a periodic signal where one with ReLU does not.
"""

import numpy as np

from tinygrad_nnfs import Parameter, nn, op, ops, optim
from tinygrad_nnfs.checking import check_op
from tinygrad_nnfs.registry import unbroadcast


@op
def snake(xp, x, a):
    """x + sin(a x)^2 / a: (n, c), (c) -> (n, c)."""
    s = xp.sin(a * x)

    def dx(dy):
        return dy * (1 + xp.sin(2 * a * x))

    def da(dy):
        return unbroadcast(dy * (x * xp.sin(2 * a * x) - s * s / a) / a, a.shape)

    return x + s * s / a, dx, da


@snake.samples
def _(draw):
    n, c = draw.sizes(2)
    yield draw.case(draw.normal(n, c), draw.positive(c))


check_op(snake)  # finite differences, shapes, dtypes ...: or it says what is wrong
print("snake is right")


class Snake(nn.Module):
    def __init__(self, channels):
        self.a = Parameter(np.ones(channels, np.float32))

    def forward(self, x):
        return snake(x, self.a)


x = np.linspace(-6, 6, 200, dtype=np.float32)[:, None]
beyond = np.linspace(6, 9, 50, dtype=np.float32)[:, None]  # never seen in training

for activation in (nn.ReLU(), Snake(64)):
    network = nn.Sequential(nn.Linear(1, 64), activation, nn.Linear(64, 1))
    optimizer = optim.Adam(network.parameters(), lr=0.01)
    for _ in range(2000):
        loss = ops.mse_loss(network(x), np.sin(2 * x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = ops.mse_loss(network(beyond), np.sin(2 * beyond)).item()
    print(f"{type(activation).__name__:5} squared error {loss.item():.3f}, beyond {error:.3f}")
