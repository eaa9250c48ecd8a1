"""Names of torch that minifcn does not have, and what to use instead. The AttributeError for such a name says it."""

from __future__ import annotations

INSTEAD = {
    "Tensor": {
        "cuda": 'x.to("gpu")', "numel": "x.size", "dim": "x.ndim", "tolist": "x.numpy().tolist()", "is_leaf": "x.node is None",
        "float": 'x.to("float32")', "double": 'x.to("float64")', "half": "float32", "int": "x.long()",
        "requires_grad_": "x.requires_grad = True", "detach_": "x.detach()", "retain_grad": "a leaf at that point",
        "register_hook": "backward(on_leaf=...)", "contiguous": "nothing: any memory order will do",
        "expand": "broadcasting: operators do it by themselves", "repeat": "F.concatenate([x, x])",
        "var": "((x - x.mean()) ** 2).mean()", "add_": "x += y", "sub_": "x -= y", "mul_": "x *= y", "div_": "x /= y",
        "normal_": "x.data[...] = generator.standard_normal(x.shape)", "uniform_": "x.data[...] = generator.random(x.shape)",
        "new_zeros": "Tensor(np.zeros(...))", "type": "x.to(dtype)", "pow": "x ** p", "matmul": "x @ y", "t": "x.T",
    },
    "Module": {
        "cuda": 'net.to("gpu")', "cpu": 'net.to("cpu")', "float": 'net.to("float32")', "double": 'net.to("float64")',
        "half": "float32", "register_buffer": "self.name = ndarray", "register_parameter": "self.name = nn.Parameter(...)",
        "requires_grad_": "p.requires_grad = False for each parameter", "apply": "for m in net.modules(): ...",
        "register_forward_hook": "minifcn.nn.summary, which watches the layers", "weight": "a layer that has one",
    },
    "minifcn.nn": {
        "functional": "minifcn.functional", "DataParallel": "mpiexec -n 2 minifcn train",
        "BCEWithLogitsLoss": "CrossEntropyLoss", "NLLLoss": "CrossEntropyLoss", "MSELoss": "((a - b) ** 2).mean()",
        "ZeroPad2d": "F.pad", "Softmax": "F.softmax(x, 1)", "LogSoftmax": "F.log_softmax(x, 1)",
        "UpsamplingBilinear2d": "Upsample(mode='bilinear', align_corners=True)", "Dropout2d": "Dropout",
        "BatchNorm1d": "F.batch_norm", "ModuleDict": "one attribute each", "ParameterList": "one attribute each",
        "Unflatten": "x.reshape", "utils": "minifcn.training",
    },
    "minifcn.book": {
        "cuda": 'try_all_gpus() and x.to("gpu")', "device": 'the words "cpu" and "gpu"', "autograd": "Tensor.backward",
        "save": "np.savez(file, **net.state_dict())", "load": "minifcn.files.weights.load_state(file)",
        "utils": "minifcn.data.Loader", "float16": "float32", "bfloat16": "float32", "half": "float32",
        "einsum": "matmul, reshape and permute", "from_numpy": "Tensor(array)", "compile": "the network as it is",
    },
}


def absent(kind: str, name: str, owner: str | None = None) -> AttributeError:
    """The AttributeError for a name that is missing. kind: a key of INSTEAD. owner: whose name is missing; None: the kind's.

    If INSTEAD has the name, the message says what to use instead.
    """
    hint = f"; in place of torch's use {INSTEAD[kind][name]}" if name in INSTEAD[kind] else ""
    return AttributeError(f"{owner or kind} has no {name!r}{hint}")
