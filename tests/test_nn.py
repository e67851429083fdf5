"""Modules: registration, state, modes, devices, initial weights."""

import copy
import gc
import json
import sys
import threading
import weakref

import numpy as np
import pytest

from tinygrad_nnfs import Parameter, Tensor, get_rng_state, manual_seed, nn, optim, set_rng_state
from tinygrad_nnfs.backend import random_key
from tinygrad_nnfs.checking import gradcheck


class Two(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4)
        self.rest = [nn.Linear(4, 4), nn.Linear(4, 2, bias=False)]
        self.scale = Parameter([2.0])
        self.mean = nn.Buffer([0.0])
        self.remark = "no parameter"

    def forward(self, x):
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x * self.scale


def test_registration_by_assignment():
    names = [name for name, _ in Two().named_parameters()]
    assert names == [
        *("first.weight", "first.bias"),
        *("rest.0.weight", "rest.0.bias", "rest.1.weight"),
        "scale",
    ]
    assert [b.shape for b in Two().buffers()] == [(1,)]


def test_shared_parameter_comes_once():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    assert len(list(network.parameters())) == 3
    assert "1.weight" in network.state_dict()


def test_state_dict_is_a_snapshot_that_loads_back():
    manual_seed(1)
    a = Two()
    state = a.state_dict()
    assert set(state) == {name for name, _ in a.named_parameters()} | {"mean"}
    x = Tensor(np.ones((2, 3), np.float32))
    expected = a(x).numpy().copy()
    a.scale.data += 1
    assert not np.allclose(a(x).numpy(), expected)
    b = Two()
    b.load_state_dict(state)
    np.testing.assert_array_equal(b(x).numpy(), expected)
    assert not np.shares_memory(b.scale.data, state["scale"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scale"), "scale is missing"),
        (lambda s: s.update(other=np.ones(1)), "other is unknown"),
        (
            lambda s: s.update(scale=np.ones(2, np.float32)),
            r"scale is float32 \(2,\), expected float32 \(1,\)",
        ),
        (lambda s: s.update(scale=np.ones(1)), r"scale is float64 \(1,\), expected float32"),
    ],
)
def test_load_state_dict_refuses_and_changes_nothing(change, message):
    network = Two()
    before = network.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(ValueError, match=f"load_state_dict into Two: .*{message}"):
        network.load_state_dict(state)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(TypeError, match="expected arrays by name, found a str; a file"):
        network.load_state_dict("model.safetensors")


def test_load_state_dict_changes_nothing_if_a_parameter_is_read_only():
    network = nn.Linear(2, 2)
    state = {name: value + 1 for name, value in network.state_dict().items()}
    network.bias.data.flags.writeable = False
    before = network.state_dict()
    with pytest.raises(ValueError, match="load_state_dict into Linear: bias is read-only here"):
        network.load_state_dict(state)
    assert all((before[name] == value).all() for name, value in network.state_dict().items())


def test_load_state_dict_refuses_two_values_for_one_tensor():
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    setattr(network, "1", network[0])
    state = network.state_dict()
    network.load_state_dict(state)
    state["1.weight"] += 1
    with pytest.raises(
        ValueError, match=r"0\.weight and 1\.weight are one tensor here, but differ"
    ):
        network.load_state_dict(state)


def test_a_module_may_know_the_one_around_it():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    network[1].around = network
    assert [name for name, _ in network.named_parameters()] == [
        *("0.weight", "0.bias", "1.weight", "1.bias")
    ]
    assert len(network.state_dict()) == 4


def test_layers_of_a_sequential_are_those_that_it_calls():
    network = nn.Sequential(nn.ReLU())
    network.others = [nn.Linear(2, 2)]
    assert len(network) == len(list(network)) == 1
    assert network(np.array([-1.0, 2.0])).numpy().tolist() == [0, 2]
    assert len(list(network.parameters())) == 2  # they are its own nevertheless


def test_load_state_dict_not_strict():
    network = Two()
    network.load_state_dict({"scale": Tensor([7.0]), "other": np.ones(1)}, strict=False)
    assert network.scale.item() == 7


def test_train_and_eval_reach_every_module():
    network = nn.Sequential(nn.Sequential(nn.Dropout(0.5)), nn.BatchNorm2d(2))
    assert all(not module.training for module in network.eval().modules())
    assert all(module.training for module in network.train().modules())


def test_dropout_draws_anew_in_training_and_rests_in_evaluation():
    layer = nn.Dropout(0.5)
    x = Tensor(np.ones(1000, np.float32))
    first, second = layer(x).numpy(), layer(x).numpy()
    assert (first != second).any()
    manual_seed(0)
    np.testing.assert_array_equal(layer(x).numpy(), first)
    assert layer.eval()(x) is x
    assert isinstance(layer(x.numpy()), Tensor)
    with pytest.raises(ValueError, match=r"probability to drop, in \[0, 1\], found 2"):
        nn.Dropout(2)


def test_he_initialisation():
    manual_seed(3)
    layer = nn.Linear(2000, 300)
    assert layer.weight.dtype == np.float32
    assert layer.weight.data.std() == pytest.approx(np.sqrt(2 / 2000), rel=0.01)
    assert abs(layer.weight.data.mean()) < 1e-4
    assert (layer.bias.data == 0).all()
    kernels = nn.Conv2d(32, 64, 3).weight
    assert kernels.shape == (64, 32, 3, 3)
    assert kernels.data.std() == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.02)


def test_seed_repeats_initial_weights():
    def weights(seed):
        manual_seed(seed)
        return nn.Linear(4, 4).weight.numpy()

    np.testing.assert_array_equal(weights(5), weights(5))
    assert (weights(5) != weights(6)).any()
    with pytest.raises(ValueError, match=r"must be in 0\.\.2\*\*64-1, found -1"):
        manual_seed(-1)
    with pytest.raises(TypeError, match=r"the seed must be an integer, found 1\.5"):
        manual_seed(1.5)


def test_batch_norm_follows_the_batch_and_then_its_running_statistics():
    layer = nn.BatchNorm2d(3)
    random = np.random.default_rng(0)
    for _ in range(200):
        layer(Tensor((random.standard_normal((16, 3, 4, 4)) * 2 + 5).astype(np.float32)))
    np.testing.assert_allclose(layer.running_mean.numpy(), 5, atol=0.2)
    np.testing.assert_allclose(layer.running_var.numpy(), 4, atol=0.5)
    x = np.full((1, 3, 2, 2), 5, np.float32)
    before = layer.running_mean.numpy().copy()
    assert abs(layer.eval()(x).numpy()).max() < 0.2
    np.testing.assert_array_equal(layer.running_mean.numpy(), before)


def test_astype_keeps_the_parameters_themselves():
    network = Two()
    parameters = list(network.parameters())
    assert network.astype(np.float64) is network
    assert list(map(id, network.parameters())) == list(map(id, parameters))
    assert all(t.dtype == np.float64 for t in (*parameters, network.mean))
    gradcheck(network, np.random.default_rng(0).standard_normal((2, 3)))
    assert network.to("cpu").scale is parameters[-1]
    with pytest.raises(TypeError, match="floating-point, found"):
        network.astype(int)


def test_frozen_parameters_get_no_gradient():
    network = Two()
    network.first.weight.requires_grad = False
    network(np.ones((1, 3), np.float32)).sum().backward()
    assert network.first.weight.grad is None
    assert network.first.bias.grad is not None


@pytest.mark.parametrize(
    ("layer", "x", "y"),
    [
        (lambda: nn.Linear(3, 5), (2, 3), (2, 5)),
        (lambda: nn.Conv2d(2, 4, 3, padding=1), (1, 2, 5, 5), (1, 4, 5, 5)),
        (
            lambda: nn.Conv2d(4, 4, (1, 3), stride=2, groups=2, bias=False),
            (1, 4, 5, 5),
            (1, 4, 3, 2),
        ),
        (lambda: nn.MaxPool2d(2), (1, 2, 5, 4), (1, 2, 2, 2)),
        (lambda: nn.AvgPool2d(3, stride=1, padding=1), (1, 2, 5, 4), (1, 2, 5, 4)),
        (lambda: nn.ReLU(), (3,), (3,)),
        (lambda: nn.LeakyReLU(), (3,), (3,)),
        (lambda: nn.Flatten(), (2, 3, 4), (2, 12)),
        (lambda: nn.BatchNorm2d(2), (2, 2, 3, 3), (2, 2, 3, 3)),
        (lambda: nn.LayerNorm(4), (2, 4), (2, 4)),
        (lambda: nn.LayerNorm((3, 4)), (2, 3, 4), (2, 3, 4)),
    ],
)
def test_layers(layer, x, y):
    layer = layer()
    assert layer(np.ones(x, np.float32)).shape == y
    assert repr(layer).startswith(type(layer).__name__ + "(")


def test_repr_shows_the_tree():
    text = repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.2))))
    assert text == (
        "Sequential(\n  (0): Linear(2, 3)\n  (1): Sequential(\n    (0): Dropout(0.2)\n  )\n)"
    )


def test_sequential():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    assert len(network) == 2
    assert isinstance(network[1], nn.ReLU)
    with pytest.raises(TypeError, match="layer 1 is not a Module but 'relu'"):
        nn.Sequential(nn.ReLU(), "relu")
    with pytest.raises(TypeError, match="Module has no forward method"):
        nn.Module()(1)
    with pytest.raises(ValueError, match="3 input channels do not divide into 2 groups"):
        nn.Conv2d(3, 4, 3, groups=2)


def test_lists_tuples_and_dicts_register_what_is_in_them():
    class Nested(nn.Module):
        def __init__(self):
            self.table = {"a": Parameter([1.0]), "b": [nn.Linear(1, 1)]}
            self.pair = (nn.Buffer([0.0]), [[Parameter([2.0])]])

    assert set(Nested().state_dict()) == {
        *("table.a", "table.b.0.weight", "table.b.0.bias", "pair.0", "pair.1.0.0"),
    }


def test_two_tensors_of_one_name_are_refused():
    class Twice(nn.Module):
        def __init__(self, **tables):
            vars(self).update(tables)

    layers = {0: nn.Linear(1, 1), "0": nn.Linear(1, 1)}
    dotted = {"a.b": Parameter([1.0]), "a": {"b": Parameter([2.0])}}
    shared = {"a.b": layers[0].weight, "a": {"b": layers[0].weight}}
    for tables, name in (({"x": layers}, "x.0.weight"), ({"y": dotted}, "y.a.b")):
        for use in (nn.Module.state_dict, lambda module: module.load_state_dict({})):
            with pytest.raises(ValueError, match=f"Twice has two tensors of the name '{name}'"):
                use(Twice(**tables))
    assert list(Twice(y=shared).state_dict()) == ["y.a.b"]


def test_what_is_assigned_to_a_parameters_data_becomes_an_array():
    for given in (np.float32(3), 3, [3.0, 4.0], Tensor([3.0])):
        parameter, buffer = Parameter(1.0), nn.Buffer(1.0)
        parameter.data = buffer.data = given
        assert type(parameter.data) is type(buffer.data) is np.ndarray
        assert parameter.dtype == np.float32
        parameter.sum().backward()
        optim.SGD([parameter], lr=1.0).step()
        assert parameter.numpy().flat[0] == 2
    parameter = Parameter([1.0])
    parameter.sum().backward()
    parameter.data = np.array([5], np.float32)
    assert parameter.grad.item() == 1
    parameter.data = np.ones((2, 3))  # another leaf: the old gradient would not fit
    assert parameter.grad is None
    (2 * parameter).sum().backward()
    assert parameter.grad.numpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    with pytest.raises(TypeError, match="only floating-point tensors have gradients, found int64"):
        parameter.data = np.arange(3)
    with pytest.raises(TypeError, match="use detach"):
        parameter.data = parameter * 2
    assert parameter.shape == (2, 3)


def test_a_parameter_is_not_replaced_by_something_else():
    layer = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"Linear\.weight is a Parameter and would no longer be one"
    ):
        layer.weight = layer.weight.detach() * 2
    with pytest.raises(TypeError, match="a Tensor that requires a gradient would not be trained"):
        layer.weight -= 0.1
    with pytest.raises(TypeError, match="make it a Parameter"):
        layer.scale = Tensor([1.0], requires_grad=True)
    layer.weight = Parameter(Tensor(np.ones((2, 2))))
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_moving_to_where_it_is_keeps_gradients():
    network = nn.Linear(2, 2)
    loss = network(np.ones((1, 2), np.float32)).sum()
    network.to("cpu").astype(np.float32)
    loss.backward()
    assert network.weight.grad is not None
    assert network.to("cpu").weight.grad is not None


def test_positional_options_are_in_pytorchs_order():
    assert nn.Conv2d(4, 6, 3, 2, 1, 2, 2, False).bias is None
    layer = nn.Conv2d(4, 6, 3, 2, 1)
    assert (layer.stride, layer.padding) == ((2, 2), (1, 1))
    assert nn.MaxPool2d(3, 1)(np.zeros((1, 1, 4, 4))).shape == (1, 1, 2, 2)
    assert not isinstance(nn.AvgPool2d(2), nn.MaxPool2d)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(1, 1, 3, groups=0), "do not divide into 0 groups"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "6 output channels do not divide into 4 groups"),
        (lambda: nn.Conv2d(1, 1, (3,)), r"kernel_size must be an integer >= 1, or two, found \(3,"),
        (lambda: nn.Conv2d(1, 1, 3, stride=0), "stride must be an integer >= 1"),
        (lambda: nn.Linear(0, 3), r"sizes >= 1, found shape \(3, 0\)"),
        (lambda: nn.Linear(2.5, 3), r"integer sizes >= 1, found shape \(3, 2\.5\)"),
        (lambda: nn.MaxPool2d(0), "kernel_size must be an integer >= 1"),
        (lambda: nn.AvgPool2d(2, padding=2), "more than half of the kernel"),
        (lambda: nn.Dropout("a"), r"probability to drop, in \[0, 1\], found a"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_slice_of_a_sequential_is_one():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert isinstance(network[:2], nn.Sequential)
    assert network[:2](np.ones((1, 2), np.float32)).shape == (1, 3)


def test_deep_copies_are_independent():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))
    twin = copy.deepcopy(network)
    assert twin[0].weight.data.strides == network[0].weight.data.strides
    twin[0].weight.data += 1
    assert (twin[0].weight.numpy() != network[0].weight.numpy()).all()
    assert isinstance(twin[0].weight, Parameter)
    assert isinstance(twin[1].running_mean, nn.Buffer)
    with pytest.raises(RuntimeError, match=r"copy of the result of multiply.*x\.detach"):
        copy.deepcopy(network[0].weight * 2)


def test_rng_state_goes_on_where_it_was():
    manual_seed(5)
    dropout = nn.Dropout(0.5)
    x = np.ones((4, 100), np.float32)
    dropout(x), nn.Linear(3, 2)
    state = json.loads(json.dumps(get_rng_state()))  # it can be kept in a text file
    expected = [dropout(x).numpy(), nn.Linear(3, 2).weight.numpy(), dropout(x).numpy()]
    manual_seed(6)
    set_rng_state(state)
    found = [dropout(x).numpy(), nn.Linear(3, 2).weight.numpy(), dropout(x).numpy()]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert get_rng_state() == get_rng_state()
    manual_seed(np.int64(5))
    assert json.loads(json.dumps(get_rng_state()))["seed"] == 5


def test_reading_the_rng_state_leaves_threads_their_own_keys():
    manual_seed(0)
    keys = []
    drawing = threading.Thread(target=lambda: keys.extend(random_key() for _ in range(50_000)))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        drawing.start()
        while drawing.is_alive():
            get_rng_state()
    finally:
        sys.setswitchinterval(before)
    assert len(set(keys)) == 50_000


def test_nodes_know_the_modules_they_were_made_in():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU()))
    y = network(np.ones((2, 3), np.float32))
    relu, (inner, (outer, outermost)) = y.node.scope
    assert (relu, inner, outer, outermost) == (network[1][0], network[1], network, None)
    assert y.node.inputs[0].scope == (network[0], (network, None))
    assert (y * 2).node.scope is None


def test_scope_ends_with_an_error():
    network = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="linear"):
        network(np.ones((2, 5), np.float32))
    assert (network[0].weight * 2).node.scope is None


def test_forward_hooks_see_and_replace_the_output():
    layer, seen = nn.ReLU(), []
    remove = layer.register_forward_hook(lambda *call: seen.append(call))
    remove_second = layer.register_forward_hook(lambda module, inputs, y: y * 2)
    x = Tensor([-1.0, 3.0])
    assert layer(x).numpy().tolist() == [0, 6]
    ((module, inputs, y),) = seen
    assert (module, inputs, y.numpy().tolist()) == (layer, (x,), [0, 3])
    remove()
    remove()
    remove_second()
    assert layer(x).numpy().tolist() == [0, 3]
    assert len(seen) == 1
    layer.register_forward_hook(lambda module, inputs, y: float(y.sum()))
    with pytest.raises(TypeError, match="hook of ReLU must return a Tensor or None, found a float"):
        layer(x)


def test_modules_have_names_and_a_shared_one_comes_once():
    shared = nn.Linear(2, 2)

    class Block(nn.Module):
        def __init__(self):
            self.inner = nn.Sequential(shared, nn.ReLU())
            self.others = {"first": [shared, nn.Dropout()]}

        def forward(self, x):
            return self.inner(x)

    block = Block()
    network = nn.Sequential(nn.Flatten(), block, shared)
    named = dict(network.named_modules())
    assert list(named) == [
        *("", "0", "1", "1.inner", "1.inner.0", "1.inner.1", "1.others.first.1"),
    ]
    assert named[""] is network
    assert named["1.inner.0"] is shared
    assert list(network.modules()) == list(named.values())
    names = dict(network.named_parameters())
    assert all(name.rpartition(".")[0] in named for name in names)


def test_gradients_and_activations_by_name():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    kept = {}
    for name, module in network.named_modules():

        def keep(module, inputs, y, name=name):
            y.retain_grad()
            kept[name] = y

        module.register_forward_hook(keep)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (network(x) * 2).sum().backward()
    assert list(kept) == ["0", "1.0", "1.1", "1", ""]
    np.testing.assert_array_equal(kept["1.1"].grad.data, np.full((5, 2), 2))
    expected = kept["1.1"].grad.data @ network[1][1].weight.data
    np.testing.assert_allclose(kept["1.0"].grad.data, expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["1.0"].data, np.maximum(kept["0"].data, 0))
    weight = dict(network.named_parameters())["0.weight"]
    np.testing.assert_allclose(weight.grad.data, kept["0"].grad.data.T @ x, rtol=1e-5)


def test_a_module_that_makes_its_parameters_in_a_call_is_freed_at_once():
    class Lazy(nn.Module):
        def forward(self, x):
            self.weight = Parameter(np.ones(3, np.float32))
            return x * self.weight

    gc.collect()
    gc.disable()
    try:
        module = Lazy()
        module(np.ones(3, np.float32)).sum().backward()
        freed = weakref.ref(module)
        del module
        assert freed() is None
    finally:
        gc.enable()


def test_a_hook_may_change_the_network_that_calls_it():
    network = nn.Sequential(nn.ReLU(), nn.ReLU())
    network[0].register_forward_hook(lambda *_: network.eval() and None)
    assert network(np.ones(2, np.float32)).numpy().tolist() == [1, 1]
    assert not network.training
