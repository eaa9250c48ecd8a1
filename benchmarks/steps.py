"""The whole network, ours and that of its peers, as functions without arguments that run one training step or one inference.

    fast, readable         minifcn with and without its fast path
    eager, eager-last      PyTorch as it comes, in its two memory layouts (N, C, H, W) and channels last
    compile                torch.compile of the channels-last network
    bf16                   eager, channels last, under autocast to bfloat16. It is less precise, so no ratio is taken to it
    onnxruntime, openvino  inference alone, from the file that `minifcn export` writes
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np

from minifcn import Tensor, models, nn, no_grad
from minifcn.core.dispatch import readable_only
from minifcn.core.machine import cores
from minifcn.training import SGD

OURS = ("fast", "readable")
PEERS = {"eager": ("eager", "eager-last"), "compile": ("compile",), "bf16": ("bf16",), "onnxruntime": ("onnxruntime",),
         "openvino": ("openvino",)}             # what --peers names -> the kinds that it brings
SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


def missing(peer):
    """Why a peer cannot be measured here, or None."""
    package = {"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(peer, "torch")
    for name in (package, "onnx") if package != "torch" else (package,):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if peer == "bf16":
        import torch
        if not any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name):
            return "this CPU has no bfloat16, and PyTorch emulates it in ten times the time of float32"
    if peer == "compile":
        import torch
        try:
            torch.compile(lambda x: x * 2 + 1)(torch.ones(64))
        except Exception as error:              # whatever its back end lacks here, a compiler as a rule
            return f"torch.compile fails: {str(error).splitlines()[0][:80]}"
    return None


def compared(kind):
    """True if a kind computes the same numbers in float32, so that a ratio to it makes sense."""
    return kind not in (*OURS, "bf16")


def trains(kind):
    return kind not in ("onnxruntime", "openvino")


def initial(model=models.fcn32s):
    """A network with the weights that all start from."""
    nn.init.seed(0)
    return model()


def training(kind, images, labels, model=models.fcn32s):
    """A function that makes one step of SGD and returns the loss. images: float32 (N, 3, H, W); labels: (N, H, W)."""
    net = initial(model)
    if kind in OURS:
        optimizer = SGD(net.parameters(), **SETTINGS)

        def step():
            loss, _, valid = net.loss(images, labels, ignore_index=255)
            mean = loss / float(valid)
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            return mean.item()

        return step if kind == "fast" else readable(step)
    import torch

    from benchmarks import torch_fcn
    net, x = _in_torch(kind, net, images)
    t, optimizer = torch.from_numpy(labels.astype(np.int64)), torch.optim.SGD(net.parameters(), **SETTINGS)
    return autocast(kind, lambda: torch_fcn.train_step(net, optimizer, x, t))


def inference(kind, images):
    """A function that computes the logits in eval mode, without history."""
    net = initial().eval()
    if kind in OURS:
        def infer():
            with no_grad():
                return net(Tensor(images)).data

        return infer if kind == "fast" else readable(infer)
    if kind in ("onnxruntime", "openvino"):
        return _runtime(kind, net, images)
    import torch
    net, x = _in_torch(kind, net, images)
    net.eval()
    return autocast(kind, torch.no_grad()(lambda: net(x).float().numpy()))


def readable(function):
    """The same function on the definitions alone."""
    def call():
        with readable_only():
            return function()

    return call


def autocast(kind, function):
    """The same function, under autocast to bfloat16 for "bf16"."""
    if kind != "bf16":
        return function
    import torch
    return torch.autocast("cpu", torch.bfloat16)(function)


def _in_torch(kind, net, images):
    import torch

    from benchmarks import torch_fcn
    layout = torch.contiguous_format if kind == "eager" else torch.channels_last
    theirs = torch_fcn.with_weights(net.state_dict()).to(memory_format=layout)
    return torch.compile(theirs) if kind == "compile" else theirs, torch.from_numpy(images).to(memory_format=layout)


def _runtime(kind, net, images):
    from minifcn.data.classes import VOC
    from minifcn.export import to_onnx
    threads = int(os.environ.get("OMP_NUM_THREADS", len(cores())))
    model = to_onnx(net, VOC)
    if kind == "onnxruntime":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {session.get_inputs()[0].name: images})[0]
    import openvino
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(model.SerializeToString())
        compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", {
            "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})        # else bfloat16 where the CPU has it
    return lambda: compiled(images)[0]
