"""The networks: a ResNet is the trunk, an FCN adds the head. Reading order: resnet, fcn."""

from minifcn.models.fcn import FCN, fcn8s, fcn16s, fcn32s
from minifcn.models.resnet import resnet18, resnet18_v2, resnet34

__all__ = ["FCN", "fcn32s", "fcn16s", "fcn8s", "resnet18", "resnet34", "resnet18_v2"]
