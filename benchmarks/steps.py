"""The whole network, ours and PyTorch's, as functions without arguments that run one training step or one inference."""

import numpy as np

import minifcn.functional as F
from minifcn import Tensor, models, nn, no_grad
from minifcn.core.dispatch import readable_only
from minifcn.training import SGD

KINDS = ("fast", "readable", "torch", "torch-channels-last")
SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


def initial():
    """FCN-32s with the weights that all start from."""
    nn.init.seed(0)
    return models.fcn32s()


def training(kind, images, labels):
    """A function that makes one step of SGD and returns the loss. images: float32 (N, 3, H, W); labels: (N, H, W)."""
    net = initial()
    if kind in ("fast", "readable"):
        optimizer = SGD(net.parameters(), **SETTINGS)

        def step():
            loss = F.cross_entropy(net(Tensor(images)), labels, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step if kind == "fast" else readable(step)
    import torch

    from benchmarks import torch_fcn
    net, x = _in_torch(kind, net, images)
    t, optimizer = torch.from_numpy(labels.astype(np.int64)), torch.optim.SGD(net.parameters(), **SETTINGS)
    return lambda: torch_fcn.train_step(net, optimizer, x, t)


def inference(kind, images):
    """A function that computes the logits in eval mode, without history."""
    net = initial()
    if kind in ("fast", "readable"):
        net.eval()

        def infer():
            with no_grad():
                return net(Tensor(images)).data

        return infer if kind == "fast" else readable(infer)
    import torch
    net, x = _in_torch(kind, net, images)
    net.eval()
    return torch.no_grad()(lambda: net(x).numpy())


def readable(function):
    """The same function on the definitions alone."""
    def call():
        with readable_only():
            return function()

    return call


def _in_torch(kind, net, images):
    import torch

    from benchmarks import torch_fcn
    layout = torch.channels_last if kind == "torch-channels-last" else torch.contiguous_format
    theirs = torch_fcn.with_weights(net.state_dict())
    return theirs.to(memory_format=layout), torch.from_numpy(images).to(memory_format=layout)
