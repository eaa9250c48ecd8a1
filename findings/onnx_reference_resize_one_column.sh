#!/usr/bin/env bash
# onnx's reference evaluator puts one column of some linear enlargements one pixel too far to the left: 10 -> 14, 15 -> 21, 60
# -> 44.
#
# Such an output lies on the centre of an input pixel, but its computed place is 6.999999999999999. The weights are taken from
# this number and the neighbours from it plus a margin, which rounds to 8: the weights of one pair of pixels meet the next
# pair. Rows and columns are hit alike, by one whole pixel. onnxruntime agrees with the formula. Compare an export at several
# sizes, not at one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/env/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

def model(op, inputs, outputs, opset=21, **attributes):
    """A checked model of one node. inputs: arrays; outputs: (element type, shape) each."""
    value = helper.make_tensor_value_info
    node = helper.make_node(op, [f"x{i}" for i in range(len(inputs))], [f"y{i}" for i in range(len(outputs))], **attributes)
    graph = helper.make_graph([node], "g",
                              [value(f"x{i}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for i, a in enumerate(inputs)],
                              [value(f"y{i}", t, s) for i, (t, s) in enumerate(outputs)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def feed(inputs):
    return {f"x{i}": a for i, a in enumerate(inputs)}


def in_onnxruntime(made, inputs):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed(inputs))


def enlarged(x, O):
    """Linear, by centres of pixels: output o lies at (o + 1/2) I / O - 1/2, and the border is repeated."""
    at = np.clip((np.arange(O) + 0.5) * len(x) / O - 0.5, 0, len(x) - 1)
    return np.interp(at, np.arange(len(x)), x)


for I, O, column in ((10, 15, None), (10, 14, 10), (15, 21, 10), (60, 44, 5)):
    x = np.arange(I, dtype=np.float32).reshape(1, 1, 1, I)
    node = helper.make_node("Resize", ["x0", "", "", "x1"], ["y0"], mode="linear", coordinate_transformation_mode="half_pixel")
    value, sizes = helper.make_tensor_value_info, np.array([1, 1, 1, O])
    graph = helper.make_graph([node], "g", [value("x0", TensorProto.FLOAT, x.shape), value("x1", TensorProto.INT64, (4,))],
                              [value("y0", TensorProto.FLOAT, (1, 1, 1, "O"))])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    right = enlarged(x.ravel(), O)
    off = right - ReferenceEvaluator(made).run(None, feed([x, sizes]))[0].ravel()
    runtime = np.abs(in_onnxruntime(made, [x, sizes])[0].ravel() - right).max()
    wrong = np.flatnonzero(np.abs(off) > 1e-3)
    print(f"onnx {onnx.__version__}, {I} -> {O}: onnxruntime is off by {runtime:.0e}, reference at {wrong} by {off[wrong]}")
    assert runtime < 1e-4
    assert list(wrong) == ([] if column is None else [column]) and np.allclose(off[wrong], 1), "the behaviour has changed"
PY
