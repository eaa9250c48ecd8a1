#!/usr/bin/env bash
# onnxruntime's MaxPool, ReduceMax and ArgMax see a NaN or not by the place where it stands, and do not agree with each other.
#
# A 2 x 2 window gives NaN if its last number is NaN, and else the largest number. ReduceMax gives NaN if the first number is
# NaN. ArgMax of eight numbers names the place of a NaN of which ReduceMax says nothing. PyTorch gives NaN, and its place, for
# all of these. So one NaN in a map of scores shows as a class, as a NaN or not at all, by where it stands.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/env/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
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


print(f"onnxruntime {onnxruntime.__version__}")
pooled = []
for at in range(4):
    x = np.array([0, 1, 2, 3], np.float32)
    x[at] = np.nan
    x = x.reshape(1, 1, 2, 2)
    made = model("MaxPool", [x], [(TensorProto.FLOAT, (1, 1, 1, 1))], kernel_shape=[2, 2])
    pooled.append(in_onnxruntime(made, [x])[0].item())
    print(f"MaxPool of {x.ravel()}: {pooled[-1]}")
reduced, chosen = [], []
for at in (0, 4, 7):
    x = np.arange(8, dtype=np.float32)
    x[at] = np.nan
    reduced.append(in_onnxruntime(model("ReduceMax", [x], [(TensorProto.FLOAT, (1,))]), [x])[0].item())
    chosen.append(in_onnxruntime(model("ArgMax", [x], [(TensorProto.INT64, (1,))], axis=0), [x])[0].item())
    print(f"eight numbers, NaN at {at}: ReduceMax {reduced[-1]}, ArgMax {chosen[-1]}")
assert not np.isnan(pooled[:3]).any() and np.isnan(pooled[3]), "the behaviour has changed"
assert np.isnan(reduced[0]) and reduced[1:] == [7, 6] and chosen == [0, 4, 6], "the behaviour has changed"
PY
