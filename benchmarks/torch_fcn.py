"""The network of minifcn.models.fcn32s in plain PyTorch, with the same names, so that one state dict fits both."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, C, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(C, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or C != out:
            self.downsample = nn.Sequential(nn.Conv2d(C, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Trunk(nn.Module):
    """ResNet-18 without its classifier: (N, 3, H, W) -> (N, 8 width, H/32, W/32).

    depths: the number of blocks in each stage; (3, 4, 6, 3) is ResNet-34.
    """

    def __init__(self, width, depths=(2, 2, 2, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        C = width
        for i, (out, depth) in enumerate(zip((width, 2 * width, 4 * width, 8 * width), depths), 1):
            rest = [Block(out, out, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{i}", nn.Sequential(Block(C, out, 1 if i == 1 else 2), *rest))
            C = out

    def features(self, x):
        """The maps at 1/8, 1/16 and 1/32 of the image."""
        x8 = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)

    def forward(self, x):
        return self.features(x)[-1]


class FCN32s(nn.Module):
    """Trunk, 1x1 convolution to the classes, transposed convolution back to the size of the image."""

    def __init__(self, num_classes=21, width=64, depths=(2, 2, 2, 2)):
        super().__init__()
        self.trunk = Trunk(width, depths)
        self.final_conv = nn.Conv2d(8 * width, num_classes, 1)
        self.transpose_conv = nn.ConvTranspose2d(num_classes, num_classes, 64, 32, 16)

    def forward(self, x):
        return self.transpose_conv(self.final_conv(self.trunk(x)))[..., :x.shape[2], :x.shape[3]]


class FCN8s(nn.Module):
    """As FCN32s, with the scores of layer3 and layer2 added on the way."""

    def __init__(self, num_classes=21, width=64):
        super().__init__()
        self.trunk = Trunk(width)
        self.final_conv = nn.Conv2d(8 * width, num_classes, 1)
        self.skips = nn.Sequential(*(nn.ModuleDict({
            "upsample": nn.ConvTranspose2d(num_classes, num_classes, 4, 2, 1),
            "score": nn.Conv2d(channels, num_classes, 1)}) for channels in (4 * width, 2 * width)))
        self.transpose_conv = nn.ConvTranspose2d(num_classes, num_classes, 16, 8, 4)

    def forward(self, x):
        x8, x16, x32 = self.trunk.features(x)
        y = self.final_conv(x32)
        for skip, finer in zip(self.skips, (x16, x8)):
            y = skip["upsample"](y)[..., :finer.shape[2], :finer.shape[3]] + skip["score"](finer)
        return self.transpose_conv(y)[..., :x.shape[2], :x.shape[3]]


def with_weights(state):
    """The network with the weights of a minifcn.models.fcn32s or fcn8s; state: its state_dict(), name -> ndarray."""
    depths = [len({name.split(".")[2] for name in state if name.startswith(f"trunk.layer{i}.")}) for i in (1, 2, 3, 4)]
    sizes = len(state["final_conv.bias"]), len(state["trunk.bn1.weight"])
    net = FCN8s(*sizes) if "skips.1.score.weight" in state else FCN32s(*sizes, depths)
    lacking, unknown = net.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()}, strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in lacking), (lacking, unknown)
    return net


def train_step(net, optimizer, images, labels):
    """One step of gradient descent on the mean cross-entropy; returns the loss."""
    loss = F.cross_entropy(net(images), labels, ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

