"""Fully convolutional networks: score every 32 x 32 cell of the image, then enlarge the scores to pixels.

    FCN-32s   trunk -> 1x1 scores at 1/32 ----------------------------------> x32 -> pixels
    FCN-16s   trunk -> 1x1 scores at 1/32 -> x2 -> + scores of layer3 -------> x16 -> pixels
    FCN-8s    trunk -> 1x1 scores at 1/32 -> x2 -> + layer3's -> x2 -> + layer2's -> x8 -> pixels

Every enlargement is a transposed convolution that starts as bilinear interpolation and is trained. The skips start at zero,
so that FCN-16s and FCN-8s begin as FCN-32s and learn what the finer maps add.

Read after resnet.py; read next files/regular.py.
Sources: Long, Shelhamer & Darrell 2015; d2l.ai, "Fully Convolutional Networks".
"""

import warnings

from minifcn import nn
from minifcn.models.resnet import TRUNKS
from minifcn.nn import init

LARGE = 30_000_000          # numbers of a kernel: 86 classes of FCN-32s; a step then takes several times that of 21 classes


def enlarge(num_classes, factor):
    """Transposed convolution that enlarges `factor` times: kernel 2s, stride s, padding s/2 (init.bilinear_kernel says why)."""
    layer = nn.ConvTranspose2d(num_classes, num_classes, 2 * factor, factor, factor // 2)
    layer.weight.data[...] = init.bilinear_kernel(num_classes, num_classes, 2 * factor)
    layer.bias.data[...] = 0
    return layer


def score(in_channels, num_classes):
    """1x1 convolution to class scores, bias 0."""
    layer = nn.Conv2d(in_channels, num_classes, 1)
    layer.bias.data[...] = 0
    return layer


class FCN(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H, W), any H and W. `skips`: how many finer maps are added (0, 1, 2)."""

    def __init__(self, num_classes, backbone, width, skips):
        if backbone not in TRUNKS:
            raise ValueError(f"backbone must be one of {', '.join(map(repr, TRUNKS))}, not {backbone!r}")
        self.trunk = TRUNKS[backbone](width)
        channels = self.trunk.out_channels                               # at 1/8, 1/16, 1/32
        self.final_conv = score(channels[2], num_classes)
        self.final_conv.weight.data[...] = init.xavier(self.final_conv.weight.shape)
        self.skips = nn.Sequential(*(Skip(channels[1 - i], num_classes) for i in range(skips)))
        self.transpose_conv = enlarge(num_classes, 32 >> skips)
        size = self.transpose_conv.weight.size
        if size > LARGE:
            warnings.warn(f"enlarging {num_classes} classes {32 >> skips} times takes a kernel of {size / 1e6:.0f} million "
                          f"numbers, K x K x {64 >> skips} x {64 >> skips}, which each step computes with; FCN-8s (fcn8s) "
                          f"takes {num_classes**2 * 256 / 1e6:.1f} million", stacklevel=3)

    def scores(self, x):
        """What transpose_conv enlarges: scores at 1/32 of the image, or 1/16, 1/8 with skips. x: Tensor or array."""
        *finer, x32 = self.trunk.features(x)                             # (N, ., H/8, W/8), (N, ., H/16, W/16)
        y = self.final_conv(x32)                                         # (N, K, H/32, W/32)
        for skip, x_finer in zip(self.skips, reversed(finer)):
            y = skip(y, x_finer)                                         # (N, K, H/16, W/16), then (N, K, H/8, W/8)
        return y

    def forward(self, x):
        return nn.cut(self.transpose_conv(self.scores(x)), x.shape[2:])  # (N, K, H, W)

    def loss(self, x, labels, weight=None, ignore_index=-100):
        """(sum of the pixels' losses, pixels predicted right, pixels that count) of images x: see nn.score_loss."""
        return nn.score_loss(self.transpose_conv, self.scores(x), labels, weight, ignore_index)


class Skip(nn.Module):
    """Scores y at twice their size, plus the scores of the finer map x."""

    def __init__(self, in_channels, num_classes):
        self.upsample = enlarge(num_classes, 2)
        self.score = score(in_channels, num_classes)
        self.score.weight.data[...] = 0                                  # begin as the network without this skip

    def forward(self, y, x):
        return nn.cut(self.upsample(y), x.shape[2:]) + self.score(x)


def fcn32s(num_classes=21, backbone="resnet18", width=64):
    """FCN-32s on ResNet-18: trunk, final_conv, transpose_conv (kernel 64, stride 32, padding 16); 12,993,642 parameters.

    num_classes: K, background included. backbone: "resnet18", "resnet34" or "resnet18_v2". width: channels of the stem (64 is
    the published network; 16 makes a small one of the same depth). Weights start random; nn.init.seed fixes them.
    """
    return FCN(num_classes, backbone, width, skips=0)


def fcn16s(num_classes=21, backbone="resnet18", width=64):
    """FCN-16s: as fcn32s with one skip, from layer3."""
    return FCN(num_classes, backbone, width, skips=1)


def fcn8s(num_classes=21, backbone="resnet18", width=64):
    """FCN-8s: as fcn32s with two skips, from layer3 and layer2."""
    return FCN(num_classes, backbone, width, skips=2)


MODELS = {"fcn32s": fcn32s, "fcn16s": fcn16s, "fcn8s": fcn8s}
