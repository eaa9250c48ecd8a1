"""A small autograd engine as a subject: a class Tensor that remembers how it was made."""

import numpy as np

from minifcn.grade.subject import Subject

STEP = 1e-30                                    # of the complex step: see oracle.py
LONG = 3000                                     # operations in a row; Python's stack holds about 1,000 calls
SYMBOL = {"add": "+", "sub": "-", "mul": "*", "matmul": "@"}


# A program is a tuple of (op, first, second): values 0, 1, ... are the leaves, then each result gets the next number.

def _evaluate(program, values):
    """All values of a program, by plain operators: on arrays, complex arrays or Tensors."""
    values = list(values)
    for op, p, q in program:
        x, y = values[p], values[q]
        values.append(x + y if op == "add" else x - y if op == "sub" else x * y if op == "mul" else
                      x @ y if op == "matmul" else x.sum())
    return values


def _leaves(arguments):
    return [arguments[name] for name in "abc" if name in arguments]


def _reference(program, gy, again=False, **leaves):
    arrays, out = _leaves(leaves), {}
    y = _evaluate(program, arrays)[-1]
    out["y"] = np.asarray(y)
    for i, (name, a) in enumerate(zip("abc", arrays)):
        g = np.zeros(a.shape)
        for index in np.ndindex(a.shape):
            moved = [b.astype(complex) for b in arrays]
            moved[i][index] += 1j * STEP
            g[index] = (np.asarray(gy) * _evaluate(program, moved)[-1]).sum().imag / STEP
        out["g" + name] = g * (2 if again else 1)
    return out


def _run(tensor, arguments):
    leaves = [tensor(a) for a in _leaves(arguments)]
    for _ in range(2 if arguments.get("again") else 1):
        y = _evaluate(arguments["program"], leaves)[-1]
        y.backward(arguments["gy"])
    grads = [np.zeros_like(leaf.data) if leaf.grad is None else leaf.grad for leaf in leaves]
    return (y.data, *grads)


def _names(count):
    return [*"abc"[:count], *(f"t{i}" for i in range(1, 100))]


def _paste(f, arguments):
    count = len(_leaves(arguments))
    names, program = _names(count), arguments["program"]
    lines = [f"{name} = {f}({name})" for name in names[:count]]
    body = []
    if len(program) >= LONG:
        body = ["t = a + b", f"for _ in range({len(program) - 1}):", "    t = t + b", "t.backward(gy)"]
    else:
        for i, (op, p, q) in enumerate(program):
            right = f"{names[p]}.sum()" if op == "sum" else f"{names[p]} {SYMBOL[op]} {names[q]}"
            body.append(f"{names[count + i]} = {right}")
        body.append(f"{names[count + len(program) - 1]}.backward(gy)")
    if arguments.get("again"):
        body += body
    return [*lines, *body, *(f"print({name}.grad)" for name in names[:count])]


def _case(draw, stage):
    M = draw.integer(1, 3)
    count = draw.integer(1, 3) if stage >= 2 else 2
    leaves = {name: draw.array(M, M) for name in "abc"[:count]}
    ops = ("add", "mul", "sub", "matmul")
    if stage == 0:
        program = ((ops[draw.integer(0, 3)], 0, 1),)
    elif stage == 1:
        program = ((ops[draw.integer(0, 3)], 0, 0), ("add", 2, 1))
    else:
        length = draw.integer(1, 5)
        program = tuple((ops[draw.integer(0, 3)], draw.integer(0, count + i - 1), draw.integer(0, count + i - 1))
                        for i in range(length))
    if stage == 3:
        leaves["a"] = draw.array(*((1, M), (M, 1), (M,), ())[draw.integer(0, 3)])
        program = (("mul", 0, min(1, count - 1)), *((op if op != "matmul" else "mul", p, q) for op, p, q in program[1:]))
    if stage == 4 or stage >= 6 and draw.flag():
        program = (*program, ("sum", count + len(program) - 1, 0))
    again = stage == 5 or stage >= 6 and draw.flag()
    y = np.asarray(_evaluate(program, _leaves(leaves))[-1])
    case = {"program": program, **leaves, "gy": draw.array(*y.shape)}
    return case | ({"again": True} if again else {})


def _long(draw):
    return {"program": (("add", 0, 1), *(("add", i + 2, 1) for i in range(LONG - 1))),
            "a": np.ones((1, 1)), "b": np.ones((1, 1)), "gy": np.ones((1, 1))}


def _long_reference():
    return {"y": np.full((1, 1), 1.0 + LONG), "ga": np.ones((1, 1)), "gb": np.full((1, 1), float(LONG))}


def _explain(a, output, index):
    names, program = _names(len(_leaves(a))), a["program"]
    if output == "y" or len(program) >= LONG:
        return []
    leaf = "abc".index(output[1])
    uses = [f"{names[len(_leaves(a)) + i]} = {names[p]} {SYMBOL.get(op, op)} {names[q]}"
            for i, (op, p, q) in enumerate(program) if leaf in (p, q)]
    times = sum((p == leaf) + (q == leaf and op != "sum") for op, p, q in program)
    return [f"{output[1]} is used {times} times: {'; '.join(uses[:4]) or 'nowhere, so its gradient is 0'}",
            "its gradient is the sum over all uses, each by the product rule, times what arrived from above",
            f"{output}[{','.join(map(str, index))}] = {_reference(**a)[output][index]:g}"]


Tensor = Subject(
    name="Tensor",
    signature="data",
    text="""A small engine for reverse-mode differentiation: arrays that remember how they were made.

class Tensor:
    Tensor(array)          a leaf; .data is the array, .grad is None until a backward() reached it
    a + b, a - b, a * b    element by element, with NumPy's broadcasting
    a @ b                  the product of two matrices
    a.sum()                of all elements
    y.backward(gy)         adds the gradient of <gy, y> to the .grad of every leaf; gy: an array of y's shape

With gradient gy of y:  add: gy, gy.  sub: gy, -gy.  mul: gy*b, gy*a.  matmul: gy b^T, a^T gy.  sum: gy everywhere.
A Tensor that is used twice gets the sum of both gradients. What was broadcast is summed back to the leaf's shape.""",
    outputs=("y", "ga", "gb", "gc"),
    reference=_reference,
    case=_case,
    stages=(("loop oracle", "one operation: its vector-Jacobian product (the oracle differentiates by the complex step)"),
            ("used twice", "a + a moves by 2 when a moves by 1: the gradients of all uses add up, none overwrites another"),
            ("graphs", "an operation may only go on when the gradients of all its uses have arrived: newest first"),
            ("broadcasting", "a value that was copied to many places gets the sum of their gradients"),
            ("sum", "every element moves the sum by 1"),
            ("two backwards", "a second forward and backward adds to .grad; only the reader sets it back"),
            ("everything", "the rules compose")),
    example=({"program": (("mul", 0, 0), ("add", 1, 0)), "a": np.array([[3.0]]), "gy": np.array([[1.0]])},
             {"y": [[12]], "ga": [[7]]}),
    explain=_explain,
    run=_run,
    paste=_paste,
    slack=1e4,
    empty=False,
    extra_levels=(("a long chain", f"{LONG} operations in a row: walk the graph with a loop, not by recursion", _long,
                   _long_reference),),
    hints=("Each result keeps its parents and one function gy -> their gradients; backward goes from the newest to the oldest.",
           "A heap, or a topological order, of the results; a dict of the gradients that wait; leaves add theirs to .grad. "
           "Sum a gradient over the axes that were broadcast.",
           "minifcn/core/tensor.py: record, Tensor.backward; minifcn/functional/basic.py: unbroadcast"),
)

SUBJECTS = (Tensor,)
