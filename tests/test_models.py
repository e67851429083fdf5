"""The two networks, and how they are evaluated."""

import numpy as np
import pytest
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.evaluation import evaluate
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import Tensor, nn
from tinygrad_nnfs.data import load, scale


def parameter_shapes(network):
    return [p.shape for _, p in network.named_parameters()]


def test_mlp_is_the_missions():
    assert parameter_shapes(MLP()) == [(128, 784), (128,), (64, 128), (64,), (10, 64), (10,)]
    assert [layer.p for layer in MLP() if isinstance(layer, nn.Dropout)] == [0.2, 0.2]
    assert MLP()(np.zeros((3, 1, 28, 28), np.float32)).shape == (3, 10)


def test_cnn_is_the_missions():
    assert parameter_shapes(CNN()) == [
        *((32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 64, 3, 3), (128,)),
        *((512, 3200), (512,), (10, 512), (10,)),
    ]
    assert sum(p.size for p in CNN().parameters()) == 1_736_714
    assert [layer.p for layer in CNN() if isinstance(layer, nn.Dropout)] == [0.25, 0.25, 0.5]
    assert CNN()(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 10)


def torch_copy(network):
    """The same network in PyTorch, with the same weights, in float64."""
    torch = pytest.importorskip("torch")
    layers = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            layers.append(torch.nn.Linear(*reversed(layer.weight.shape)))
        elif isinstance(layer, nn.Conv2d):
            outputs, inputs, *kernel = layer.weight.shape
            layers.append(torch.nn.Conv2d(inputs, outputs, kernel))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(torch.nn.MaxPool2d(2))
        elif isinstance(layer, nn.LeakyReLU):
            layers.append(torch.nn.LeakyReLU(0.01))
        else:
            layers.append(
                torch.nn.Flatten() if isinstance(layer, nn.Flatten) else torch.nn.Identity()
            )
    copy = torch.nn.Sequential(*layers).double()
    copy.load_state_dict({k: torch.from_numpy(v) for k, v in network.state_dict().items()})
    return torch, copy


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_whole_networks_agree_with_torch(kind):
    network = kind().astype(np.float64).eval()
    torch, copy = torch_copy(network)
    random = np.random.default_rng(0)
    x, labels = random.random((4, 1, 28, 28)), random.integers(0, 10, 4)
    from tinygrad_nnfs.ops import softmax_cross_entropy

    loss = softmax_cross_entropy(network(Tensor(x)), labels)
    loss.backward()
    expected = torch.nn.functional.cross_entropy(
        copy(torch.from_numpy(x)), torch.from_numpy(labels)
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    theirs = dict(copy.named_parameters())
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(
            parameter.grad.numpy(), theirs[name].grad.numpy(), rtol=1e-8, atol=1e-12
        )


def test_evaluation_is_the_mean_over_all_images_and_records_nothing():
    data = load("digits")
    network = MLP()
    loss, accuracy = evaluate(network, data.test_images, data.test_labels)
    logits = network(Tensor(scale(data.test_images))).numpy().astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=1))
    expected = (log_sum - logits[np.arange(360), data.test_labels]).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == (logits.argmax(axis=1) == data.test_labels).mean()
    assert not network.training


def test_images_are_scaled():
    batch = scale(np.array([[[0, 255], [51, 102]]], np.uint8))
    assert batch.shape == (1, 1, 2, 2)
    np.testing.assert_allclose(batch.ravel(), [0, 1, 0.2, 0.4], rtol=1e-6)
    assert batch.dtype == np.float32
    for wrong in (batch, batch[0], [[[0]]], np.zeros((2, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"scale: expected images uint8 \(n, height, width\)"):
            scale(wrong)
