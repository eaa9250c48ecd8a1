#!/usr/bin/env bash
# safetensors.numpy writes an array that is not C-contiguous as other numbers, without an error or a warning.
#
# Of a Fortran-ordered array it writes the memory as it lies, and of a[::2] the first elements of `a`; the header has the right
# shape, so the file loads. Weights that were transposed on the way (a.T, np.asfortranarray, what MATLAB or a BLAS returned) are
# scrambled (0.7.0 was right; the project's issue 825). safetensors.torch refuses the same tensor as "non contiguous". np.ascontiguousarray before saving mends it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import load, save

print(f"safetensors {safetensors.__version__}, NumPy {np.__version__}")
wrong = 0
for what, array in (("Fortran order", np.asfortranarray(np.arange(6.0).reshape(2, 3))),
                    ("every second", np.arange(12.0)[::2]),
                    ("C order", np.arange(6.0).reshape(2, 3))):
    back = load(save({"w": array}))["w"]
    wrong += not np.array_equal(back, array)
    print(f"{what}: saved {array.tolist()}, loaded {back.tolist()}")
assert wrong == 2, "the behaviour has changed"
PY
