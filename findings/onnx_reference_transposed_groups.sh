#!/usr/bin/env bash
# onnx's reference evaluator adds the first group's bias to every group of a ConvTranspose.
#
# With one output channel a group (the depthwise kind, which enlarges every class's map by its own kernel) it answers without
# a word, and the channels of all groups get the bias of channel 0. With more channels a group it raises instead. onnxruntime
# computes the same file right.
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


x = np.arange(1, 5, dtype=np.float32).reshape(1, 2, 1, 2)
w, b = np.ones((2, 1, 1, 1), np.float32), np.array([10, 20], np.float32)
inputs = [x, w, b]
made = model("ConvTranspose", inputs, [(TensorProto.FLOAT, (1, 2, 1, 2))], group=2)
right = x + b[:, None, None]
theirs, runtime = ReferenceEvaluator(made).run(None, feed(inputs))[0], in_onnxruntime(made, inputs)[0]
print(f"onnx {onnx.__version__}: right {right.ravel()}, onnxruntime {runtime.ravel()}, reference {theirs.ravel()}")
assert np.array_equal(runtime, right)
assert np.array_equal(theirs, x + b[0]), "the behaviour has changed"

w, b = np.ones((2, 2, 1, 1), np.float32), np.array([10, 20, 30, 40], np.float32)      # two output channels a group
made = model("ConvTranspose", [x, w, b], [(TensorProto.FLOAT, (1, 4, 1, 2))], group=2)
print(f"two channels a group, onnxruntime: {in_onnxruntime(made, [x, w, b])[0].ravel()}")
try:
    ReferenceEvaluator(made).run(None, feed([x, w, b]))
except ValueError as error:
    print(f"two channels a group, reference: ValueError: {error}")
else:
    raise SystemExit("the behaviour has changed")
PY
