"""For a file that weights.py cannot read: what kind of file it is, and how to make one that can be read.

Sources: the first bytes of files written by the programs named here.
"""

import os
import re

JOIN = ("join them: safetensors.torch.save_file({name: tensor for part in PARTS for name, tensor in "
        "safetensors.torch.load_file(part).items()}, 'weights.safetensors')")
TORCH = "torch.save(net.state_dict(), 'weights.pth')"

# (bytes, where they stand, what the file is, what to do)
SIGNATURES = [
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", 0, "MXNet's .params", "np.savez('weights.npz', **{name.split(':')[-1]: "
     "array.asnumpy() for name, array in mx.nd.load(FILE).items()}), with torchvision's names"),
    (b"\x89HDF\r\n\x1a\n", 0, "HDF5, as Keras writes .h5", "np.savez('weights.npz', ...) of its arrays, transposed to "
     "(filters, channels, height, width), with torchvision's names"),
    (b"\x93NUMPY", 0, "a single .npy array", "np.savez('weights.npz', **{name: array, ...}) with torchvision's names"),
    (b"TFL3", 4, "TensorFlow Lite", "save the network that it was made from"),
    (b"GGUF", 0, "GGUF", "save the network that it was made from"),
    (b"\x1f\x8b", 0, "gzip", "unpack it first"),
    (b"BZh", 0, "bzip2", "unpack it first"),
    (b"\xfd7zXZ", 0, "xz", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", 0, "7-Zip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", 0, "zstandard", "unpack it first"),
    *((b"\x78" + level, 0, "zlib, as joblib.dump(compress=True) writes",
       "np.savez('weights.npz', **joblib.load(FILE))   # it may run what the file says")
      for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
    (b"ustar", 257, "a tar archive, as PyTorch 0.1 and Keras-like tools write", "unpack it first, or with PyTorch: "
     "torch.save(torch.load(FILE, weights_only=False), 'weights.pth')"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the file", "git lfs pull"),
]
JOBLIB, PADDLE = b"joblib", b"StructuredToParameterName@@"


def foreign(start, path):
    """What kind of file it is, for a file of a format that is not read. start: its first 512 bytes or fewer."""
    if not start:
        return "neither a zip archive (.pth, .npz) nor a .safetensors file: it is empty"
    for signature, where, what, remedy in SIGNATURES:
        if start[where:where + len(signature)] == signature:
            return f"is {what}, which is not read; convert it: {remedy}"
    if start[:1] == b"\x80" and start[1:2] in b"\x00\x01\x02\x03\x04\x05":
        return bare_pickle(start, path)
    if start.lstrip()[:1] == b"{":
        if b'"weight_map"' in start or str(path).endswith(".index.json"):
            return f"is the index of weights in several files, not the weights; {JOIN}"
        return "neither a zip archive (.pth, .npz) nor a .safetensors file, but JSON"
    if start.lstrip()[:1] == b"<":
        return "neither a zip archive (.pth, .npz) nor a .safetensors file, but a web page or XML: download it again"
    if str(path).endswith(".onnx"):
        return "is an ONNX graph, which is not read; np.savez('weights.npz', ...) of its initializers, with torchvision's names"
    return "neither a zip archive (.pth, .npz) nor a .safetensors file"


def bare_pickle(start, path):
    """A pickle that does not begin with torch's magic number."""
    if JOBLIB in start:
        return ("is a pickle of joblib, which is not read; convert it: np.savez('weights.npz', **joblib.load(FILE))"
                "   # it may run what the file says")
    if PADDLE in start or str(path).endswith((".pdparams", ".pdopt", ".pdmodel")):
        return ("is a pickle of Paddle, which is not read; convert it: np.savez('weights.npz', **{name: tensor.numpy() "
                "for name, tensor in paddle.load(FILE).items()}), with torchvision's names")
    return ("is a bare pickle without torch's magic number, so not PyTorch's (Paddle's .pdparams are such pickles, and any "
            "pickle.dump); it is not read. If you trust it, and it is a dict name -> array: "
            "np.savez('weights.npz', **pickle.load(open(FILE, 'rb')))")


def part(path):
    """What kind of file it is, if its name says that it holds only a part of the weights; else None."""
    if str(path).endswith(".distcp") or os.path.exists(os.path.join(path, ".metadata")):
        return ("is (a part of) a distributed checkpoint, which is not read; join it: python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth")
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.\w+$", str(path)):
        return f"is one of several files that hold the weights together; {JOIN}"
    return None


def foreign_zip(names):
    """What kind of zip archive has these entries, if it is a known kind that is not read; else None."""
    tails = {name.split("/", 1)[-1] for name in names}
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return f"is a TorchScript archive, which is not read; convert it: net = torch.jit.load(FILE); {TORCH}"
    if tails & {"archive_format", "serialized_exported_program.json", "models/model.json"}:
        return ("is an exported program (.pt2), which is not read; convert it: torch.save(torch.export.load(FILE).state_dict, "
                "'weights.pth')")
    if "model.weights.h5" in names:
        return ("is a Keras archive, which is not read; np.savez('weights.npz', ...) of its arrays, transposed to "
                "(filters, channels, height, width), with torchvision's names")
    return None
