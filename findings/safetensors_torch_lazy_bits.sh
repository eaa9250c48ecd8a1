#!/usr/bin/env bash
# safetensors.torch drops the bits by which PyTorch conjugates and negates lazily: the file holds other numbers, and nothing is said.
#
# z.conj() only sets a bit; the memory stays as it was. The imaginary part of such a tensor carries a "negative" bit. PyTorch's
# operations honour both, torch.save stores them, tensor.numpy() refuses them; safetensors reads the memory. So z.conj() is
# saved as z, and a real weight such as z.conj().imag (of one element, hence contiguous) with the wrong sign.
# tensor.resolve_conj() or .resolve_neg() before saving mends it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6 torch==2.13.0
"$folder/env/bin/python" - <<'PY'
import safetensors
import torch
from safetensors.torch import load, save

print(f"safetensors {safetensors.__version__}, PyTorch {torch.__version__}")
z = torch.tensor([1 + 2j, 3 - 4j])
for what, tensor in (("conjugated", z.conj()), ("negated", z[:1].conj().imag)):
    back = load(save({"w": tensor}))["w"]
    print(f"{what}: saved {tensor.tolist()}, loaded {back.tolist()}; resolved first: "
          f"{load(save({'w': tensor.resolve_conj().resolve_neg()}))['w'].tolist()}")
    assert not torch.equal(back, tensor), "the behaviour has changed: the bit is honoured"
PY
