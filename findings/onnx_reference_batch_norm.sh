#!/usr/bin/env bash
# onnx's reference evaluator computes BatchNormalization of opset 9 to 13 with statistics of the batch mixed in.
#
# In these versions the operator has one output in test mode, and "the running mean and variance are used" (its specification).
# ReferenceEvaluator moves them first, mean = 0.9 mean + 0.1 mean of the batch, and normalises with what comes out: a network
# exported with opset 13 seems to be wrong, and the other images of a batch change the result, while onnxruntime computes the
# same file right. From opset 14 on the evaluator is right, too. Folding batch norm into the convolutions avoids the question.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
rng = np.random.default_rng(0)
x = (rng.standard_normal((2, 3, 4, 4)) * 3 + 5).astype(np.float32)
scale, bias, mean = (rng.standard_normal(3).astype(np.float32) for _ in range(3))
var = rng.uniform(0.5, 2, 3).astype(np.float32)


def normalised(mean, var):
    c = (slice(None), None, None)
    return (x - mean[c]) / np.sqrt(var[c] + 1e-5) * scale[c] + bias[c]


right = normalised(mean, var)
mixed = normalised(0.9 * mean + 0.1 * x.mean((0, 2, 3)), 0.9 * var + 0.1 * x.var((0, 2, 3)))
for opset in (9, 13, 14):
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("BatchNormalization", list("xsbmv"), ["y"])], "g",
                              [value("x", TensorProto.FLOAT, x.shape)], [value("y", TensorProto.FLOAT, x.shape)],
                              [numpy_helper.from_array(a, n) for a, n in zip((scale, bias, mean, var), "sbmv")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    theirs = ReferenceEvaluator(model).run(None, {"x": x})[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runtime = session.run(None, {"x": x})[0]
    print(f"opset {opset}: reference is off by {abs(theirs - right).max():.1e}, onnxruntime by {abs(runtime - right).max():.1e}")
    assert np.allclose(runtime, right, atol=1e-4)
    assert np.allclose(theirs, right if opset == 14 else mixed, atol=1e-4), "the behaviour has changed"
PY
