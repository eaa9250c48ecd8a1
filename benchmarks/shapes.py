"""The layers of FCN-32s on ResNet-18 at 3 x 320 x 480: the one place where benchmarks take their shapes from."""

from typing import NamedTuple

HEIGHT, WIDTH, CLASSES = 320, 480, 21


class Conv(NamedTuple):
    """A convolution x (N, C, H, W) -> (N, F, OH, OW) that occurs `count` times."""

    name: str
    C: int
    F: int
    H: int
    W: int
    K: int
    S: int
    count: int

    @property
    def P(self):
        return self.K // 2

    @property
    def ohw(self):
        return -(-self.H // self.S), -(-self.W // self.S)

    @property
    def gflop(self):
        """Of one image, forward: two for each multiplication and addition."""
        return 2e-9 * self.F * self.C * self.K**2 * self.ohw[0] * self.ohw[1]


CONVS = [
    Conv("stem 7x7 /2", 3, 64, 320, 480, 7, 2, 1),
    Conv("layer1 3x3", 64, 64, 80, 120, 3, 1, 4),
    Conv("layer2 3x3 /2", 64, 128, 80, 120, 3, 2, 1),
    Conv("layer2 1x1 /2", 64, 128, 80, 120, 1, 2, 1),
    Conv("layer2 3x3", 128, 128, 40, 60, 3, 1, 3),
    Conv("layer3 3x3 /2", 128, 256, 40, 60, 3, 2, 1),
    Conv("layer3 1x1 /2", 128, 256, 40, 60, 1, 2, 1),
    Conv("layer3 3x3", 256, 256, 20, 30, 3, 1, 3),
    Conv("layer4 3x3 /2", 256, 512, 20, 30, 3, 2, 1),
    Conv("layer4 1x1 /2", 256, 512, 20, 30, 1, 2, 1),
    Conv("layer4 3x3", 512, 512, 10, 15, 3, 1, 3),
    Conv("final_conv 1x1", 512, CLASSES, 10, 15, 1, 1, 1),
]
HEAD = Conv("transpose_conv 64x64 x32", CLASSES, CLASSES, HEIGHT, WIDTH, 64, 32, 1)      # as the convolution it transposes
NORMS = [("stem", 64, 160, 240, 1), ("layer1", 64, 80, 120, 4), ("layer2", 128, 40, 60, 5),
         ("layer3", 256, 20, 30, 5), ("layer4", 512, 10, 15, 5)]         # name, C, H, W, how many of that size
