"""A trained network as an ONNX file, which other programs run without minifcn: `minifcn export CHECKPOINT net.onnx`.

    x (N, 3, H, W) float32, normalised  ->  Conv, Relu, MaxPool, Add, ConvTranspose, Slice  ->  logits (N, K, H, W)

The graph uses only operations that many runtimes have (opset 13, IR 7). A batch norm after a convolution is merged into its
weights, in float64; before a convolution (ResNet v2) it becomes a product and a sum. The crop reads the size of the input at
run time, so one file works for any H and W. Weights and nodes have the names of the layers.

Each kind of layer has a function here that writes it; for other layers an error names the layer. To export your own network,
write one more function, marked `@exports(Net)`, that calls `graph.layer` on its parts in the order of its forward.
Needs the onnx package.
Sources: onnx.ai, operators of opset 13; He et al. 2015 (merging is exact).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minifcn import __version__, nn
from minifcn.core.backend import to_host
from minifcn.core.shapes import Pair, conv_size, conv_transpose_size, pair
from minifcn.data.classes import Classes
from minifcn.files.atomic import atomic
from minifcn.functional.step import MEAN, STD
from minifcn.models.fcn import FCN, Skip
from minifcn.models.resnet import BasicBlock, PreActivationBlock, ResNetTrunk, ResNetV2Trunk

OPSET = 13                  # the oldest version with all operations that are needed; some runtimes do not read newer ones
WRITERS: dict = {}          # class of a layer -> function (graph, name, layer, *inputs) -> name(s) of the output
Writer = TypeVar("Writer", bound=Callable)


def exports(layer_class: type) -> Callable[[Writer], Writer]:
    """Register the decorated function as the writer of a class of layers."""
    def register(write):
        WRITERS[layer_class] = write
        return write

    return register


class Graph:
    """The nodes and weights of the graph. A value has the name of the node that makes it.

    size: (H, W) of the input, or None for any size. With a size, `hw` holds the size of every value.
    """

    def __init__(self, onnx: Any, size: Any = None) -> None:
        self.onnx, self.nodes, self.weights, self.hw = onnx, [], {}, {"x": size} if size else None

    def layer(self, name: str, layer: nn.Module, *inputs: str) -> Any:
        """Write a layer that reads these values. Raises TypeError for a class that has no writer."""
        if type(layer) not in WRITERS:
            raise TypeError(f"export: {name} is a {type(layer).__name__}, which has no writer; there are "
                            f"{', '.join(sorted(c.__name__ for c in WRITERS))}")
        return WRITERS[type(layer)](self, name, layer, *inputs)

    def node(self, name: str, op: str, *inputs: str, hw: Any = None, **settings: Any) -> str:
        """Write one node; returns its name, which is also that of its value. hw: the value's size; None: the first input's."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [name], name=name, **settings))
        if self.hw is not None:
            self.hw[name] = hw or self.hw.get(inputs[0])
        return name

    def weight(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        """Write an array; returns its name. Raises ValueError for NaN and infinity: some runtimes make a 0 of them."""
        array = np.ascontiguousarray(array, dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"export: {name} holds NaN or infinity (merged with the batch norm, if one follows)")
        self.weights[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def window(self, x: str, size: Callable, *settings: Any) -> Any:
        """The size of the result when a window moves over x; None if the sizes are not fixed."""
        return self.hw and tuple(size(*axis) for axis in zip(self.hw[x], *settings))

    def conv(self, name: str, layer: nn.Conv2d, x: str, norm: nn.BatchNorm2d | None = None) -> str:
        """A convolution, and the batch norm after it: w and b times scale = gamma / sqrt(var + eps), b + beta - mean scale."""
        w, b = layer.weight.numpy().astype(np.float64), 0.0 if layer.bias is None else layer.bias.numpy().astype(np.float64)
        if norm is not None:
            scale, shift = scale_shift(norm)                             # (F,) each
            w, b = w * scale[:, None, None, None], b * scale + shift
        inputs = [x, self.weight(f"{name}.weight", w)]
        if layer.bias is not None or norm is not None:
            inputs.append(self.weight(f"{name}.bias", b))
        hw = self.window(x, conv_size, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return self.node(name, "Conv", *inputs, hw=hw, kernel_shape=layer.kernel_size, strides=layer.stride,
                         pads=layer.padding * 2, dilations=layer.dilation)

    def norm(self, name: str, layer: nn.BatchNorm2d, x: str) -> str:
        """A batch norm with no convolution before it: a product and a sum per channel."""
        scale, shift = (self.weight(f"{name}.{part}", a[:, None, None])
                        for part, a in zip(("scale", "shift"), scale_shift(layer)))
        return self.node(name, "Add", self.node(f"{name}.product", "Mul", x, scale), shift)

    def relu(self, name: str, x: str) -> str:
        return self.node(f"{name}.relu", "Relu", x)

    def add(self, name: str, x: str, y: str) -> str:
        return self.node(f"{name}.add", "Add", x, y)

    def cut(self, name: str, y: str, x: str) -> str:
        """The top left part of y with the height and width of x, which are read at run time unless the size is fixed."""
        if self.hw is not None and self.hw[y] == self.hw[x]:
            return y
        if self.hw is None:
            shape = self.node(f"{name}.shape", "Shape", x)
            ends = self.node(f"{name}.hw", "Slice", shape, *(self.weight(f"slice.{n}", [n], np.int64) for n in (2, 4)))
        else:
            ends = self.weight(f"{name}.hw", self.hw[x], np.int64)
        starts, axes = self.weight("cut.starts", [0, 0], np.int64), self.weight("cut.axes", [2, 3], np.int64)
        return self.node(f"{name}.cut", "Slice", y, starts, ends, axes, hw=self.hw and self.hw[x])


def scale_shift(norm):
    """(scale, shift) of a batch norm in evaluation, y = scale x + shift: two float64 arrays (C,)."""
    gamma, beta = ((norm.weight.numpy(), norm.bias.numpy()) if norm.affine else (1.0, 0.0))
    mean, var = (to_host(a).astype(np.float64) for a in (norm.running_mean, norm.running_var))
    scale = gamma / np.sqrt(var + norm.eps)                              # (C,)
    return scale, beta - mean * scale


# ---- layers ----

@exports(nn.Conv2d)
def write_conv(graph, name, layer, x):
    return graph.conv(name, layer, x)


@exports(nn.ConvTranspose2d)
def write_conv_transpose(graph, name, layer, x):
    inputs = [x, graph.weight(f"{name}.weight", layer.weight.numpy())]
    if layer.bias is not None:
        inputs.append(graph.weight(f"{name}.bias", layer.bias.numpy()))
    settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    extra = {"output_padding": layer.output_padding} if any(layer.output_padding) else {}
    return graph.node(name, "ConvTranspose", *inputs, hw=graph.window(x, conv_transpose_size, *settings),
                      kernel_shape=layer.kernel_size, strides=layer.stride, pads=layer.padding * 2, dilations=layer.dilation,
                      **extra)


@exports(nn.BatchNorm2d)
def write_norm(graph, name, layer, x):
    return graph.norm(name, layer, x)


@exports(nn.MaxPool2d)
def write_max_pool(graph, name, layer, x):
    khw, stride, padding = (pair(v, name, 0) for v in (layer.kernel_size, layer.stride, layer.padding))
    return graph.node(name, "MaxPool", x, hw=graph.window(x, conv_size, khw, stride, padding, (1, 1)), kernel_shape=khw,
                      strides=stride, pads=padding * 2)


@exports(nn.ReLU)
def write_relu(graph, name, layer, x):
    return graph.node(name, "Relu", x)


@exports(nn.LeakyReLU)
def write_leaky_relu(graph, name, layer, x):
    return graph.node(name, "LeakyRelu", x, alpha=float(layer.negative_slope))


@exports(nn.Sigmoid)
def write_sigmoid(graph, name, layer, x):
    return graph.node(name, "Sigmoid", x)


@exports(nn.Identity)
@exports(nn.Dropout)
def write_nothing(graph, name, layer, x):
    return x


@exports(nn.Sequential)
def write_sequential(graph, name, layer, x):
    """Write the layers one after the other; a batch norm directly after a convolution is merged into it."""
    parts = list(layer.named_children())
    while parts:
        part, module = parts.pop(0)
        if type(module) is nn.Conv2d and parts and type(parts[0][1]) is nn.BatchNorm2d:
            x = graph.conv(f"{name}.{part}", module, x, parts.pop(0)[1])
        else:
            x = graph.layer(f"{name}.{part}", module, x)
    return x


# ---- the parts of an FCN, as models/ composes them ----

@exports(BasicBlock)
def write_basic_block(graph, name, block, x):
    shortcut = x if block.downsample is None else graph.layer(f"{name}.downsample", block.downsample, x)
    y = graph.relu(f"{name}.bn1", graph.conv(f"{name}.conv1", block.conv1, x, block.bn1))
    y = graph.conv(f"{name}.conv2", block.conv2, y, block.bn2)
    return graph.relu(name, graph.add(name, y, shortcut))


@exports(PreActivationBlock)
def write_pre_activation_block(graph, name, block, x):
    a = graph.relu(f"{name}.bn1", graph.norm(f"{name}.bn1", block.bn1, x))
    shortcut = x if block.downsample is None else graph.conv(f"{name}.downsample", block.downsample, a)
    y = graph.relu(f"{name}.bn2", graph.conv(f"{name}.conv1", block.conv1, a, block.bn2))
    return graph.add(name, graph.conv(f"{name}.conv2", block.conv2, y), shortcut)


@exports(ResNetTrunk)
def write_trunk(graph, name, trunk, x):
    """The three values of `features`."""
    x = graph.relu(f"{name}.bn1", graph.conv(f"{name}.conv1", trunk.conv1, x, trunk.bn1))
    return write_stages(graph, name, trunk, graph.layer(f"{name}.maxpool", trunk.maxpool, x))


@exports(ResNetV2Trunk)
def write_trunk_v2(graph, name, trunk, x):
    x = graph.norm(f"{name}.bn_data", trunk.bn_data, x)
    x8, x16, x32 = write_trunk(graph, name, trunk, x)
    return x8, x16, graph.relu(f"{name}.bn2", graph.norm(f"{name}.bn2", trunk.bn2, x32))


def write_stages(graph, name, trunk, x):
    maps = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        x = graph.layer(f"{name}.{stage}", getattr(trunk, stage), x)
        maps.append(x)
    return maps[1:]


@exports(Skip)
def write_skip(graph, name, skip, y, x):
    enlarged = graph.cut(f"{name}.upsample", graph.layer(f"{name}.upsample", skip.upsample, y), x)
    return graph.add(name, enlarged, graph.layer(f"{name}.score", skip.score, x))


@exports(FCN)
def write_fcn(graph, name, net, x):
    *finer, x32 = graph.layer("trunk", net.trunk, x)
    y = graph.layer("final_conv", net.final_conv, x32)
    for (k, skip), x_finer in zip(net.skips.named_children(), reversed(finer)):
        y = graph.layer(f"skips.{k}", skip, y, x_finer)
    return graph.cut("transpose_conv", graph.layer("transpose_conv", net.transpose_conv, y), x)


# ---- the file ----

def to_onnx(net: nn.Module, classes: Classes, image: bool = False, size: Pair | None = None, opset: int = OPSET,
            scale: float = 1.0) -> Any:
    """A network as an onnx.ModelProto.

    net: a network in any mode; its evaluation mode is exported. classes: data.Classes, for the metadata.
    image: False: x (N, 3, H, W) float32, normalised, to logits (N, K, H, W); True: image (N, H, W, 3) uint8, RGB, to labels
        (N, H, W) uint8, with normalisation and argmax inside.
    size: (H, W), or None for any. opset: 13, or a newer one. scale: fraction of a picture's size at which the net was trained.
    Raises ImportError without the onnx package, TypeError for a layer that has no writer, ValueError for a size below 1.
    """
    onnx = _onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    if size is not None and min(size) < 1:
        raise ValueError(f"export: size must be at least 1 x 1, got {size[0]} x {size[1]}")
    if opset < OPSET:
        raise ValueError(f"export: opset must be at least {OPSET}, got {opset}")
    graph, (H, W) = Graph(onnx, size and tuple(size)), size or ("H", "W")
    if image:
        inputs = [helper.make_tensor_value_info("image", kinds.UINT8, ["N", H, W, 3])]
        floats = graph.node("image.floats", "Cast", "image", to=kinds.FLOAT)                     # 0..255
        planes = graph.node("image.planes", "Transpose", floats, perm=[0, 3, 1, 2])              # (N, 3, H, W)
        mean, std = (np.array(values, np.float64)[:, None, None] for values in (MEAN, STD))
        scaled = graph.node("image.scaled", "Mul", planes, graph.weight("image.scale", 1 / (255 * std)))
        graph.node("x", "Add", scaled, graph.weight("image.shift", -mean / std), hw=size and tuple(size))
    else:
        inputs = [helper.make_tensor_value_info("x", kinds.FLOAT, ["N", 3, H, W])]
    logits = graph.layer("net", net, "x")
    if image:
        best = graph.node("labels.index", "ArgMax", logits, axis=1, keepdims=0)                  # int64 (N, H, W)
        graph.node("labels", "Cast", best, to=kinds.UINT8)
        outputs = [helper.make_tensor_value_info("labels", kinds.UINT8, ["N", H, W])]
    else:
        graph.nodes[-1].output[0] = "logits"
        outputs = [helper.make_tensor_value_info("logits", kinds.FLOAT, ["N", len(classes.names), H, W])]
    versions = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "minifcn", inputs, outputs, list(graph.weights.values())), opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions), producer_name="minifcn", producer_version=__version__)
    helper.set_model_props(model, metadata(classes, image, scale))
    onnx.checker.check_model(model, full_check=True)
    return model


def metadata(classes, image, scale):
    """Facts that a user of the file needs and the graph does not contain: name -> text."""
    return {
        "classes": json.dumps(list(classes.names)), "palette": json.dumps(classes.palette.tolist()),
        "ignore_index": str(classes.void), "mean": json.dumps(MEAN), "std": json.dumps(STD),
        "input": "RGB, 0..255" if image else "RGB, 0..255, x/255 - mean, / std", "scale": str(scale), "minifcn": __version__,
    }


def write_onnx(path: str | Path, model: Any) -> None:
    """Write a ModelProto, completely or not at all. The same network gives the same bytes."""
    with atomic(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def _onnx():
    try:
        import onnx
    except ImportError:
        raise ImportError("exporting needs the onnx package: pip install minifcn[onnx]") from None
    return onnx
