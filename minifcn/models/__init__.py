"""The networks.

Reading order:

    resnet   the trunk: ResNet-18 and 34
    fcn      the head, which enlarges scores to pixels: FCN-32s, 16s, 8s
"""

from minifcn.models.fcn import FCN, fcn8s, fcn16s, fcn32s
from minifcn.models.resnet import resnet18, resnet18_v2, resnet34

__all__ = ["FCN", "fcn32s", "fcn16s", "fcn8s", "resnet18", "resnet34", "resnet18_v2"]
