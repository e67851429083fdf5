"""Other programs compute what we compute: onnxruntime from our files, PyTorch by state_dict."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad_nnfs.models.networks import NETWORKS, SHIPPED, load_model, shipped

from tinygrad_nnfs import Tensor, checkpoint, nn, ops, reference_kernels
from tinygrad_nnfs.data import load, scale
from tinygrad_nnfs.interop import InteropError, to_onnx

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def images(*shape):
    """In [0, 1), as the networks are made for."""
    return np.random.default_rng(0).random(shape, np.float32)


def assert_same(network, path, x):
    """onnxruntime's logits for images x are the network's, in eval mode."""
    (found,) = session(path).run(["logits"], {"images": x})
    expected = network.eval()(Tensor(x)).numpy()
    assert found.shape == expected.shape
    scale = max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_in_onnxruntime(tmp_path, name):
    network = NETWORKS[name]()
    for parameter in network.parameters():
        parameter.data += 0.01  # biases begin as zeros, which would hide where they are added
    path = tmp_path / "model.onnx"
    shapes = to_onnx(network, path)
    assert shapes == {"images": ("batch", 1, 28, 28), "logits": ("batch", 10)}
    assert all(module.training for module in network.modules())  # left as it was
    for batch in (1, 2, 33):
        assert_same(network, path, images(batch, 1, 28, 28))
    (x,), (y,) = session(path).get_inputs(), session(path).get_outputs()
    assert (x.name, x.type, x.shape) == ("images", "tensor(float)", ["batch", 1, 28, 28])
    assert (y.name, y.type, y.shape) == ("logits", "tensor(float)", ["batch", 10])

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    first = path.read_bytes()
    to_onnx(network.eval(), path)  # evaluation and training make the same file
    assert path.read_bytes() == first


def test_the_shipped_model_in_onnxruntime(tmp_path):
    """Trained weights and real images make larger logits than new networks and noise."""
    network, _ = load_model(shipped(SHIPPED))
    path = tmp_path / "model.onnx"
    to_onnx(network, path)
    x = scale(load("digits").test_images)
    assert_same(network, path, x)
    (found,) = session(path).run(["logits"], {"images": x})
    expected = ops.softmax(network(Tensor(x))).numpy()
    np.testing.assert_allclose(ops.softmax(Tensor(found)).numpy(), expected, rtol=0, atol=1e-5)
    with reference_kernels():  # by plain convolutions the logits, too
        expected = network(Tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def batch_norm(channels, eps=1e-5):
    """With statistics and weights that are not 0 and 1."""
    layer = nn.BatchNorm2d(channels, eps=eps)
    random = np.random.default_rng(1)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        tensor.data[...] = random.uniform(0.5, 2, channels)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 3),
        nn.Linear(7, 3, bias=False),
        nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2),
        nn.Conv2d(2, 3, 1, bias=False),
        nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d((2, 1)),
        batch_norm(2, eps=0.1),
        nn.ReLU(),
        nn.LeakyReLU(0.3),
        nn.LeakyReLU(-2.0),
        nn.Dropout(0.5),
        nn.Flatten(),
    ],
    ids=repr,
)
def test_each_layer_in_onnxruntime(tmp_path, layer):
    network = nn.Sequential(layer)
    before = network.state_dict()
    to_onnx(network, tmp_path / "model.onnx", (2, 6, 7))
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, before[name])  # nothing learns from an export
    assert_same(network, tmp_path / "model.onnx", images(2, 2, 6, 7) - 0.5)


@st.composite
def networks(draw):
    """The first layers of a random network, whether they are flattened, and the images' shape."""
    size = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))

    def padding(kernel):  # of a pool: half of the kernel, at most
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        return draw(st.tuples(st.integers(0, height // 2), st.integers(0, width // 2)))

    channels = first = draw(st.sampled_from([1, 2, 4]))
    shape = draw(st.tuples(st.integers(12, 20), st.integers(12, 20)))
    layers = []
    kinds = st.sampled_from(["conv", "max", "average", "norm"])
    for kind in draw(st.lists(kinds, min_size=1, max_size=3)):
        kernel = draw(size)
        stride = draw(st.sampled_from([1, 2, (1, 2)]))
        if kind == "conv":
            groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
            options = {
                "stride": stride,
                "padding": draw(st.sampled_from([0, 2, (1, 0)])),
                "dilation": draw(st.sampled_from([1, 2, (1, 2)])),
                "bias": draw(st.booleans()),
            }
            outputs = 2 * draw(st.integers(1, 2))
            layers.append(nn.Conv2d(channels, outputs, kernel, groups=groups, **options))
            channels = outputs
        elif kind == "norm":
            layers.append(batch_norm(channels))
        else:
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            stride = draw(st.sampled_from([None, stride]))
            layers.append(pool(kernel, stride, padding(kernel)))
        activation = draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.Dropout(0.5), None]))
        layers += [activation] if activation else []
    if draw(st.booleans()):
        layers = [nn.Sequential(*layers)]
    return layers, draw(st.booleans()), (first, *shape)


@given(networks(), st.integers(1, 3))
def test_random_networks_in_onnxruntime(tmp_path_factory, drawn, batch):
    layers, flat, shape = drawn
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    try:
        features = nn.Sequential(*layers).eval()(images(1, *shape)).shape
    except ValueError:  # too many strides
        return
    layers = [*layers, nn.Flatten()] if flat else layers
    inputs = int(np.prod(features)) if flat else features[-1]
    network = nn.Sequential(*layers, nn.Linear(inputs, 3, bias=flat))
    to_onnx(network, path, shape)
    assert_same(network, path, images(batch, *shape) - 0.5)


def test_nothing_but_dropout(tmp_path):
    path = tmp_path / "model.onnx"
    network = nn.Sequential(nn.Dropout(0.5))
    assert to_onnx(network, path, (3,)) == {"images": ("batch", 3), "logits": ("batch", 3)}
    assert_same(network, path, images(2, 3))


def test_what_a_sequential_does_not_call_is_not_exported(tmp_path):
    path = tmp_path / "model.onnx"
    network = nn.Sequential(nn.Linear(3, 2))
    network.others = [nn.ReLU()]
    to_onnx(network, path, (3,))
    assert_same(network, path, images(2, 3) - 0.5)


def test_doubles_become_float32(tmp_path):
    path = tmp_path / "model.onnx"
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).astype("float64")
    to_onnx(network, path, (1, 2, 2))
    assert_same(network.astype("float32"), path, images(2, 1, 2, 2))


class Doubled(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


class Swish(nn.ReLU):
    def forward(self, x):
        return x * ops.sigmoid(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(784)), "layer 1 is a LayerNorm, which cannot be"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(Swish())), r"layer 1\.0 is a Swish, which"),
        (nn.Sequential(Doubled()), "a Doubled cannot be exported to ONNX: its forward"),
        (nn.Linear(784, 10), "a Linear cannot be exported to ONNX: its forward"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), r"\(1, 28, 28\) do not fit the network: .*1 channels"),
        (nn.Sequential(nn.Linear(27, 2)), r"\(1, 28, 28\) do not fit the network: .*\(..., 27\)"),
    ],
)
def test_what_cannot_be_exported(tmp_path, network, message):
    with pytest.raises(InteropError, match=message) as error:
        to_onnx(network, tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "model.onnx"):
        with pytest.raises(InteropError, match=r"cannot be written: (Is a dir|No such file)"):
            to_onnx(NETWORKS["mlp"](), path)


# -- PyTorch ---------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def in_torch(network, torch):
    """The same layers of PyTorch, with weights of its own."""
    made = {
        nn.Linear: lambda layer: torch.nn.Linear(*reversed(layer.weight.shape)),
        nn.Conv2d: lambda layer: torch.nn.Conv2d(
            layer.weight.shape[1], layer.weight.shape[0], layer.weight.shape[2:]
        ),
        nn.MaxPool2d: lambda layer: torch.nn.MaxPool2d(layer.kernel_size),
        nn.LeakyReLU: lambda layer: torch.nn.LeakyReLU(layer.slope),
        nn.Dropout: lambda layer: torch.nn.Dropout(layer.p),
        nn.Flatten: lambda layer: torch.nn.Flatten(),
    }
    return torch.nn.Sequential(*(made[type(layer)](layer) for layer in network)).eval()


def assert_same_as(theirs, ours, torch):
    x = images(3, 1, 28, 28)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours.eval()(x).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_to_pytorch_and_back(name, torch):
    ours = NETWORKS[name]()
    theirs, new = in_torch(ours, torch), in_torch(ours, torch)

    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    assert_same_as(theirs, ours, torch)

    ours.load_state_dict(new.state_dict())
    assert_same_as(new, ours, torch)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_to_pytorch_and_back(tmp_path, name, torch):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    ours = NETWORKS[name]()
    theirs, new = in_torch(ours, torch), in_torch(ours, torch)

    checkpoint.save(path, ours.state_dict(), {"format": checkpoint.MODEL_FORMAT})
    theirs.load_state_dict(load_file(path))
    assert_same_as(theirs, ours, torch)

    for metadata in (None, {"format": "pt"}):
        save_file(new.state_dict(), path, metadata)
        checkpoint.load_weights(ours, path)
        assert_same_as(new, ours, torch)


def test_a_tensor_of_pytorch_is_no_surprise(torch):
    """What `load_state_dict` copies is a copy."""
    ours = nn.Sequential(nn.Linear(2, 2))
    theirs = in_torch(ours, torch)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        theirs[0].weight += 1
    assert isinstance(ours[0].weight, Tensor)
    np.testing.assert_allclose(ours[0].weight.numpy() + 1, theirs[0].weight.detach().numpy())
