#!/usr/bin/env bash
# onnx's reference evaluator returns wrong Indices from a MaxPool of stride 1.
#
# The maxima are right. Their Indices, by which a MaxUnpool puts the numbers back, are right for stride 2 and wrong for stride
# 1, with padding or without. onnxruntime agrees with the definition: the place in the flattened input at which the maximum
# stands.
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


x = np.random.default_rng(0).permutation(24).astype(np.float32).reshape(1, 1, 4, 6)
place = {number: at for at, number in enumerate(x.ravel())}                    # every number occurs once
for k, s, p in ((2, 2, 0), (3, 2, 1), (2, 1, 0), (3, 1, 1)):
    OH, OW = (4 + 2 * p - k) // s + 1, (6 + 2 * p - k) // s + 1
    made = model("MaxPool", [x], [(TensorProto.FLOAT, (1, 1, OH, OW)), (TensorProto.INT64, (1, 1, OH, OW))],
                 kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)
    runtime, theirs = in_onnxruntime(made, [x]), ReferenceEvaluator(made).run(None, feed([x]))
    right = np.vectorize(place.get)(runtime[0])
    wrong = int((theirs[1] != right).sum())
    print(f"onnx {onnx.__version__}, kernel {k}, stride {s}, padding {p}: {wrong} of {right.size} indices wrong")
    assert np.array_equal(theirs[0], runtime[0]) and np.array_equal(runtime[1], right)
    assert (wrong > 0) == (s == 1), "the behaviour has changed"
PY
