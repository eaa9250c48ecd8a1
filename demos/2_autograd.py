"""Automatic differentiation from nothing: three nodes by hand, the same by the engine, and a check that finds a wrong backward.

Shows       what a Tensor remembers; the graph as text, as Graphviz dot and as a picture; why checks draw random numbers
Takes       about 3 s on a laptop
Expect      y = (a b + a)^2 at a = 2, b = -3: y = 16, dy/da = 16, dy/db = -16
Read after  minifcn/core/tensor.py, minifcn/core/gradcheck.py
"""

# %%
import numpy as np
from common import arguments, save
from matplotlib.figure import Figure

import minifcn.functional as F
from minifcn import Tensor, check_vjp, models
from minifcn.core.tensor import record

args = arguments(__doc__)

# %% [markdown]
# ## With pencil and paper
# y = (a b + a)^2 is three steps: p = a b, s = p + a, y = s^2. The chain rule goes back through them, newest first:
#
#     dy/ds = 2 s
#     dy/dp = dy/ds                    s = p + a
#     dy/da = dy/ds + dy/dp * b        a is used twice: both paths add up
#     dy/db = dy/dp * a

# %%
a, b = 2.0, -3.0
p = a * b
s = p + a
y = s**2
gs = 2 * s
gp, ga = gs, gs
ga, gb = ga + gp * b, gp * a
print(f"by hand:       y = {y}, dy/da = {ga}, dy/db = {gb}")
assert (y, ga, gb) == (16, 16, -16)

# %% [markdown]
# ## The same with a list
# A program can do this. At every step, note how the gradient of its result gives the gradients of its inputs. Then go through
# the list backwards. This is the whole of reverse-mode automatic differentiation:

# %%
tape, grads = [], {}


def step(value, *inputs):
    """inputs: (name, local derivative) pairs of what the step used."""
    name = f"v{len(tape)}"
    tape.append((name, inputs))
    return name, value


p, p_value = step(a * b, ("a", b), ("b", a))
s, s_value = step(p_value + a, (p, 1.0), ("a", 1.0))
y, y_value = step(s_value**2, (s, 2 * s_value))
grads[y] = 1.0
for name, inputs in reversed(tape):
    for parent, derivative in inputs:
        grads[parent] = grads.get(parent, 0.0) + grads[name] * derivative
print(f"by a list:     y = {y_value}, dy/da = {grads['a']}, dy/db = {grads['b']}")
assert (grads["a"], grads["b"]) == (16, -16)

# %% [markdown]
# ## The engine
# Each Tensor holds such a note: the op's name, its parents, and a function that turns the gradient of the result into the
# gradients of the parents.

# %%
a, b = Tensor([2.0], requires_grad=True), Tensor([-3.0], requires_grad=True)
y = (a * b + a) ** 2


def tree(tensor, names=None, indent=""):
    """The graph of a Tensor as indented text: each result, and below it its parents. A parent of two results occurs twice."""
    names = names or {}
    if tensor.node is None:
        kind = "leaf" if tensor.requires_grad else "constant"
        return f"{indent}{names.get(id(tensor), kind)} {list(tensor.shape)}\n"
    lines = f"{indent}{tensor.node.name} -> {list(tensor.shape)}\n"
    return lines + "".join(tree(parent, names, indent + "    ") for parent in tensor.node.parents if parent is not None)


def walk(tensor, seen=None):
    """Every Tensor of the graph once, parents before their results."""
    seen = {} if seen is None else seen
    if id(tensor) not in seen:
        for parent in tensor.node.parents if tensor.node else ():
            if parent is not None:
                walk(parent, seen)
        seen[id(tensor)] = tensor
    return list(seen.values())


def dot(tensor, names=None):
    """The graph as Graphviz text: `dot -Tsvg graph.dot > graph.svg` draws it."""
    names, lines = names or {}, ["digraph {", "    rankdir=BT; node [fontname=sans]"]
    for t in walk(tensor):
        label = t.node.name if t.node else names.get(id(t), "leaf" if t.requires_grad else "constant")
        shape = "ellipse" if t.node else "box"
        lines.append(f'    n{id(t)} [label="{label}\\n{"x".join(map(str, t.shape)) or "scalar"}" shape={shape}]')
        lines += [f"    n{id(parent)} -> n{id(t)}" for parent in (t.node.parents if t.node else ()) if parent is not None]
    return "\n".join([*lines, "}"]) + "\n"


names = {id(a): "a", id(b): "b"}
print(tree(y, names), end="")
(args.out / "graph.dot").write_text(dot(y, names))
print(f"-> {args.out / 'graph.dot'}")
assert tree(y, names) == ("power -> [1]\n    add -> [1]\n        mul -> [1]\n            a [1]\n            b [1]\n"
                          "        a [1]\n")
assert dot(y, names).count(" -> ") == 5                                  # five edges: s-y, p-s, a-s, a-p, b-p

# %%
def draw(tensor, names=None, title=""):
    """The graph as a picture: leaves below, the result on top. Values go up along the edges, gradients go down."""
    names, tensors = names or {}, walk(tensor)
    level, place = {}, {}
    for t in tensors:
        parents = [q for q in (t.node.parents if t.node else ()) if q is not None]
        level[id(t)] = 1 + max((level[id(q)] for q in parents), default=-1)
    for t in reversed(tensors):                                          # a leaf stands just below its first use
        parents = [q for q in (t.node.parents if t.node else ()) if q is not None]
        for q in parents:
            if q.node is None:
                level[id(q)] = min(level[id(q)] if id(q) in place else 10**6, level[id(t)] - 1)
                place[id(q)] = None
    rows = {}
    for t in tensors:
        rows.setdefault(level[id(t)], []).append(t)
    width = max(map(len, rows.values()))
    for n, row in rows.items():
        for k, t in enumerate(row):
            place[id(t)] = ((k + 0.5) * width / len(row), n)
    figure = Figure(figsize=(1.5 * width + 0.6, 0.85 * len(rows) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    frames = {}
    for t in tensors:
        text = t.node.name if t.node else names.get(id(t), "leaf" if t.requires_grad else "constant")
        text += f"\n{t.item():g}" if t.size == 1 else "\n" + " x ".join(map(str, t.shape))
        box = {"boxstyle": "round,pad=0.35" if t.node else "square,pad=0.35", "edgecolor": "#555555",
               "facecolor": "#f6c667" if t.node else "#a6cee9" if t.requires_grad else "white"}
        frames[id(t)] = axes.text(*place[id(t)], text, ha="center", va="center", fontsize=8, bbox=box).get_bbox_patch()
    for t in tensors:
        for q in t.node.parents if t.node else ():
            if q is not None:
                axes.annotate("", place[id(t)], place[id(q)], arrowprops={
                    "arrowstyle": "-|>", "color": "#555555", "patchA": frames[id(q)], "patchB": frames[id(t)], "shrinkB": 3})
    axes.set(xlim=(-0.2, width + 0.2), ylim=(min(rows) - 0.5, max(rows) + 0.5), title=title)
    axes.axis("off")
    return figure


save(draw(y, names, "y = (a b + a)$^2$"), args.out / "graph.png")

y.backward()
print(f"by the engine: y = {y.item()}, dy/da = {a.grad[0]}, dy/db = {b.grad[0]}")
assert (y.item(), a.grad[0], b.grad[0]) == (16, 16, -16)
try:
    y.backward()
except RuntimeError as error:                                            # the first backward has deleted the notes
    print("a second time:", error)
else:
    raise AssertionError("a second backward through a freed graph must fail")

# %% [markdown]
# ## A larger one
# One residual block of ResNet-18 works in the same way, with larger arrays. Because of the shortcut the graph has two ways.

# %%
block = models.resnet18(width=16).layer2[0]
image = Tensor(np.random.default_rng(0).standard_normal((1, 16, 8, 12)).astype(np.float32))
out = block(image)
labels = {id(p): name for name, p in block.named_parameters()} | {id(image): "x"}
save(draw(out, labels, "a residual block"), args.out / "graph_block.png")
print(f"a residual block: {len([t for t in walk(out) if t.node])} operations, {len(list(block.parameters()))} weights")

# %% [markdown]
# ## A check that catches a broken op
# An op has a forward and a backward, and a mistake may make them disagree. `check_vjp` compares them: it moves the input along
# a random direction, and compares the change of the output with the gradient. Here is a square; its backward lacks the 2.

# %%
def broken_square(x):
    return record(x.data**2, (x,), lambda gy: (gy * x.data,), "broken_square")


points = np.random.default_rng(0).standard_normal((2, 3))
print("x * x:         relative error", f"{check_vjp(lambda x: x * x, points).error:.0e}")
try:
    check_vjp(broken_square, points)
except AssertionError as error:
    print("broken_square:", error)
else:
    raise AssertionError("the check must catch the missing factor")

# %% [markdown]
# gy, the gradient that goes into the backward, must be random too. Batch norm removes the mean of its input, so the *sum* of
# its output never changes, and its true gradient for gy = 1 is zero. A backward that always returns zeros would pass every test
# that starts from `y.sum().backward()`. A random gy finds this mistake.

# %%
def batch_norm(x):
    return F.batch_norm(x, np.zeros(3), np.ones(3), training=True)


def lazy_batch_norm(x):
    return record(batch_norm(x.detach()).data, (x,), lambda gy: (np.zeros_like(gy),), "lazy_batch_norm")


maps = np.random.default_rng(1).standard_normal((4, 3, 5, 2))
x = Tensor(maps, requires_grad=True)
batch_norm(x).sum().backward()
print(f"batch norm, gy = 1: the largest true gradient is {abs(x.grad).max():.0e}, so the lazy op's zeros look right")
assert abs(x.grad).max() < 1e-12
print("batch norm:     relative error", f"{check_vjp(batch_norm, maps).error:.0e}")
try:
    check_vjp(lazy_batch_norm, maps)
except AssertionError as error:
    print("lazy_batch_norm:", error)
else:
    raise AssertionError("the check must catch the zeros")

# %% [markdown]
# Several ops in a row can be checked like one op. (A whole network cannot: with ReLU and max-pooling it has thousands of kinks,
# points without a derivative, and a step of 0.0007 always crosses some. There the differences are wrong, not the gradient.)

# %%
def head(x, w, v):
    return F.cross_entropy(F.conv_transpose2d(batch_norm(F.conv2d(x, w, None, 2, 1)), v, None, 2, 1), target, ignore_index=255)


rng = np.random.default_rng(2)
target = rng.integers(0, 3, (2, 12, 16)).astype(np.uint8)
target[:, :3] = 255                                                      # void: no loss, no gradient
error = check_vjp(head, rng.standard_normal((2, 2, 12, 16)), rng.standard_normal((3, 2, 3, 3)),
                  rng.standard_normal((3, 3, 4, 4))).error
print(f"conv, batch norm, transposed conv, cross-entropy: relative error {error:.0e}")
