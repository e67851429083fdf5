# %% [markdown]
# # Tutorial: from the chain rule to a convolutional network
#
# After the first seven chapters, a quarter of an hour, you will have written an op of your own,
# checked it, drawn it and trained a network with it. The others go on to the convolutional network:
# momentum, im2col, training, and what to make of the result.
#
# Everything here ran when this page was made, on a CPU, in half a minute. To follow, install the
# package, in a clone, by `pip install -e '.[docs,fast,test]'`. Then open [this page as a
# notebook](tutorial.ipynb) (`make docs` makes it), or its source, `docs/tutorial.py`, in an editor
# that runs cells. Pasted into plain Python the code works as well, but for the pictures.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinygrad_nnfs import Parameter, Tensor, data, manual_seed, nn, no_grad, op, ops, optim, profile

manual_seed(0)
plt.rcParams.update({"figure.dpi": 120, "figure.constrained_layout.use": True})

# %% [markdown]
# ## 1. A tensor is an array with a memory
#
# A `Tensor` holds a numpy array, `x.data`. Lists become float32. Operators and methods are those of
# numpy, names are PyTorch's.

# %%
x = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
print(x * 10 + 1)
print((x @ x.T).shape, x.sum(axis=1).numpy(), x.mean().item())

# %% [markdown]
# What numpy does not have is the memory: a tensor knows which op made it, and from what. That is
# recorded for whatever depends on a tensor with `requires_grad=True`. Such a tensor is a *leaf*: a
# number to be learnt, say.

# %%
a = Tensor(0.5, requires_grad=True)
b = Tensor(-2.0, requires_grad=True)
product = a * b
y = product.tanh()
y

# %% [markdown]
# ## 2. The chain rule, by hand and by the tape
#
# How much does y change when a changes a little? y = tanh(p) with p = a b, so the chain rule says
#
# > dy/da = dy/dp · dp/da = (1 - tanh(p)²) · b
#
# Reverse mode evaluates it from left to right. Start with 1, the gradient of y by itself. At each
# op, multiply by the op's own derivative, and hand the result to its inputs. `backward` does just
# that.

# %%
y.backward()

by_hand = 1.0
by_hand = by_hand * (1 - np.tanh(-1.0) ** 2)  # through tanh
by_hand = by_hand * -2.0  # through the product, to a
print(f"by hand {by_hand:.6g}, by backward {a.grad.item():.6g}")

# %% [markdown]
# A third opinion is always at hand: move a by a little, and look how far y moves. It takes two
# evaluations of y for each number that may move, which is why nobody trains a million of them so;
# but it needs no derivative, so it can *check* one.

# %%
step = 1e-4
difference = np.tanh((0.5 + step) * -2.0) - np.tanh((0.5 - step) * -2.0)
print(f"by finite differences {difference / (2 * step):.6g}")

# %% [markdown]
# What is used twice gets the sum of what comes back from both places, and `.grad` adds up over
# calls of `backward` until you clear it.

# %%
x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
(x * x + 5 * x).sum().backward()  # 2 x + 5
print(x.grad.numpy())
(x * x).sum().backward()  # 2 x more
print(x.grad.numpy())
x.grad = None

# %% [markdown]
# ## 3. The tape
#
# The record is a graph of *nodes*. A node has the op's name, its inputs' nodes, and a *rule* for
# each of these: a function that turns dy, the gradient by the op's output, into the gradient by
# that input.

# %%
w = Tensor([2.0, -1.0], requires_grad=True)
x = Tensor([3.0, 4.0])  # data: no gradient is asked for
loss = ((w * x).sum() - 1) ** 2


def show(node, depth=0):
    """The nodes that a node was made from, further to the right."""
    if hasattr(node, "op"):
        print("   " * depth + (node.op or "leaf"), node.shape)
        for parent in node.inputs:
            show(parent, depth + 1)
    else:
        print("   " * depth + "untracked", node[0])


show(loss.node)

# %% [markdown]
# `backward` walks from the top to the leaves, youngest node first, calls each rule, and frees it: a
# second `loss.backward()` says so. A rule is a closure, and what it captured is what had to be kept
# since the forward. The product's rule for w keeps x; there is none for x, which needs no gradient,
# so w is not kept.

# %%
rule_for_w, rule_for_x = loss.node.inputs[0].inputs[0].inputs[0].rules
dy = np.ones(2, np.float32)
print(rule_for_w(dy), rule_for_x)

# %% [markdown]
# Under `no_grad()` nothing is recorded: for evaluation, where memory counts. `y.detach()` takes one
# tensor off the tape, and `y.retain_grad()` keeps the gradient of a result that is no leaf.

# %%
with no_grad():
    print((w * x).requires_grad)

hidden = w * x
hidden.retain_grad()
(hidden**2).sum().backward()
print(hidden.grad.numpy())

# %% [markdown]
# ## 4. An op of your own
#
# *Swish* (Ramachandran et al., 2017) is x s(x), where s is the sigmoid. The product rule and s' = s
# (1 - s) give its derivative: s(x) + x s(x) (1 - s(x)). That is all it takes: one function on
# arrays, which returns the output and one rule for each input.


# %%
@op
def swish(xp, x):
    """x s(x) with the sigmoid s: any shape."""
    s = 1 / (1 + xp.exp(-x))

    def dx(dy):
        return dy * (s + x * s * (1 - s))

    return x * s, dx


x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
swish(x).sum().backward()
x.grad

# %% [markdown]
# `xp` is the namespace of the arrays: numpy, or cupy if they are on a GPU. Inside, x is an array,
# never a Tensor. What stands before the `*` in the signature is an input and needs a rule (or None
# in its place); options come after it, by name: `def swish(xp, x, *, beta=1.0)`.

# %%
points = np.linspace(-5, 5, 201, dtype=np.float32)
x = Tensor(points, requires_grad=True)
y = swish(x)
y.sum().backward()

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(points, y.numpy(), label="swish")
axes.plot(points, x.grad.numpy(), label="its derivative, by the rule")
axes.axhline(0, color="grey", linewidth=0.5)
axes.legend()
plt.show()

# %% [markdown]
# ## 5. Is it right?
#
# Give the op samples, from which test cases are drawn, and `check_op` holds it to finite
# differences in float64, and to what else is asked of an op: shapes and dtypes, that nothing it was
# given is changed, that it works on arrays in any memory order, that its rules keep no more bytes
# than inputs and output have (`@op(saves=2)` would allow twice that).

# %%
from tinygrad_nnfs.checking import CheckError, check_op, gradcheck


@swish.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()))


check_op(swish)
print("swish is right")

# %% [markdown]
# An op with two inputs has two rules. Where an input was broadcast, its gradient is a sum over what
# it was stretched to. In *PReLU* (He et al., 2015) the slope of each channel is learnt, too:


# %%
@op
def prelu(xp, x, slope):
    """x where x > 0, else slope x: (n, c), (c) -> (n, c)."""

    def dx(dy):
        return dy * xp.where(x > 0, 1, slope)

    def dslope(dy):
        return (dy * xp.minimum(x, 0)).sum(axis=0)

    return xp.where(x > 0, x, slope * x), dx, dslope


@prelu.samples
def _(draw):
    n, c = draw.sizes(2)
    yield draw.case(draw.away_from(0, n, c), draw.normal(c))


check_op(prelu)
print("prelu is right")

# %% [markdown]
# `draw.sizes(2)` draws two sizes from 1 to 4, `draw.normal(n, c)` an array of that shape; there are
# also `positive`, `distinct`, `labels`, `choice`, `integer` ([all of them](checking.md#an-op)).
#
# A wrong rule is found, with the place and both values. Here the inner derivative was forgotten:


# %%
@op
def wrong_swish(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * s, lambda dy: dy * s


@wrong_swish.samples
def _(draw):
    yield draw.case(draw.normal(3))


try:
    check_op(wrong_swish)
except CheckError as error:
    print(error)

# %% [markdown]
# In a project of yours the ops with their samples stand in a file, and a test file beside it lets
# hypothesis choose the cases, and shrink a failure to a small one:
#
# ```python
# # test_my_ops.py
# from my_ops import prelu, swish
#
# from tinygrad_nnfs.testing import check_op
#
#
# def test_swish():
#     check_op(swish)
#
#
# def test_prelu():
#     check_op(prelu)
# ```
#
# Run it by `pytest test_my_ops.py`. Without a test file, `nnfs gradcheck --module my_ops.py` prints
# a table:
#
# ```
#  op      input   cases   worst error     time
# ──────────────────────────────────────────────
#  swish   x          20       3.7e-13   0.07 s
#  prelu   x          25       2.5e-13   0.09 s
#          slope      25       3.0e-12
# ```
#
# And `gradcheck` checks any function that is composed of ops, a whole network, say.

# %%
random = np.random.default_rng(0)
x, w = random.normal(size=(4, 3)), random.normal(size=(3, 2))
gradcheck(lambda x, w: (swish(x @ w) ** 2).mean(), x, w)
print("so is what is made of it")

# %% [markdown]
# ## 6. Draw it
#
# An op becomes a layer, a `Module`, by one line in `forward`. What is learnt is a `Parameter`, made
# in `__init__` (there is no `super().__init__()` to call). The network below leads from the 784
# pixels of an image to 10 *logits*, one for each digit. Its data are scikit-learn's 1,797
# handwritten digits.


# %%
class Swish(nn.Module):
    def forward(self, x):
        return swish(x)


class PReLU(nn.Module):
    def __init__(self, channels):
        self.slope = Parameter(np.full(channels, 0.25, np.float32))

    def forward(self, x):
        return prelu(x, self.slope)


digits = data.load("digits")
images, labels = data.scale(digits.train_images), digits.train_labels
print(images.shape, images.dtype, labels[:10])

network = nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 64),
    Swish(),
    nn.Linear(64, 32),
    PReLU(32),
    nn.Linear(32, 10),
)
loss = ops.softmax_cross_entropy(network(images[:64]), labels[:64])

# %% [markdown]
# The tape can be looked at as a picture: `draw` shows the ops from the data down to the loss, with
# the parameters beside them. Notebooks show it; a script writes a file, `save(draw(loss),
# "network.svg")` with `save` from `tinygrad_nnfs.graph`. Dashed is data, here images and labels.
# They need no gradient, so `Flatten` is not on the tape. [There is more to see](graph.md), such as
# the gradients of each.

# %%
from tinygrad_nnfs.graph import draw

draw(loss)

# %% [markdown]
# ## 7. Train with it
#
# The loss is the mean of -log(the probability that the network gives to the right digit). A
# training step computes it for a few images, a *batch*, and moves every parameter a little against
# its gradient. `Tensor.backward` fills the gradients in, and `optim.SGD` does the moving.

# %%
optimizer = optim.SGD(network.parameters(), lr=0.1)
order = np.random.default_rng(0)
losses = []
for _ in range(400):
    batch = order.choice(len(images), 64)

    loss = ops.softmax_cross_entropy(network(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    losses.append(loss.item())


def accuracy(network):
    """The share of the 360 test images, which training never sees, that are recognised."""
    with no_grad():
        logits = network.eval()(data.scale(digits.test_images)).numpy()
    return (logits.argmax(axis=1) == digits.test_labels).mean()


print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
print(f"test accuracy {accuracy(network):.1%}")

# %% [markdown]
# **Your turn.** *Softsign* is x / (1 + |x|). Its derivative is 1 / (1 + |x|)². Write it as an op,
# give it samples, check it, put it in place of `Swish` above, draw the loss and train. Then make
# the rule wrong on purpose, and see what `check_op` says.


# %% tags=["solution"]
@op
def softsign(xp, x):
    """x / (1 + |x|): any shape."""
    size = 1 + xp.abs(x)

    def dx(dy):
        return dy / size**2

    return x / size, dx


@softsign.samples
def _(draw):
    yield draw.case(draw.away_from(0, *draw.shape()))  # |x| has a kink at 0


check_op(softsign)
print("softsign is right")

# %% [markdown]
# The check moves every input a little, by up to 0.002, to both sides. A kink in between, such as
# that of |x| at 0, spoils the differences. `check_op` notices that and tries elsewhere, but samples
# that keep away from kinks are checked everywhere.
#
# What follows is about learning faster, and about convolutions.
#
# ## 8. Momentum
#
# In a narrow valley the gradient points to the other side rather than along the valley. Plain
# descent with a rate that is safe for the steep direction creeps in the flat one. *Momentum*
# remembers its past steps: what alternates cancels, what is constant adds up.
#
# > v = μ v + lr g, θ = θ - v

# %%
scale = np.array([1.0, 30.0], np.float32)  # how steep each direction is


def descend(momentum, steps=40):
    place = Parameter(np.array([-4.0, 1.0], np.float32))
    optimizer = optim.SGD([place], lr=0.03, momentum=momentum)
    path = [place.numpy().copy()]
    for _ in range(steps):
        loss = 0.5 * (scale * place**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(place.numpy().copy())
    return np.array(path)


# %% tags=["picture"]
across, up = np.meshgrid(np.linspace(-4.5, 1.5, 200), np.linspace(-1.5, 1.5, 200))
figure, plots = plt.subplots(2, 1, figsize=(7, 4), sharex=True, sharey=True)
for axes, momentum in zip(plots, (0.0, 0.8)):
    path = descend(momentum)
    axes.contour(
        across, up, 0.5 * (across**2 + 30 * up**2), levels=12, colors="0.8", linewidths=0.8
    )
    axes.plot(*path.T, marker=".", color="C0" if momentum == 0 else "C1")
    axes.plot(0, 0, marker="*", color="black", markersize=10)
    axes.set_title(
        f"momentum {momentum}: {np.linalg.norm(path[-1]):.2f} from the minimum after 40 steps"
    )
plt.show()

# %% [markdown]
# ## 9. A convolution, step by step
#
# A convolution slides a small *kernel* over the image. At each place it multiplies the kernel with
# the window under it, element by element, and adds up. Here: a 5 x 5 image, and a kernel that looks
# for vertical edges. Written in loops,

# %%
image = np.array([
    [0, 0, 1, 2, 2],
    [0, 0, 1, 2, 2],
    [0, 1, 3, 2, 1],
    [1, 2, 4, 2, 0],
    [2, 4, 4, 1, 0],
], np.float32)  # fmt: skip
kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)

output = np.zeros((3, 3), np.float32)
for i in range(3):
    for j in range(3):
        output[i, j] = (image[i : i + 3, j : j + 3] * kernel).sum()
output

# %% [markdown]
# Loops are slow, and matrix products are what computers are best at. So *im2col* (Chellapilla et
# al., 2006) lays the window of each output position out as a column. There are nine positions, and
# each window has nine elements. Three of the windows are outlined, and so are their columns:

# %% tags=["picture"]
COLOURS = {0: "tab:red", 4: "tab:green", 8: "tab:purple"}  # of three windows out of nine
PLACES = [(i, j) for i in range(3) for j in range(3)]


def cells(axes, values, left, top, cmap="Blues", limits=(-1, 6), title=""):
    """Draw a matrix as squares of size 1 with their numbers; NaN is left empty."""
    rows, columns = values.shape
    axes.imshow(
        np.ma.masked_invalid(values), cmap=cmap, vmin=limits[0], vmax=limits[1],
        extent=(left, left + columns, top + rows, top),
    )  # fmt: skip
    for (i, j), value in np.ndenumerate(values):
        axes.add_patch(plt.Rectangle((left + j, top + i), 1, 1, fill=False, color="0.8", lw=0.8))
        if not np.isnan(value):
            middle = left + j + 0.5, top + i + 0.5
            axes.text(*middle, f"{value:g}", ha="center", va="center", fontsize=9)
    axes.text(left + columns / 2, top - 0.4, title, ha="center", va="bottom", fontsize=10)


def outline(axes, left, top, width, height, colour):
    corner = left + 0.06, top + 0.06
    size = width - 0.12, height - 0.12
    axes.add_patch(plt.Rectangle(corner, *size, fill=False, color=colour, lw=2.2, zorder=3))


def canvas(width, height):
    """Axes that count in cells, from the top left."""
    _, axes = plt.subplots(figsize=(width / 2.6, height / 2.6))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return axes


def arrow(axes, start, end, y, text=""):
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "lw": 1.5})
    axes.text((start + end) / 2, y - 0.3, text, ha="center", va="bottom", fontsize=10)


columns = np.stack([image[i : i + 3, j : j + 3].ravel() for i, j in PLACES], axis=1)

axes = canvas(21, 11)
cells(axes, image, 0.5, 3.5, title="image")
cells(axes, columns, 11, 1.5, title="columns: one for each window")
arrow(axes, 6.2, 9.3, 6, "im2col")
for place, colour in COLOURS.items():
    i, j = PLACES[place]
    outline(axes, 0.5 + j, 3.5 + i, 3, 3, colour)
    outline(axes, 11 + place, 1.5, 1, 9, colour)
for row, (u, v) in enumerate(PLACES):
    axes.text(10.8, 2 + row, f"{u},{v}", ha="right", va="center", fontsize=8, color="0.4")
plt.show()

# %% [markdown]
# A row of the matrix belongs to one element (u, v) of the kernel. With the kernel as one row of
# nine, the whole convolution is one matrix product, and the nine results are the output, row after
# row. More kernels are more rows on the left, more images more columns on the right, and more
# channels make both longer in between.

# %% tags=["picture"]
row = kernel.reshape(1, 9)
product = row @ columns

axes = canvas(27.5, 11)
cells(axes, row, 0.3, 5.5, cmap="PuOr", limits=(-4, 4), title="kernel, as a row")
axes.text(9.9, 6, "@", ha="center", va="center", fontsize=14)
cells(axes, columns, 10.5, 1.5, title="columns")
axes.text(20.1, 6, "=", ha="center", va="center", fontsize=14)
cells(
    axes,
    product.reshape(3, 3),
    21,
    4.5,
    cmap="PuOr",
    limits=(-20, 20),
    title="output, in its shape",
)
for place, colour in COLOURS.items():
    i, j = PLACES[place]
    outline(axes, 10.5 + place, 1.5, 1, 9, colour)
    outline(axes, 21 + j, 4.5 + i, 1, 1, colour)
plt.show()

# %% [markdown]
# The library's `im2col` makes the same columns, and `conv2d` the same output:

# %%
from tinygrad_nnfs.ops.convolution import Geometry, col2im, im2col

x, weight = image[None, None], kernel[None, None]  # (n, c, h, w) and (outputs, c, kh, kw)
geometry = Geometry(x, weight, None, stride=1, padding=0, dilation=1, groups=1)
print(
    (im2col(np, x, geometry)[0] == columns).all(), (ops.conv2d(x, weight).numpy() == output).all()
)

# %% [markdown]
# Now the rules. The output is `row @ columns`, and the rules of a matrix product are known: with D
# for dy as a row,
#
# > drow = D @ columns.T, dcolumns = row.T @ D
#
# The first is the kernel's gradient. The second says how much each element of each *column*
# matters. But a pixel stands in several columns, in as many as windows cover it: its gradient is
# the sum. So *col2im*, which puts each column back to its window and adds up, is all that is left
# to do. With a dy of ones, every window puts back the kernel itself:

# %% tags=["picture"]
dy = np.ones((1, 9), np.float32)
dcolumns = row.T @ dy
dimage = col2im(np, dcolumns, x.shape, geometry)[0, 0]

axes = canvas(28, 7)
for left, place in zip((0.3, 6.6, 14.4), COLOURS):
    alone = np.full((5, 5), np.nan)
    i, j = PLACES[place]
    alone[i : i + 3, j : j + 3] = dcolumns[:, place].reshape(3, 3)
    cells(axes, alone, left, 1.5, cmap="PuOr", limits=(-6, 6), title=f"column {place}, put back")
    outline(axes, left + j, 1.5 + i, 3, 3, COLOURS[place])
axes.text(5.95, 4, "+", ha="center", va="center", fontsize=14)
axes.text(13, 4, "+ ... +", ha="center", va="center", fontsize=14)
axes.text(20.6, 4, "+ ... =", ha="center", va="center", fontsize=14)
cells(axes, dimage, 22.2, 1.5, cmap="PuOr", limits=(-8, 8), title="gradient of the image")
plt.show()

# %%
tracked = Tensor(x, requires_grad=True)
ops.conv2d(tracked, weight).sum().backward()
print((tracked.grad.numpy()[0, 0] == dimage).all())

# %% [markdown]
# [The op](ops/convolution.md) is just that, with strides, padding, channels and groups. The faster
# ways that the library takes by itself are [variants beside it](design.md), held to it by tests.
#
# ## 10. The convolutional network
#
# Three convolutions with pooling find ever larger patterns in ever smaller pictures, and two dense
# layers make a decision of them. This is the package's own [CNN](../models/cnn.py):

# %%
from tinygrad_nnfs.models.cnn import CNN

from tinygrad_nnfs.graph import summary

network = CNN()
summary(network, (1, 28, 28))

# %% [markdown]
# Where does the time of a step go? Not where the layers are many, but where the numbers are:

# %%
batch = images[:64]
for _ in range(3):  # the first steps are slower: they need new memory
    ops.softmax_cross_entropy(network(batch), labels[:64]).backward()
with profile() as p:
    ops.softmax_cross_entropy(network(batch), labels[:64]).backward()
print(p)

# %% [markdown]
# The four lines of chapter 7 train it, too. An *epoch* shows it every image once. Dropout zeroes a
# random part of the activations in each step, so that no unit relies on a single other one;
# `eval()` switches that off.

# %%
optimizer = optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
shuffle = np.random.default_rng(0)
epochs = []
for epoch in range(1, 5):
    network.train()
    total = correct = 0.0
    for batch in np.array_split(shuffle.permutation(len(images)), len(images) // 64):
        logits = network(images[batch])
        loss = ops.softmax_cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        correct += (logits.numpy().argmax(axis=1) == labels[batch]).sum()
    line = {"epoch": epoch, "loss": total / len(images), "accuracy": correct / len(images)}
    line["validation_accuracy"] = accuracy(network)
    epochs.append(line)
    print(", ".join(f"{name} {value:.3g}" for name, value in line.items()))

# %% [markdown]
# The project's own plot of such lines:

# %%
from IPython.display import Image
from tinygrad_nnfs.models.plots import draw_confusion_matrix, draw_curves, draw_mistakes

draw_curves("curves.png", epochs, "The CNN on the digits")
Image("curves.png", width=800)

# %% [markdown]
# The test images stand for a validation set here: no epoch is chosen by them. The accuracy while
# learning is lower, since dropout handicaps the network then. `nnfs train cnn` is this loop with
# checkpoints, schedules and this picture.
#
# ## 11. Reading a confusion matrix
#
# One number hides what goes wrong. The *confusion matrix* has a row for each true class and a
# column for each predicted one, so that the diagonal is what was recognised.

# %%
from tinygrad_nnfs.models.evaluation import report

found = report(network, digits.test_images, digits.test_labels, digits.class_names)
draw_confusion_matrix(
    "confusion.png", found.normalized_confusion(), found.class_names,
    f"360 test images: accuracy {found.accuracy:.1%}",
)  # fmt: skip
Image("confusion.png", width=560)

# %% [markdown]
# Read it by rows first: a row shows what became of one digit, and its diagonal element is the
# *recall*. Then by columns: a column shows what else was called so, and that is what lowers the
# *precision*. A pair of cells that mirror each other at the diagonal is a true resemblance; one
# cell alone is a one-sided mistake. With 36 images of each digit, one image is 0.03.

# %%
worst = found.confusion - np.diag(np.diag(found.confusion))
true, predicted = np.unravel_index(worst.argmax(), worst.shape)
print(f"most often: {worst.max()} times a {true} was taken for a {predicted}")
for k in np.argsort(found.recall)[:3]:
    print(f"digit {k}: recall {found.recall[k]:.1%}, precision {found.precision[k]:.1%}")

# %% [markdown]
# And look at the mistakes themselves, the most confident first: they may be labels that are wrong,
# or digits that nobody could read.

# %%
draw_mistakes("mistakes.png", digits.test_images, found, "the most confident mistakes")
Image("mistakes.png", width=560)

# %% [markdown]
# `nnfs evaluate` makes these pictures of any trained network. On Fashion-MNIST's test images the
# CNN that comes with the package confuses shirts with T-shirts, pullovers and coats, in both
# directions, and hardly ever a trouser with anything: [its matrix](results.md).
#
# ## 12. When it goes wrong
#
# A loss that is NaN says nothing about where the NaN came from. `detect_anomaly` watches every op,
# and raises at the first that makes a NaN or an infinity out of finite numbers, with the line that
# called it. Here a probability is 0:

# %%
from tinygrad_nnfs.debug import AnomalyError, detect_anomaly

probabilities = Tensor([0.7, 0.3, 0.0], requires_grad=True)
try:
    with detect_anomaly():
        entropy = -(probabilities * probabilities.log()).sum()
except AnomalyError as error:
    print(error)

# %% [markdown]
# [More on finding faults](debugging.md).
#
# ## Where to go from here
#
# - [Examples](examples.md): an op with two inputs whose parameter is learnt, fine-tuning, and the
#   tape alone.
# - [The ops](ops/index.md): the formula of every rule, beside the code that computes it.
# - [Training](training.md) by recipes, in runs that survive interruption; [on a
#   GPU](notebooks/train-cnn-on-gpu.ipynb).
# - [How it is built, and why](design.md): then read [tensor.py](../tinygrad_nnfs/tensor.py).
