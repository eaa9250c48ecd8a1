#!/usr/bin/env bash
# OpenVINO on an x86 processor turns NaN into numbers: ReLU and Max with 0 make it 0, Softmax makes its neighbours 0.
#
# A network whose weights or pictures hold a NaN then answers with ordinary maps, all in [0, 1] after a softmax, where PyTorch
# and onnxruntime answer NaN and show the fault. Sigmoid, LeakyRelu and Abs keep NaN there, too: whether the fault shows
# depends on the activation. Look for NaN before OpenVINO gets the file, not behind it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
"$folder/env/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

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


def in_openvino(made, inputs):
    compiled = openvino.Core().compile_model(openvino.Core().read_model(made.SerializeToString(), b""), "CPU",
                                             {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(y) for y in compiled(feed(inputs)).values()]


x = np.array([[1, np.nan, -2, 3]], np.float32)
print(f"onnxruntime {onnxruntime.__version__}, OpenVINO {openvino.__version__}, input {x.ravel()}")
seen = {}
for op, inputs in (("Relu", [x]), ("Max", [x, np.zeros_like(x)]), ("Softmax", [x]), ("Sigmoid", [x]), ("LeakyRelu", [x])):
    made = model(op, inputs, [(TensorProto.FLOAT, x.shape)])
    runtime, seen[op] = in_onnxruntime(made, inputs)[0].ravel(), in_openvino(made, inputs)[0].ravel()
    print(f"{op:<10} onnxruntime {runtime}, OpenVINO {seen[op]}")
    assert np.isnan(runtime[1])
assert seen["Relu"][1] == 0 and seen["Max"][1] == 0, "the behaviour has changed"
assert np.isnan(seen["Softmax"][1]) and (seen["Softmax"][[0, 2, 3]] == 0).all(), "the behaviour has changed"
assert np.isnan(seen["Sigmoid"][1]) and np.isnan(seen["LeakyRelu"][1]), "the behaviour has changed"
PY
