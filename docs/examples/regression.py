"""The autograd core alone: a regression without nn and optim.

A Tensor, a loss, `backward`, and a step against the gradient. The model is the rise and fall of a
tide, height = mean + range sin(2 pi hours / period + phase), of which all four numbers are learnt.
"""

import math

import numpy as np

from tinygrad_nnfs import Tensor, op


@op
def sin(xp, x):
    """The sine: the library has no need of it, so here it is."""
    return xp.sin(x), lambda dy: dy * xp.cos(x)


random = np.random.default_rng(0)
hours = np.linspace(0, 48, 97)
heights = 3.1 + 1.7 * np.sin(2 * np.pi * hours / 12.4 + 0.6) + random.normal(0, 0.1, len(hours))

start = {"mean": 0.0, "range": 1.0, "period": 12.0, "phase": 0.0}
tide = {name: Tensor(np.array(value), requires_grad=True) for name, value in start.items()}

for step in range(1001):
    angle = 2 * math.pi * hours / tide["period"] + tide["phase"]
    predicted = tide["mean"] + tide["range"] * sin(angle)
    loss = ((predicted - heights) ** 2).mean()

    loss.backward()
    for number in tide.values():
        number.data -= 0.02 * number.grad.data  # arrays: the tape does not see this
        number.grad = None
    if step % 250 == 0:
        print(f"step {step:4}: mean squared error {loss.item():.4f}")

print(", ".join(f"{name} {number.item():.2f}" for name, number in tide.items()))
