#!/usr/bin/env bash
# OpenVINO's MaxPool with ceil_mode adds a column of -3.4e38 where the last window would lie wholly in the padding.
#
# PyTorch leaves out such a window, and so do onnxruntime and ONNX's text ("sliding windows that would start in the right
# padded region are ignored"). OpenVINO's output is one column (or row) larger, and the lowest float32 stands there as if it
# were a maximum. Later layers then do not fit, or the number spreads.
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


print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, OpenVINO {openvino.__version__}")
for W, k, s, p, extra in ((7, 2, 3, 0, False), (4, 1, 2, 0, True), (5, 2, 3, 1, True)):
    x = np.arange(1, W + 1, dtype=np.float32).reshape(1, 1, 1, W)
    made = model("MaxPool", [x], [(TensorProto.FLOAT, (1, 1, 1, "O"))], kernel_shape=[1, k], strides=[1, s], pads=[0, p, 0, p],
                 ceil_mode=1)
    runtime, theirs = in_onnxruntime(made, [x])[0].ravel(), in_openvino(made, [x])[0].ravel()
    print(f"width {W}, kernel {k}, stride {s}, padding {p}: onnxruntime {runtime}, OpenVINO {theirs}")
    assert np.array_equal(theirs[:len(runtime)], runtime)
    more = theirs[len(runtime):]
    assert (len(more) == 1 and more[0] == np.finfo(np.float32).min) if extra else len(more) == 0, "the behaviour has changed"
PY
