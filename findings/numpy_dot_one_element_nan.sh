#!/usr/bin/env bash
# np.dot, and np.tensordot, which calls it, lose a NaN where one factor is a matrix of a single 0: 0 * NaN is 0 there.
#
# A factor with one element goes to BLAS's axpy as a scalar, and axpy with the scalar 0 does nothing. The operator @, einsum and
# the elementwise product of the same arrays give NaN, and so does np.dot of larger zeros. A convolution with one channel and
# one filter, written with tensordot, so hides a NaN or an infinity behind a weight of 0, and only there.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import numpy as np

print(f"NumPy {np.__version__}, {np.show_config(mode='dicts')['Build Dependencies']['blas']['name']}")
w, x = np.array([[0.0]]), np.array([[1.0, np.nan, np.inf]])
results = {"np.dot(w, x)": np.dot(w, x), "np.tensordot(w, x, 1)": np.tensordot(w, x, 1), "w @ x": w @ x,
           "np.einsum": np.einsum("ij,jk->ik", w, x), "np.dot of two zeros": np.dot(np.zeros((1, 2)), np.repeat(x, 2, axis=0))}
for what, y in results.items():
    print(f"{what:<22} {y.tolist()}")
assert not np.isnan(results["np.dot(w, x)"]).any() and not np.isnan(results["np.tensordot(w, x, 1)"]).any(), "it has changed"
assert all(np.isnan(results[what][0, 1:]).all() for what in ("w @ x", "np.einsum", "np.dot of two zeros"))
PY
