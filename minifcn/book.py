"""The functions of torch, torchvision and d2l that two chapters of *Dive into Deep Learning* call. With these imports their
cells run unchanged:

    import torch                             ->  from minifcn import book as torch
    import torchvision                       ->  from minifcn import book as torchvision
    from torch import nn                     ->  from minifcn import nn
    from torch.nn import functional as F     ->  from minifcn import functional as F
    from d2l import torch as d2l             ->  from minifcn import book as d2l

One line must change: `.data` is an ndarray, so `weight.data.copy_(W)` becomes `weight.data[...] = W`. Floats are Tensors of
float32; integers and comparisons are ndarrays (core/integers.py). For a missing name the error says what to use instead.
Nothing else in minifcn uses this file. training/chapter.py trains the same recipe from the command line.
Sources: d2l.ai, chapters "Transposed Convolution" and "Fully Convolutional Networks"; d2l/torch.py; torch and torchvision.
"""

import math
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image as Image

from minifcn import functional
from minifcn import nn as nn
from minifcn.core.absent import absent
from minifcn.core.backend import has_gpu, to_device, to_host
from minifcn.core.integers import integers
from minifcn.core.tensor import Tensor as Tensor
from minifcn.core.tensor import no_grad as no_grad
from minifcn.data.classes import VOC, index_to_colour
from minifcn.data.loader import Loader
from minifcn.data.voc import Folder
from minifcn.files.download import download
from minifcn.files.weights import load_state
from minifcn.functional import activation
from minifcn.functional.step import normalize
from minifcn.models.resnet import resnet18
from minifcn.nn import init
from minifcn.training import optim as optimisers

DATA = "runs/data"                                  # the folder of downloads, as on the command line
float32, float64, uint8, int64, bool = np.float32, np.float64, np.uint8, np.int64, np.bool_
long = int64
_generator = np.random.default_rng()


class _Namespace(SimpleNamespace):
    """Stands for a module of torch, with only the names that are given."""

    def __getattr__(self, name):
        raise AttributeError(f"{name!r} is not in minifcn.book; there are {', '.join(vars(self))}")


# ---- torch: making Tensors ----

def manual_seed(n):
    """Seed everything random: these functions, the weights of new layers, dropout's masks."""
    global _generator
    _generator = np.random.default_rng(n)
    init.seed(n)
    activation.seed(n)


def tensor(data, dtype=None, device="cpu", requires_grad=False):
    """A copy of numbers: floats as a Tensor (Python's as float32), integers and bools as an ndarray."""
    array = np.array(data.data if isinstance(data, Tensor) else data, dtype)
    if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype"):
        array = array.astype(np.float32)
    return _on(array, device, requires_grad)


def _on(array, device, requires_grad=False):
    array = to_device(array, device)
    return Tensor(array, requires_grad) if array.dtype.kind == "f" else integers(array)


def _shape(shape, size):
    if size is not None:
        return tuple(size)
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape


def zeros(*shape, size=None, dtype=np.float32, device="cpu", requires_grad=False):
    """Zeros: zeros(2, 3), zeros((2, 3)) or zeros(size=(2, 3))."""
    return _on(np.zeros(_shape(shape, size), dtype), device, requires_grad)


def ones(*shape, size=None, dtype=np.float32, device="cpu", requires_grad=False):
    """Ones, of a shape given as to zeros."""
    return _on(np.ones(_shape(shape, size), dtype), device, requires_grad)


def rand(*shape, size=None, device="cpu", requires_grad=False):
    """Uniform in 0..1, of a shape given as to zeros."""
    return _on(_generator.random(_shape(shape, size), np.float32), device, requires_grad)


def randn(*shape, size=None, device="cpu", requires_grad=False):
    """Normal with mean 0 and variance 1, of a shape given as to zeros."""
    return _on(_generator.standard_normal(_shape(shape, size), np.float32), device, requires_grad)


def arange(*limits, dtype=None, device="cpu"):
    """start, start + step, ... below end: arange(end), arange(start, end) or arange(start, end, step)."""
    array = np.arange(*limits, dtype=dtype)
    return _on(array.astype(np.float32) if dtype is None and array.dtype.kind == "f" else array, device)


# ---- torch: operations and optimisers ----

cat, clamp = functional.concatenate, functional.clip        # all others have torch's names: see __getattr__ at the end
optim = _Namespace(SGD=optimisers.SGD, lr_scheduler=_Namespace(
    LambdaLR=optimisers.LambdaLR, StepLR=optimisers.StepLR, MultiStepLR=optimisers.MultiStepLR,
    PolynomialLR=optimisers.PolynomialLR))


# ---- torchvision ----

def _resnet18(pretrained=False, weights=None, **settings):
    """ResNet-18 with a classifier; pretrained=True (or any `weights`) loads ImageNet's, downloaded once into DATA."""
    net = resnet18(**settings)
    if pretrained or weights is not None:
        net.load_state_dict(load_state(download("resnet18", DATA)))
    return net


class ToTensor:
    """Makes a Tensor (3, H, W) of 0..1 from a PIL image or a uint8 array (H, W, 3)."""

    def __call__(self, picture):
        array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
        if array.dtype != np.uint8:
            raise TypeError(f"ToTensor: a picture holds uint8, 0..255, got {array.dtype}")
        return Tensor(np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32) / 255)


def _crop(img, top, left, height, width):
    """img[..., top:top+height, left:left+width], with zeros for pixels outside the image."""
    H, W = img.shape[-2:]
    inside = img[..., max(top, 0):max(top + height, 0), max(left, 0):max(left + width, 0)]
    missing = [max(0, -left) - max(0, -left - width), max(0, left + width - W) - max(0, left - W),           # left, right
               max(0, -top) - max(0, -top - height), max(0, top + height - H) - max(0, top - H)]             # top, bottom
    if not any(missing):
        return inside
    if isinstance(img, Tensor):
        return functional.pad(inside, missing)
    return integers(np.pad(inside, [(0, 0)] * (img.ndim - 2) + [tuple(missing[2:]), tuple(missing[:2])]))


models = _Namespace(resnet18=_resnet18)
transforms = _Namespace(ToTensor=ToTensor, functional=_Namespace(crop=_crop, to_tensor=ToTensor()))


# ---- d2l: pictures ----

def set_figsize(figsize=(3.5, 2.5)):
    """Size of the figures to come, in inches."""
    plt.rcParams["figure.figsize"] = figsize


def show_images(imgs, num_rows, num_cols, titles=None, scale=1.5):
    """Pictures (Tensors, ndarrays or PIL's) in a grid, row after row; returns the axes."""
    _, axes = plt.subplots(num_rows, num_cols, figsize=(num_cols * scale, num_rows * scale), squeeze=False)
    for k, (place, img) in enumerate(zip(axes.ravel(), imgs)):
        place.imshow(to_host(img) if hasattr(img, "get") else np.asarray(img))
        place.set_axis_off()
        if titles:
            place.set_title(titles[k])
    return axes.ravel()


# ---- d2l: operations and devices ----

def corr2d(X, K):
    """The cross-correlation of two matrices, by its definition."""
    h, w = K.shape
    Y = zeros((X.shape[0] - h + 1, X.shape[1] - w + 1))
    for i in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            Y[i, j] = (X[i:i + h, j:j + w] * K).sum()
    return Y


def try_all_gpus():
    """The devices to train on: ["gpu"], or ["cpu"] where there is none."""
    return ["gpu" if has_gpu() else "cpu"]


def try_gpu(i=0):
    """The device to train on."""
    return try_all_gpus()[0]


# ---- d2l: Pascal VOC ----

VOC_COLORMAP = VOC.palette.tolist()
VOC_CLASSES = list(VOC.names)


def download_extract(name, folder=None):
    """The folder of a data set, downloaded and unpacked once into DATA; name: "voc2012". Returns its path."""
    if name != "voc2012":
        raise ValueError(f"download_extract: only 'voc2012' is there, not {name!r}")
    return str(download(name, DATA))


class _Pictures(Sequence):
    """A sequence of images (3, H, W) uint8; each is read when it is indexed. All of VOC would take 1.6 GB of memory."""

    def __init__(self, folder, read):
        self.folder, self.read = folder, read

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return integers(np.ascontiguousarray(self.read(range(len(self))[i]).transpose(2, 0, 1)))


def read_voc_images(voc_dir, is_train=True):
    """The images of a split and their masks in colours, two lists of (3, H, W) uint8."""
    folder = Folder(voc_dir, "train" if is_train else "val")

    def mask(i):
        return index_to_colour(folder.read_whole(i)[1], folder.classes)

    return _Pictures(folder, lambda i: folder.read_whole(i)[0]), _Pictures(folder, mask)


class VOCLoader(Loader):
    """The chapter's data: random crops of all images that are large enough, void as background, only full batches."""

    def __init__(self, voc_dir, is_train, batch_size, crop_size):
        folder = Folder(voc_dir, "train" if is_train else "val").at_least(crop_size)
        print(f"read {len(folder)} examples")
        super().__init__(folder, batch_size, crop_size, flip=False, void="background", shuffle=is_train, drop_last=True)

    dataset = property(lambda self: self)

    def normalize_image(self, img):
        """A picture (3, H, W) uint8 as the network's input (3, H, W)."""
        return Tensor(normalize(np.asarray(img)))


def load_data_voc(batch_size, crop_size):
    """(train_iter, test_iter). A loop over one of them is an epoch of (images (N, 3, h, w), labels (N, h, w))."""
    voc_dir = download_extract("voc2012")
    return (VOCLoader(voc_dir, True, batch_size, crop_size), VOCLoader(voc_dir, False, batch_size, crop_size))


# ---- d2l: training ----

class Animator:
    """Curves that grow while a loop runs. A notebook draws them again for each point; `figure` holds the last drawing.

    legend: names of the lines. The other settings are the axes'.
    """

    def __init__(self, xlabel=None, xlim=None, ylim=None, legend=()):
        self.figure, self.axes = plt.subplots()
        self.settings = {"xlabel": xlabel, "xlim": xlim, "ylim": ylim}
        self.lines = {name: ([], []) for name in legend}

    def add(self, x, values):
        """One point for each line; None for none."""
        for (xs, ys), y in zip(self.lines.values(), values):
            if y is not None:
                xs.append(x)
                ys.append(y)
        self.axes.cla()
        for (name, points), style in zip(self.lines.items(), ("-", "m--", "g-.", "r:")):
            self.axes.plot(*points, style, label=name)
        self.axes.set(**{name: value for name, value in self.settings.items() if value is not None})
        self.axes.legend()
        self.axes.grid()
        if "ipykernel" in sys.modules:
            from IPython import display

            display.display(self.figure)
            display.clear_output(wait=True)


def train_batch_ch13(net, X, y, loss, trainer, devices):
    """One step on the sum of the batch's losses. Returns (that sum, the number of right predictions)."""
    X, y = X.to(devices[0]), y.to(devices[0])
    net.train()
    trainer.zero_grad()
    pred = net(X)
    total = loss(pred, y).sum()
    total.backward()
    trainer.step()
    return total.item(), int((pred.data.argmax(axis=1) == y).sum())


def evaluate_accuracy_gpu(net, data_iter, device):
    """The share of right predictions. Puts the network in evaluation mode and leaves it so, as d2l does."""
    net.eval()
    right = count = 0
    with no_grad():
        for X, y in data_iter:
            right += int((net(X.to(device)).data.argmax(axis=1) == y.to(device)).sum())
            count += y.size
    return right / count


def train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices=None):
    """Train and draw the loss and both accuracies meanwhile; print the last ones, and the speed of the steps alone."""
    devices = devices or try_all_gpus()
    net.to(devices[0])
    animator = Animator("epoch", [0, num_epochs], [0, 1], ["train loss", "train acc", "test acc"])
    seconds, seen, num_batches = 0.0, 0, len(train_iter)
    for epoch in range(num_epochs):
        total, right, examples, pixels = 0.0, 0, 0, 0
        for i, (features, labels) in enumerate(train_iter):
            start = time.perf_counter()
            batch_loss, batch_right = train_batch_ch13(net, features, labels, loss, trainer, devices)
            seconds += time.perf_counter() - start
            total, right = total + batch_loss, right + batch_right
            examples, pixels, seen = examples + len(features), pixels + labels.size, seen + len(features)
            if (i + 1) % math.ceil(num_batches / 5) == 0 or i == num_batches - 1:
                animator.add(epoch + (i + 1) / num_batches, (total / examples, right / pixels, None))
        test_acc = evaluate_accuracy_gpu(net, test_iter, devices[0])
        animator.add(epoch + 1, (None, None, test_acc))
    print(f"loss {total / examples:.3f}, train acc {right / pixels:.3f}, test acc {test_acc:.3f}")
    print(f"{seen / seconds:.1f} examples/sec on {devices}")


# ---- what is not here ----

def __getattr__(name):
    if name in functional.__all__:                  # torch.matmul, torch.abs, ... are the same operations
        return getattr(functional, name)
    raise absent("minifcn.book", name)
