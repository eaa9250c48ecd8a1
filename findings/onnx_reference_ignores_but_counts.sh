#!/usr/bin/env bash
# onnx's reference evaluator divides a mean loss by the ignored pixels, too, where ignore_index is -1.
#
# NegativeLogLikelihoodLoss with reduction="mean" divides by the number of targets that are not ignored, and for ignore_index
# = 255 the evaluator does so. For -1, a common label for "void" and the number that its code also uses for "none given", it
# divides by the number of all pixels: a picture with more void has a smaller loss.
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


rng = np.random.default_rng(0)
log_p = np.log(rng.dirichlet(np.ones(3), (1, 4)).transpose(0, 2, 1)).astype(np.float32)         # (N, classes, positions)
for ignored in (255, -1):
    target = np.array([[0, 2, ignored, ignored]])
    made = model("NegativeLogLikelihoodLoss", [log_p, target], [(TensorProto.FLOAT, ())], ignore_index=ignored)
    total = -(log_p[0, 0, 0] + log_p[0, 2, 1])
    theirs = ReferenceEvaluator(made).run(None, feed([log_p, target]))[0]
    runtime = in_onnxruntime(made, [log_p, target])[0]
    print(f"onnx {onnx.__version__}, ignore_index {ignored}: sum of 2 of 4 pixels {total:.4f}, onnxruntime {runtime:.4f}, "
          f"reference {theirs:.4f}")
    assert np.isclose(runtime, total / 2)
    assert np.isclose(theirs, total / (4 if ignored == -1 else 2)), "the behaviour has changed"
PY
