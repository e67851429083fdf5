"""Pictures of the tape, their files, and `nnfs graph`."""

import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad_nnfs.models import cli
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import Parameter, Tensor, checkpoint, nn, no_grad, op, ops, profile

pytest.importorskip("graphviz", reason="the extra draw is not installed")
from tinygrad_nnfs.graph import draw, rendering, save
from tinygrad_nnfs.graph.rendering import GraphError, NoEngineError

RED = "#c81e1e"
needs_engine = pytest.mark.skipif(
    not list(rendering._commands("svg")), reason="neither dot nor pygraphviz is installed"
)


# -- reading the source of a picture ---------------------------------------------------------------


def boxes(picture):
    """Name -> the rest of the line, for every box."""
    found = re.findall(r"^\s*(\w+) \[label=(.*)\]$", picture.source, re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def edges(picture):
    """How often each (from, to) is drawn. The parts of a box's name are left out."""
    found = Counter()
    for tail, head, options in re.findall(r"^\s*(\w+) -> (\w+)(.*)$", picture.source, re.MULTILINE):
        found[(head, tail) if "dir=back" in options else (tail, head)] += 1
    return found


def frames(picture):
    """The titles of the frames, in order."""
    return re.findall(r"subgraph cluster_\d+ \{\s*label=<<b>(.*?)</b>>", picture.source)


def titles(picture):
    """The bold first lines of the boxes."""
    return re.findall(r"^\s*\w+ \[label=<<b>(.*?)</b>", picture.source, re.MULTILINE)


def nodes_of(loss):
    """All nodes in the order of the forward, by plain recursion."""
    found = {}

    def visit(node):
        if node.order not in found:
            found[node.order] = node
            for parent in node.inputs:
                if hasattr(parent, "order"):
                    visit(parent)

    visit(loss.node)
    return [found[order] for order in sorted(found, reverse=True)]


# -- what is drawn ---------------------------------------------------------------------------------


class Apply(nn.Module):
    """Some op of the graphs below, in modules to any depth."""

    def __init__(self, depth):
        self.inner = Apply(depth - 1) if depth else None
        self.scale = Parameter(np.ones(2, np.float32))

    def forward(self, x, y, kind):
        if self.inner is not None:
            return self.inner(x, y, kind)
        results = {0: lambda: x + y, 1: lambda: x.tanh(), 2: lambda: x * self.scale * 0.5}
        return results[kind]() if kind in results else ops.stack(x, y, x).sum(0)


@st.composite
def random_graphs(draw_from):
    """A result, perhaps shared parts, dead ends, constants and modules inside modules."""
    tensors = [Tensor(np.ones(2, np.float32), requires_grad=i < 2) for i in range(3)]
    modules = [Apply(depth) for depth in range(3)]
    place = st.integers(0, 20)
    for kind, i, j, module in draw_from(
        st.lists(st.tuples(st.integers(0, 3), place, place, st.integers(0, 3)), max_size=12)
    ):
        x, y = tensors[i % len(tensors)], tensors[j % len(tensors)]
        apply = modules[module] if module < 3 else Apply(0).forward
        tensors.append(apply(x, y, kind))
    last = tensors[-1]
    return last if last.requires_grad else tensors[0].tanh()


@given(random_graphs())
def test_every_op_is_drawn_once_and_edges_are_its_inputs(loss):
    nodes = nodes_of(loss)
    name = {node: f"n{i}" for i, node in enumerate(nodes)}
    expected = Counter()
    untracked = 0
    for node in nodes:
        for parent in node.inputs:
            untracked += parent not in name
            expected[(name.get(parent, "untracked"), name[node])] += 1

    picture = draw(loss)
    found = Counter()
    for (tail, head), count in edges(picture).items():
        tail = "untracked" if tail.startswith("u") else tail.partition("use")[0]
        found[tail, head] += count
    assert found == expected
    drawn = [box.partition("use")[0] for box in boxes(picture)]
    assert sum(box.startswith("u") for box in drawn) == untracked
    for node in nodes:
        assert drawn.count(name[node]) == 1 if node.op else drawn.count(name[node]) >= 1
        label = boxes(picture).get(name[node])
        if node.op:
            assert node.op in label
            assert f"{node.dtype} {node.shape}" in label

    alone = draw(loss, detail="ops")
    assert set(boxes(alone)) == {name[node] for node in nodes if node.op}
    between_ops = {(a, b) for a, b in expected if a in boxes(alone)}
    assert set(edges(alone)) == between_ops

    full = draw(loss, detail="tensors")
    results = {f"t{name[node]}" for node in nodes if node.op}
    assert results < set(boxes(full))
    assert all(edges(full)[box[1:], box] == 1 for box in results)
    assert len(boxes(full)) == len(boxes(picture)) + len(results)


@given(random_graphs())
def test_backward_changes_nothing(loss):
    before = draw(loss).source
    loss.sum().backward()
    assert draw(loss).source == before


@given(random_graphs())
@settings(max_examples=8)
@needs_engine
def test_every_graph_can_be_laid_out(loss):
    for detail in ("ops", "parameters", "tensors"):
        ElementTree.fromstring(rendering.render(draw(loss, detail=detail), "svg"))


def batch(n=4):
    random = np.random.default_rng(0)
    return random.random((n, 1, 28, 28), np.float32), random.integers(0, 10, n)


def cnn_loss(network, n=4):
    images, labels = batch(n)
    return ops.softmax_cross_entropy(network(images), labels)


def test_the_cnn_reads_as_it_is_written():
    picture = draw(cnn_loss(CNN()))
    assert frames(picture) == ["CNN"]
    assert titles(picture)[:5] == [
        "softmax_cross_entropy",  # outside the frame, which comes last
        "0: Conv2d(1, 32, kernel_size=3)", "0.weight", "0.bias", "1: LeakyReLU(0.01)",
    ]  # fmt: skip
    found = "\n".join(boxes(picture).values())
    assert "conv2d → float32 (4, 32, 26, 26)" in found
    assert "float32 (512, 3200)" in found
    assert "int64 (4,)" in found
    assert "rankdir=TB" in picture.source
    named = {name for name, _ in CNN().named_parameters()}
    assert named < set(titles(picture))
    assert RED not in picture.source


def test_a_module_called_twice_has_two_frames_and_its_parameters_stand_in_both():
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    network = nn.Sequential(inner, nn.Linear(3, 3, bias=False), inner)
    picture = draw(network(np.ones((2, 3))))
    calls = [f"0: Sequential, call {i} of 2" for i in (1, 2)]
    assert frames(picture) == ["Sequential", *calls]
    assert Counter(titles(picture))["0.0.weight"] == 2
    assert picture.source.count("used 2 times") == 4  # weight and bias, twice
    assert Counter(titles(picture))["1.weight"] == 1
    assert "call" not in "".join(titles(picture))  # what is inside says it with its frame


def test_a_layer_called_twice_says_which_call():
    layer = nn.Linear(3, 3)
    picture = draw(nn.Sequential(layer, layer)(np.ones((2, 3))))
    assert [t for t in titles(picture) if "Linear" in t] == [
        "0: Linear(3, 3), call 1 of 2", "0: Linear(3, 3), call 2 of 2",
    ]  # fmt: skip


def test_a_tied_weight_has_one_name():
    class Tied(nn.Module):
        def __init__(self):
            self.weight = Parameter(np.ones((3, 3)))
            self.other = self.weight

        def forward(self, x):
            return (x @ self.weight).tanh() @ self.other

    assert Counter(titles(draw(Tied()(np.ones((2, 3))))))["weight"] == 2


def test_layers_used_from_outside_their_network_have_names():
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))

    class Outer(nn.Module):
        def __init__(self):
            self.network = network

        def forward(self, x):
            return self.network[1][0](self.network[0](x))

    found = titles(draw(Outer()(np.ones((2, 3)))))
    assert {"network.0: Linear(3, 3)", "network.1.0: Linear(3, 2)"} < set(found)
    (alone,) = (t for t in titles(draw(nn.Linear(3, 3)(np.ones((2, 3))))) if "Linear" in t)
    assert alone == "Linear(3, 3)"


def test_modules_side_by_side_may_have_the_same_names():
    first, second = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    third = nn.Linear(3, 2, bias=False)
    picture = draw(third(second(first(np.ones((2, 3))))))
    assert Counter(t for t in titles(picture) if "Linear" not in t) == {
        "weight": 2, "bias": 1, "0.weight": 1, "0.bias": 1, "1: ReLU": 1,
    }  # fmt: skip
    assert picture.source.count("rank=same") == 5


def test_without_modules():
    x = Tensor([1.0, 2.0], requires_grad=True)
    w = Tensor([3.0, 4.0], requires_grad=True)
    y = x * w
    picture = draw(y.sum() * 2, names={"x": x, "products": y})
    assert frames(picture) == []
    assert titles(picture) == ["products = multiply", "x", "sum", "multiply"]
    assert ">number</font>" in picture.source  # the 2
    assert titles(draw(y, names={"y": y}, detail="tensors")) == ["multiply", "y"]


def test_any_tensor_with_a_place_on_the_tape():
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    assert list(boxes(draw(x))) == ["n0"]
    assert "float32 (1, 2)" in boxes(draw(x))["n0"]
    assert "float32 (2, 1)" in boxes(draw(x.T))["n1"]


def test_an_input_that_was_not_given_is_not_drawn():
    picture = draw(nn.Conv2d(1, 2, 3, bias=False)(np.ones((1, 1, 4, 4))))
    assert len(boxes(picture)) == 3  # the op, its weight, the images
    named = draw(nn.Linear(2, 2)(np.ones((1, 2))), detail="tensors")
    assert re.findall(r"label=<&#160;(\w+)>", named.source) == ["x", "weight", "bias"]


def test_an_op_has_room_for_two_parameters_beside_it():
    class Three(nn.Module):
        def __init__(self):
            self.parts = [Parameter(np.ones(2)) for _ in range(3)]

        def forward(self):
            return ops.concatenate(*self.parts, axis=0)

    picture = draw(Three()())
    assert {"parts.0", "parts.1", "parts.2"} < set(titles(picture))
    assert picture.source.count("rank=same") == 2
    assert sum(edges(picture).values()) == 3


def test_ops_of_ones_own():
    @op
    def my_op(xp, x, *, unused=1):
        return x + 1, lambda dy: dy * 1.0

    y = my_op(Tensor([1.0], requires_grad=True))
    assert titles(draw(y, detail="tensors")) == ["my_op"]


# -- what is refused -------------------------------------------------------------------------------


def test_mistakes_are_one_clear_line():
    x = Tensor([1.0], requires_grad=True)
    with no_grad():
        y = x * 2
    for error, message, call in (
        (RuntimeError, r"nothing was recorded .* no_grad\(\)", lambda: draw(y)),
        (RuntimeError, "nothing was recorded", lambda: draw(x.detach())),
        (TypeError, "names must be of Tensors, 'w' is not", lambda: draw(x, names={"w": 1.0})),
        (TypeError, "expected a Tensor, found float", lambda: draw(1.0)),
        (
            ValueError,
            "'ops' or 'parameters' or 'tensors', found 'all'",
            lambda: draw(x, detail="all"),
        ),
        (ValueError, r"has 3 ops, too many .* limit=3", lambda: draw(x + 1 + 1 + 1, limit=2)),
    ):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith("draw: ")


def test_names_must_be_a_dict():
    with pytest.raises(TypeError, match="names must be a dict from names to Tensors, found a list"):
        draw(ops.exp(Parameter([1.0])), names=["x"])


def test_save_needs_a_path():
    with pytest.raises(TypeError, match="the path of its file, found NoneType"):
        save(draw(ops.exp(Parameter([1.0]))), None)


def test_stats_must_be_of_this_graph():
    x = Tensor([1.0], requires_grad=True)
    with profile() as plain:
        y = x * 2
    with profile(statistics=True) as other:
        x * 3
    for stats in (plain, other):
        with pytest.raises(ValueError, match=r"draw: stats knows none .*statistics=True"):
            draw(y, stats=stats)


def test_a_chain_of_any_length_is_refused_or_drawn():
    y = x = Tensor([1.0], requires_grad=True)
    for _ in range(20_000):
        y = y + x
    with pytest.raises(ValueError, match="the graph has 20,000 ops"):
        draw(y)
    assert len(boxes(draw(y, limit=20_000, detail="ops"))) == 20_000


# -- statistics ------------------------------------------------------------------------------------


def step(network, images, labels):
    with profile(statistics=True) as p:
        loss = ops.softmax_cross_entropy(network(images), labels)
        loss.backward()
    return draw(loss, stats=p), loss, p


def flagged(picture):
    """The titles of the boxes with a red outline, and what they say."""
    found = {}
    for label in boxes(picture).values():
        if f'color="{RED}" ' in label:
            name = re.search("<b>(.*?)</b>", label)[1]
            found[name] = re.findall(rf'<font color="{RED}"><b>(.*?)</b></font>', label)
    return found


def small(*layers, n=32):
    random = np.random.default_rng(0)
    return nn.Sequential(*layers), random.normal(size=(n, 8)), random.integers(0, 4, n)


@pytest.mark.parametrize("network", [MLP, CNN])
def test_a_healthy_network_has_nothing_red(network):
    picture, loss, p = step(network(), *batch(16))
    assert flagged(picture) == {}
    label = next(box for box in boxes(picture).values() if "softmax_cross_entropy" in box)
    assert f"value {loss.item():.4g},  gradient 1" in label
    assert "GFLOP/s" in picture.source
    busiest = max(p.calls, key=lambda call: call.forward + call.backward)
    (hot,) = (box for box in boxes(picture).values() if '"#ff9e4a"' in box)
    assert busiest.op in hot


def test_a_dead_layer_is_red_and_so_is_what_it_cuts_off():
    network, images, labels = small(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    network[2].bias.data[:] = -100
    found = flagged(step(network, images, labels)[0])
    assert found["3: ReLU"] == ["output all zero"]
    assert found["2: Linear(8, 8)"] == found["0: Linear(8, 8)"] == ["gradient all zero"]
    assert found["0.weight"] == ["gradient all zero"]
    assert "4.bias" not in found


def test_an_exploding_gradient_is_red_where_it_is_large():
    layers = [layer for _ in range(8) for layer in (nn.Linear(8, 8), nn.LeakyReLU())]
    network, images, labels = small(*layers, nn.Linear(8, 4))
    for parameter in network.parameters():
        parameter.data *= 5
    found = flagged(step(network, images, labels)[0])
    (said,) = found["0: Linear(8, 8)"]
    assert re.fullmatch(r"gradient [\d,.e+]+ times that near the loss", said)
    assert "16: Linear(8, 4)" not in found


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_what_is_not_finite_is_red(value, word):
    network, images, labels = small(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    network[2].bias.data[1] = value
    with np.errstate(all="ignore"):
        picture, _, _ = step(network, images, labels)
    assert flagged(picture)["2: Linear(8, 4)"][0] == f"output {word}"
    assert flagged(picture)["2.bias"][-1] == f"value {word}"
    assert flagged(picture)["0.weight"] == ["gradient NaN"]
    if value != value:  # of one element, and red all the same
        assert any("output NaN" in said for said in flagged(picture)["softmax_cross_entropy"])


def test_scalars_show_their_values():
    x, w = (Tensor(np.float64(v), requires_grad=True) for v in (2, -3))
    with profile(statistics=True) as p:
        y = x * w
        y.backward()
    found = boxes(draw(y, stats=p, names={"x": x, "w": w}))
    assert "value 2,  gradient -3" in found["n0"]
    assert "value -3,  gradient 2" in found["n1"]
    assert "value -6,  gradient 1" in found["n2"]
    assert " B" not in found["n2"]  # neither bytes nor time, which is the interpreter's


# -- escaping --------------------------------------------------------------------------------------

HOSTILE = [
    '"',
    "a\nb",
    "\\N\\l",
    "<b>&amp;</b>",
    "]]>",
    "é 漢 🙂",
    "\x00\x1b[0m",
    "",
    " ",
    "{|}",
    "->",
]


@needs_engine
@given(st.lists(st.text(max_size=20) | st.sampled_from(HOSTILE), max_size=12, unique=True))
@settings(max_examples=10)
def test_names_may_be_any_text(names):
    names = [*HOSTILE, *(name for name in names if name not in HOSTILE)]

    class Hostile(nn.Module):
        def describe(self):
            return names[-1] + '<&"\n'

        def forward(self, xs):
            return ops.concatenate(*(x.tanh() for x in xs), axis=0).sum()

    xs = [Tensor([1.0], requires_grad=True) for _ in names]
    picture = draw(Hostile()(xs), names=dict(zip(names, xs)))
    svg = ElementTree.fromstring(rendering.render(picture, "svg"))
    shown = {
        "".join(text.itertext()).strip() for text in svg.iter("{http://www.w3.org/2000/svg}text")
    }
    for name in names:
        if len(name.split()) == 1 and name.isprintable():
            assert name.strip() in shown
    assert "''" in shown  # the empty name: an empty line is an error to older versions
    assert len(boxes(picture)) == 2 * len(names) + 2


# -- layout ----------------------------------------------------------------------------------------


def rectangles(svg):
    """(left, top, right, bottom) of every box, and the sizes of all text."""
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(svg)
    found = []
    for group in root.iter(f"{space}g"):
        if group.get("class") == "node":
            points = next(group.iter(f"{space}polygon")).get("points")
            xs, ys = zip(*(map(float, point.split(",")) for point in points.split()))
            found.append((min(xs), min(ys), max(xs), max(ys)))
    size = [float(root.get(side).removesuffix("pt")) for side in ("width", "height")]
    return found, [float(text.get("font-size")) for text in root.iter(f"{space}text")], size


@needs_engine
@pytest.mark.parametrize("stats", [False, True])
def test_the_cnn_is_legible_on_a4(stats):
    network = CNN()
    picture = step(network, *batch(64))[0] if stats else draw(cnn_loss(network, 64))
    drawn, fonts, (width, height) = rectangles(rendering.render(picture, "svg"))
    page = 210 / 25.4 * 72 - 72, 297 / 25.4 * 72 - 72  # points, with margins of half an inch
    scale = min(1, page[0] / width, page[1] / height)
    assert scale * min(fonts) > 6
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(drawn, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1


# -- files -----------------------------------------------------------------------------------------

MAGIC = {"svg": b"<?xml", "png": b"\x89PNG\r\n", "pdf": b"%PDF-"}


@pytest.fixture
def picture():
    return draw(Tensor([1.0], requires_grad=True) * 2)


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(rendering, "_commands", lambda form: [])


@needs_engine
@pytest.mark.parametrize("form", MAGIC)
def test_formats(picture, tmp_path, form):
    path = tmp_path / f"a b.{form.upper()}"
    path.write_text("old")
    before = picture.source
    save(picture, path)
    assert path.read_bytes().startswith(MAGIC[form])
    assert picture.source == before  # the format's own options are not left in it
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_source_needs_no_engine(picture, tmp_path, no_engine):
    save(picture, tmp_path / "a.dot")
    assert (tmp_path / "a.dot").read_text() == picture.source


def test_without_an_engine_the_source_is_written_and_a_line_says_what_to_install(
    picture, tmp_path, no_engine
):
    with pytest.raises(NoEngineError) as raised:
        save(picture, tmp_path / "a.svg")
    assert [file.name for file in tmp_path.iterdir()] == ["a.dot"]
    assert str(raised.value) == (
        f"{tmp_path}/a.svg: nothing is installed that draws it; wrote {tmp_path}/a.dot instead: "
        "pip install 'tinygrad_nnfs[draw]', or install Graphviz, whose program is dot"
    )


def test_files_that_cannot_be_written(picture, tmp_path):
    (tmp_path / "folder.dot").mkdir()
    for name, message in (
        ("none/a.dot", "cannot be written: No such file"),
        ("folder.dot", "cannot be written: Is a directory"),
        ("a\0.dot", "cannot be written: embedded null"),
        ("a.gif", "must end in .svg, .png, .pdf or .dot"),
        ("a", "must end in"),
    ):
        with pytest.raises(GraphError, match=message) as raised:
            save(picture, tmp_path / name)
        assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.dot"]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program `dot` on the PATH, with this text as its code."""

    def install(code):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "dot").write_text(f"#!{sys.executable}\n{code}")
        (folder / "dot").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


def test_the_program_dot_comes_first(picture, program):
    program("import sys; print(sys.argv[1:], sys.stdin.read(), file=sys.stderr); print('drawn')")
    assert rendering.render(picture, "svg") == b"drawn\n"


def test_what_dot_cannot_draw_is_drawn_otherwise_or_reported(picture, program, monkeypatch):
    program("import sys; sys.exit('Format: \"pdf\" not recognized')")
    if rendering.importlib.util.find_spec("pygraphviz"):
        assert rendering.render(picture, "pdf").startswith(b"%PDF")
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GraphError, match=r'^dot cannot draw this graph as pdf: Format: "pdf" not'):
        rendering.render(picture, "pdf")


def test_a_layout_that_takes_too_long_is_given_up(picture, program, monkeypatch):
    program("import time; time.sleep(60)")
    monkeypatch.setattr(rendering, "PATIENCE", 0.2)
    with pytest.raises(GraphError, match=r"has not laid out this graph in 0\.2 s"):
        rendering.render(picture, "svg")


@needs_engine
def test_notebooks_show_it(picture):
    bundle = picture._repr_mimebundle_()
    assert list(bundle) == ["image/svg+xml"]
    assert "</svg>" in bundle["image/svg+xml"]


def test_notebooks_without_an_engine_say_what_to_install(picture, no_engine):
    assert "pip install" in picture._repr_mimebundle_()["text/plain"]


# -- nnfs graph ------------------------------------------------------------------------------------


def nnfs_graph(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs graph arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["graph", *map(str, arguments)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_command(capsys, tmp_path):
    path = tmp_path / "mlp.dot"
    assert nnfs_graph(capsys, "mlp", "-o", path, "--batch", 3) == (0, f"written: {path}\n", "")
    assert "float32 (3, 784)" in path.read_text()
    assert nnfs_graph(capsys, "mlp", "-o", path, "--detail", "ops")[0] == 0
    assert ".weight" not in path.read_text()
    assert nnfs_graph(capsys, "mlp", "-o", path, "--stats")[0] == 0
    assert "GFLOP/s" in path.read_text()
    assert "gradient" in path.read_text()


def test_command_draws_a_model_file_as_in_training(capsys, tmp_path):
    model = tmp_path / "model.safetensors"
    checkpoint.save(model, MLP().state_dict(), {"format": checkpoint.MODEL_FORMAT})
    assert nnfs_graph(capsys, model, "-o", tmp_path / "a.dot")[0] == 0
    assert "Dropout" in (tmp_path / "a.dot").read_text()


def test_command_mistakes_are_one_line(capsys, tmp_path):
    target = tmp_path / "a.dot"
    (tmp_path / "notes.txt").write_text("no network")
    for arguments, status, message in (
        (
            ("alexnet", "-o", target),
            1,
            "'alexnet' is neither a network, which are mlp and cnn, nor",
        ),
        ((tmp_path / "notes.txt", "-o", target), 1, "not a safetensors file"),
        (("mlp", "-o", tmp_path / "a.gif"), 2, "must end in one of .svg, .png, .pdf, .dot"),
        (("mlp", "-o", tmp_path / "none" / "a.dot"), 1, "cannot be written: No such file"),
        (("mlp",), 2, "required: -o"),
        (("mlp", "-o", target, "--batch", "0"), 2, "'0' is not"),
        (("mlp", "-o", target, "--detail", "all"), 2, "invalid choice: 'all'"),
    ):
        found, out, err = nnfs_graph(capsys, *arguments)
        assert (found, out) == (status, "")
        assert message in err.splitlines()[-1]
        assert status == 2 or len(err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_command_without_an_engine(capsys, tmp_path, no_engine):
    status, out, err = nnfs_graph(capsys, "mlp", "-o", tmp_path / "a.png")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert f"wrote {tmp_path}/a.dot instead: pip install" in err


def test_command_without_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphviz", None)
    monkeypatch.delitem(sys.modules, "tinygrad_nnfs.graph.rendering")
    status, out, err = nnfs_graph(capsys, "mlp", "-o", tmp_path / "a.png")
    assert (status, out) == (1, "")
    assert err == "nnfs: this needs graphviz: pip install 'tinygrad_nnfs[draw]'\n"


def test_help_has_an_example(capsys):
    status, out, _ = nnfs_graph(capsys, "--help")
    assert status == 0
    assert "example: nnfs graph cnn --stats -o cnn.svg" in out
