"""ResNet-18 and 34: four stages of blocks. A block is two 3x3 convolutions beside a shortcut. ResNet-18 has two versions.

    v1 (torchvision's resnet18)     y = relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))
    v2 (MXNet's resnet18_v2)        y = conv(relu(bn(conv(a)))) + shortcut,  a = relu(bn(x))          "pre-activation"
                                    shortcut: x itself, or a 1x1 convolution of a where the shape changes

The stem (a 7x7 convolution and a max-pooling) halves the image twice; stages 2 to 4 halve it once each. So the last map has
ceil(H/32) x ceil(W/32) cells: a stride-2 layer gives floor((n + 2P - K)/2) + 1 rows, and for K=7 P=3, K=3 P=1 and K=1 P=0
this is ceil(n/2). Any input size will do.

A trunk is the network without its classifier. Its names are torchvision's, so weights trained there can be loaded.
Sources: He et al. 2015, arXiv 1512.03385; He et al. 2016, arXiv 1603.05027.
"""

from __future__ import annotations

from functools import partial

from minifcn import nn
from minifcn.core.tensor import Operand, Tensor
from minifcn.nn import init

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}           # blocks in each stage


def conv(in_channels, out_channels, kernel_size, stride=1):
    """A convolution without bias (batch norm follows), padded so that stride 1 keeps the size; He's initial weights."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    layer.weight.data[...] = init.he(layer.weight.shape)
    return layer


class BasicBlock(nn.Module):
    """v1: batch norm after each convolution, ReLU after the addition of the shortcut."""

    def __init__(self, in_channels, out_channels, stride):
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x):
        shortcut = x if self.downsample is None else nn.conv_norm(*self.downsample, x)
        x = nn.conv_norm_relu(self.conv1, self.bn1, x)
        return nn.conv_norm_relu(self.conv2, self.bn2, x, shortcut)


class PreActivationBlock(nn.Module):
    """v2: batch norm and ReLU before each convolution. Nothing follows the addition, so the shortcut stays linear."""

    def __init__(self, in_channels, out_channels, stride):
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = conv(in_channels, out_channels, 1, stride)

    def forward(self, x):
        a = nn.norm_relu(self.bn1, x)
        shortcut = x if self.downsample is None else self.downsample(a)
        return nn.conv_add(self.conv2, nn.conv_norm_relu(self.conv1, self.bn2, a), shortcut)


def stage(block, depth, in_channels, out_channels, stride):
    """`depth` blocks; the first changes size and channels."""
    return nn.Sequential(block(in_channels, out_channels, stride),
                         *(block(out_channels, out_channels, 1) for _ in range(depth - 1)))


class ResNetTrunk(nn.Module):
    """v1 without classifier: (N, 3, H, W) -> (N, 8*width, ceil(H/32), ceil(W/32)).

    width: channels of the stem. depths: the number of blocks in each of the four stages.
    """

    def __init__(self, width=64, depths=DEPTHS["resnet18"]):
        self.out_channels = (2 * width, 4 * width, 8 * width)            # of the three maps of `features`
        self.conv1 = conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()                                            # so that nn.Sequential(*net.children()) is the trunk
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(BasicBlock, depths[0], width, width, 1)
        self.layer2 = stage(BasicBlock, depths[1], width, 2 * width, 2)
        self.layer3 = stage(BasicBlock, depths[2], 2 * width, 4 * width, 2)
        self.layer4 = stage(BasicBlock, depths[3], 4 * width, 8 * width, 2)

    def features(self, x: Operand) -> tuple[Tensor, Tensor, Tensor]:
        """The maps at 1/8, 1/16 and 1/32 of the image, for the skips of FCN-8s and FCN-16s."""
        x = nn.conv_norm_relu_pool(self.conv1, self.bn1, self.maxpool, x)                        # (N, width, H/4, W/4)
        x8 = self.layer2(self.layer1(x))                                 # (N, 2*width, H/8, W/8)
        x16 = self.layer3(x8)                                            # (N, 4*width, H/16, W/16)
        return x8, x16, self.layer4(x16)                                 # (N, 8*width, H/32, W/32)

    def forward(self, x: Operand) -> Tensor:
        return self.features(x)[-1]


class ResNetV2Trunk(nn.Module):
    """v2 without classifier. It also has a batch norm before the first convolution and one after the last stage."""

    def __init__(self, width=64):
        self.out_channels = (2 * width, 4 * width, 8 * width)
        self.bn_data = nn.BatchNorm2d(3, affine=False)
        self.conv1 = conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(PreActivationBlock, 2, width, width, 1)
        self.layer2 = stage(PreActivationBlock, 2, width, 2 * width, 2)
        self.layer3 = stage(PreActivationBlock, 2, 2 * width, 4 * width, 2)
        self.layer4 = stage(PreActivationBlock, 2, 4 * width, 8 * width, 2)
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.relu2 = nn.ReLU()

    def features(self, x: Operand) -> tuple[Tensor, Tensor, Tensor]:
        """The maps at 1/8, 1/16 and 1/32 of the image. The first two are sums to which no ReLU was applied."""
        x = nn.conv_norm_relu_pool(self.conv1, self.bn1, self.maxpool, self.bn_data(x))          # (N, width, H/4, W/4)
        x8 = self.layer2(self.layer1(x))                                 # (N, 2*width, H/8, W/8)
        x16 = self.layer3(x8)                                            # (N, 4*width, H/16, W/16)
        return x8, x16, nn.norm_relu(self.bn2, self.layer4(x16))         # (N, 8*width, H/32, W/32)

    def forward(self, x: Operand) -> Tensor:
        return self.features(x)[-1]


def _classifier(trunk_class):
    """The trunk class with global mean, flatten and a fully connected layer appended."""

    class Classifier(trunk_class):
        def __init__(self, num_classes, width, **depths):
            super().__init__(width, **depths)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(8 * width, num_classes)

        def forward(self, x):
            x = self.avgpool(super().forward(x))                         # (N, 8*width, 1, 1)
            return self.fc(x.flatten(1))                                 # (N, num_classes)

    Classifier.__name__ = Classifier.__qualname__ = trunk_class.__name__.removesuffix("Trunk")   # pickle finds it by this name
    return Classifier


ResNet, ResNetV2 = _classifier(ResNetTrunk), _classifier(ResNetV2Trunk)


def resnet18(num_classes: int = 1000, width: int = 64) -> nn.Module:
    """ResNet-18 v1, torchvision's names and layers: 11,689,512 parameters. (N, 3, H, W) -> (N, num_classes)."""
    return ResNet(num_classes, width)


def resnet34(num_classes: int = 1000, width: int = 64) -> nn.Module:
    """ResNet-34 v1, torchvision's names and layers: 21,797,672 parameters. (N, 3, H, W) -> (N, num_classes)."""
    return ResNet(num_classes, width, depths=DEPTHS["resnet34"])


def resnet18_v2(num_classes: int = 1000, width: int = 64) -> nn.Module:
    """ResNet-18 v2, pre-activation, as MXNet's resnet18_v2. (N, 3, H, W) -> (N, num_classes)."""
    return ResNetV2(num_classes, width)


TRUNKS = {name: partial(ResNetTrunk, depths=depths) for name, depths in DEPTHS.items()} | {"resnet18_v2": ResNetV2Trunk}
