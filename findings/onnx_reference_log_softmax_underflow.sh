#!/usr/bin/env bash
# onnx's reference evaluator gives LogSoftmax as log(softmax): minus infinity, where the answer is -200.
#
# A confident network has logits that are so far apart, and a loss taken from this answer is infinite. onnxruntime subtracts
# the logarithm of the sum and is right. On random weights, whose logits are small, the two agree.
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


x = np.array([[0, 20, 200]], np.float32)
made = model("LogSoftmax", [x], [(TensorProto.FLOAT, x.shape)], axis=1)
theirs, runtime = ReferenceEvaluator(made).run(None, feed([x]))[0], in_onnxruntime(made, [x])[0]
print(f"onnx {onnx.__version__}: logits {x.ravel()}, onnxruntime {runtime.ravel()}, reference {theirs.ravel()}")
assert np.array_equal(runtime, [[-200, -180, 0]])
assert np.array_equal(theirs, [[-np.inf, -np.inf, 0]]), "the behaviour has changed"
PY
