"""Fully convolutional networks: score every 32 x 32 cell of the image, then enlarge the scores to pixels.

    FCN-32s   trunk -> 1x1 scores at 1/32 ----------------------------------> x32 -> pixels
    FCN-16s   trunk -> 1x1 scores at 1/32 -> x2 -> + scores of layer3 -------> x16 -> pixels
    FCN-8s    trunk -> 1x1 scores at 1/32 -> x2 -> + layer3's -> x2 -> + layer2's -> x8 -> pixels

The trunk is a ResNet without its classifier. layer2 and layer3 are its stages at 1/8 and 1/16 of the image's size. Every
enlargement (x2, x32) is a transposed convolution that starts as bilinear interpolation and is trained. The scores of layer2
and layer3 start at zero, so FCN-16s and FCN-8s start with coarse scores alone and learn what the finer maps add.

Sources: Long, Shelhamer & Darrell 2015; d2l.ai, "Fully Convolutional Networks".
"""

from __future__ import annotations

import warnings

from minifcn import nn  # layers as in torch.nn; cut and score_loss are explained where used
from minifcn.core.backend import Array  # an ndarray of NumPy or of CuPy
from minifcn.core.tensor import Tensor
from minifcn.models.resnet import TRUNKS  # "resnet18" -> a function that takes a width and makes the trunk
from minifcn.nn import init  # initial weights: xavier is random, bilinear_kernel interpolates

LARGE = 30_000_000          # numbers in a kernel; more warn: FCN-32s from 86 classes on, where a step is several times slower


def enlarge(num_classes, factor):
    """Transposed convolution that enlarges s = `factor` times: kernel 2s, stride s, padding s/2.

    Bilinear interpolation spreads each value as a tent 2s long. H tents make (H+1) s pixels; the padding removes s of them."""
    layer = nn.ConvTranspose2d(num_classes, num_classes, 2 * factor, factor, factor // 2)
    layer.weight.data[...] = init.bilinear_kernel(num_classes, num_classes, 2 * factor)
    layer.bias.data[...] = 0
    return layer


def score(in_channels, num_classes):
    """1x1 convolution from features to class scores, with bias 0."""
    layer = nn.Conv2d(in_channels, num_classes, 1)
    layer.bias.data[...] = 0
    return layer


class FCN(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H, W), any H and W. `skips`: how many finer maps are added (0, 1, 2)."""

    def __init__(self, num_classes: int, backbone: str, width: int, skips: int) -> None:
        if backbone not in TRUNKS:
            raise ValueError(f"backbone must be one of {', '.join(map(repr, TRUNKS))}, not {backbone!r}")
        self.trunk = TRUNKS[backbone](width)
        channels = self.trunk.out_channels                               # of the maps at 1/8, 1/16, 1/32
        self.final_conv = score(channels[2], num_classes)
        self.final_conv.weight.data[...] = init.xavier(self.final_conv.weight.shape)
        self.skips = nn.Sequential(*(Skip(channels[1 - i], num_classes) for i in range(skips)))
        self.transpose_conv = enlarge(num_classes, 32 >> skips)
        size = self.transpose_conv.weight.size
        if size > LARGE:
            warnings.warn(f"enlarging {num_classes} classes {32 >> skips} times takes a kernel of {size / 1e6:.0f} million "
                          f"numbers, K x K x {64 >> skips} x {64 >> skips}, which each step computes with; FCN-8s (fcn8s) "
                          f"takes {num_classes**2 * 256 / 1e6:.1f} million", stacklevel=3)

    def scores(self, x: Tensor | Array) -> Tensor:
        """The scores before the last enlargement, at 1/32 of the image, or 1/16, 1/8 with skips. x: Tensor or array."""
        *finer, x32 = self.trunk.features(x)                             # (N, ., H/8, W/8), (N, ., H/16, W/16)
        y = self.final_conv(x32)                                         # (N, K, H/32, W/32)
        for skip, x_finer in zip(self.skips, reversed(finer)):
            y = skip(y, x_finer)                                         # (N, K, H/16, W/16), then (N, K, H/8, W/8)
        return y

    def forward(self, x: Tensor | Array) -> Tensor:
        return nn.cut(self.transpose_conv(self.scores(x)), x.shape[2:])  # (N, K, H, W): cut keeps the top left H x W pixels

    def loss(self, x: Tensor | Array, labels: Array, weight: Array | None = None,
             ignore_index: int = -100) -> tuple[Tensor, Array, Array]:
        """(sum of the pixels' losses, pixels predicted right, pixels that count): transpose_conv, cut and F.cross_entropy."""
        return nn.score_loss(self.transpose_conv, self.scores(x), labels, weight, ignore_index)


class Skip(nn.Module):
    """Enlarge the scores y twice and add the scores of the finer map x."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        self.upsample = enlarge(num_classes, 2)
        self.score = score(in_channels, num_classes)
        self.score.weight.data[...] = 0                                  # at first the finer map adds nothing

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return nn.cut(self.upsample(y), x.shape[2:]) + self.score(x)


def fcn32s(num_classes: int = 21, backbone: str = "resnet18", width: int = 64) -> FCN:
    """FCN-32s on ResNet-18: trunk, final_conv, transpose_conv (kernel 64, stride 32, padding 16); 12,993,642 parameters.

    num_classes: K, background included. backbone: "resnet18", "resnet34" or "resnet18_v2". width: channels of the first layer
    (64 is the published network; 16 makes a small one of the same depth). Weights are random; nn.init.seed(n) fixes them.
    """
    return FCN(num_classes, backbone, width, skips=0)


def fcn16s(num_classes: int = 21, backbone: str = "resnet18", width: int = 64) -> FCN:
    """FCN-16s: as fcn32s with one skip, from layer3."""
    return FCN(num_classes, backbone, width, skips=1)


def fcn8s(num_classes: int = 21, backbone: str = "resnet18", width: int = 64) -> FCN:
    """FCN-8s: as fcn32s with two skips, from layer3 and layer2."""
    return FCN(num_classes, backbone, width, skips=2)


MODELS = {"fcn32s": fcn32s, "fcn16s": fcn16s, "fcn8s": fcn8s}
