#!/usr/bin/env bash
# OpenVINO answers MaxPool's storage_order = 1 with row-major Indices, laid out as the transposed map.
#
# storage_order asks for Indices that count down the columns; the map of them keeps its shape. onnxruntime does that. In
# OpenVINO the numbers still count along the rows, and their order in memory is that of the transposed map. The maxima are
# right.
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


x = np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)                        # the maximum of a window is its last number
made = model("MaxPool", [x], [(TensorProto.FLOAT, (1, 1, 2, 3)), (TensorProto.INT64, (1, 1, 2, 3))], kernel_shape=[2, 2],
             strides=[2, 2], storage_order=1)
h, w = np.array([1, 3])[:, None], np.array([1, 3, 5])                          # where the maxima stand
runtime, theirs = in_onnxruntime(made, [x]), in_openvino(made, [x])
print(f"onnxruntime {onnxruntime.__version__}: {runtime[1].ravel()}; OpenVINO {openvino.__version__}: {theirs[1].ravel()}")
assert np.array_equal(theirs[0].ravel(), runtime[0].ravel())
assert np.array_equal(runtime[1][0, 0], w * 4 + h)
assert np.array_equal(theirs[1].ravel(), (h * 6 + w).T.ravel()), "the behaviour has changed"
PY
