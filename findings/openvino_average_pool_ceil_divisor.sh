#!/usr/bin/env bash
# OpenVINO's AveragePool with ceil_mode and count_include_pad divides the last window by too much.
#
# A window that reaches beyond the right padding (only ceil_mode makes one) is divided by its whole size there; PyTorch and
# onnxruntime count the padding, but nothing beyond it: (6 + 0) / 2 = 3 for the last window of 6 columns, not 6 / 3 = 2.
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


x = np.arange(1, 7, dtype=np.float32).reshape(1, 1, 1, 6)                      # padded: 0 1 2 3 4 5 6 0; windows at 0, 2, 4, 6
made = model("AveragePool", [x], [(TensorProto.FLOAT, (1, 1, 1, 4))], kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1],
             ceil_mode=1, count_include_pad=1)
runtime, theirs = in_onnxruntime(made, [x])[0].ravel(), in_openvino(made, [x])[0].ravel()
print(f"onnxruntime {onnxruntime.__version__}: {runtime}; OpenVINO {openvino.__version__}: {theirs}")
assert np.allclose(runtime, [1, 3, 5, 3])
assert np.allclose(theirs, [1, 3, 5, 2]), "the behaviour has changed"
PY
