"""The two networks in JAX: see contenders.py.

Images are (n, h, w, c), in which XLA convolves faster on a processor. Dropout's random numbers are
jax.random's default ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Step
from benchmarks.random_data import LR, batches, images, labels

Parameters = list[tuple[Any, Any]]  # (weight, bias) of each layer

KERNELS = {"mlp": [], "cnn": [(3, 3, 1, 32), (3, 3, 32, 64), (3, 3, 64, 128)]}
DENSE = {"mlp": [(784, 128), (128, 64), (64, 10)], "cnn": [(3200, 512), (512, 10)]}


def _parameters(model: str) -> Parameters:
    rng = np.random.default_rng(0)

    def weight(shape: tuple[int, ...]) -> Any:
        scale = np.sqrt(2 / np.prod(shape[:-1]))  # He's
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    shapes = [*KERNELS[model], *DENSE[model]]
    return [(weight(shape), jnp.zeros(shape[-1], jnp.float32)) for shape in shapes]


def _dropout(x: Any, p: float, key: Any) -> Any:
    """`key` is None in evaluation."""
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)


def _convolution(x: Any, weight: Any, bias: Any) -> Any:
    y = jax.lax.conv_general_dilated(
        x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.leaky_relu(y + bias, 0.01)


def _max_pool(x: Any) -> Any:
    n, h, w, c = x.shape
    # as fast as reduce_window, or faster
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _mlp(parameters: Parameters, x: Any, key: Any) -> Any:
    *hidden, (weight, bias) = parameters
    keys = [None] * 2 if key is None else jax.random.split(key, 2)
    x = x.reshape(len(x), -1)
    for (w, b), k in zip(hidden, keys, strict=True):
        x = _dropout(jax.nn.leaky_relu(x @ w + b, 0.01), 0.2, k)
    return x @ weight + bias


def _cnn(parameters: Parameters, x: Any, key: Any) -> Any:
    first, second, third, (w4, b4), (w5, b5) = parameters
    keys = [None] * 3 if key is None else jax.random.split(key, 3)
    x = _convolution(x, *first)
    x = _dropout(_max_pool(_convolution(x, *second)), 0.25, keys[0])
    x = _dropout(_max_pool(_convolution(x, *third)), 0.25, keys[1])
    x = x.reshape(len(x), -1)
    x = _dropout(jax.nn.leaky_relu(x @ w4 + b4, 0.01), 0.5, keys[2])
    return x @ w5 + b5


NETWORKS = {"mlp": _mlp, "cnn": _cnn}


def _images(n: int) -> Any:
    return jnp.asarray(images(n).transpose(0, 2, 3, 1))


def trainer(model: str, momentum: float) -> Callable[[int], Step]:
    network = NETWORKS[model]

    def loss_of(parameters: Parameters, x: Any, y: Any, key: Any) -> Any:
        log_softmax = jax.nn.log_softmax(network(parameters, x, key))
        return -jnp.take_along_axis(log_softmax, y[:, None], axis=1).mean()

    # what is donated is updated in place
    @partial(jax.jit, donate_argnames=("parameters", "velocity", "key"))
    def update(parameters: Parameters, velocity: Parameters, key: Any, x: Any, y: Any) -> Any:
        key, dropout_key = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y, dropout_key)
        if momentum:
            gradients = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradients)
        parameters = jax.tree.map(lambda p, v: p - LR * v, parameters, gradients)
        return parameters, gradients if momentum else velocity, key, loss

    parameters = _parameters(model)
    velocity = jax.tree.map(jnp.zeros_like, parameters) if momentum else []
    state = [parameters, velocity, jax.random.key(0)]

    def on_batches_of(size: int) -> Step:
        x, y = _images(size), jnp.asarray(labels(size))

        def step() -> Any:
            *changed, loss = update(*state, x, y)
            state[:] = jax.block_until_ready(changed)
            return loss

        return step

    return on_batches_of


def predictor(model: str) -> Callable[[int, int], Step]:
    parameters = _parameters(model)
    network = jax.jit(partial(NETWORKS[model], key=None))

    def on_images(n: int, batch_size: int) -> Step:
        x = _images(n)
        parts = [x[part] for part in batches(n, batch_size)]

        def predict() -> Any:
            return jax.block_until_ready([network(parameters, part) for part in parts])

        return predict

    return on_images
