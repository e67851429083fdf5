"""Draw how large the gradient of each layer is while a network learns.

    python docs/examples/gradient_norms.py gradient-norms.png

Two networks that differ in their activation: with sigmoids the gradient shrinks from layer to layer
on its way back, and the first layers hardly learn; with leaky ReLUs all layers get their share.
"""

import sys
from collections import defaultdict

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from tinygrad_nnfs import data, manual_seed, nn, optim
from tinygrad_nnfs.ops import softmax_cross_entropy

MEAN = 10  # steps that a point of a line is the mean of


class Sigmoid(nn.Module):
    def forward(self, x):
        return x.sigmoid()


def deep(activation):
    """Five dense layers: "1", "3", "5", "7" and "9"."""
    layers = [nn.Flatten(), nn.Linear(784, 64), activation()]
    for _ in range(3):
        layers += [nn.Linear(64, 64), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def gradient_norms(network, steps=400):
    """Train, and return the norm of each weight's gradient at each step, by the weight's name."""
    digits = data.load("digits")
    images, labels = data.scale(digits.train_images), digits.train_labels
    optimizer = optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    order = np.random.default_rng(0)
    norms = defaultdict(list)
    for _ in range(steps):
        batch = order.choice(len(images), 64)
        loss = softmax_cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                norms[name].append(np.linalg.norm(parameter.grad.numpy()))
        optimizer.step()
    return norms


def draw(path):
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, activation in ((left, Sigmoid), (right, nn.LeakyReLU)):
        manual_seed(0)
        norms = gradient_norms(deep(activation))
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(norms)))
        for (name, values), colour in zip(norms.items(), colours, strict=True):
            smooth = np.reshape(values, (-1, MEAN)).mean(axis=1)
            axes.semilogy(range(0, len(values), MEAN), smooth, label=name, color=colour)
        axes.set_title(activation.__name__)
        axes.set_xlabel("step")
    left.set_ylabel(f"norm of the gradient, mean of {MEAN} steps")
    right.legend(loc="lower left")
    figure.savefig(path)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "gradient-norms.png")
