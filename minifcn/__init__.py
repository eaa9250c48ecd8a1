"""minifcn: a fully convolutional network, down to every gradient, in NumPy and CuPy.

Read the source in this order; every file says what comes before and after it.

    core        backend, shapes, absent, dispatch, tensor, attached, integers, gradcheck: arrays on two devices, and
                reverse-mode differentiation
    functional  basic, operators, linear, activation, conv, conv_transpose, conv_forms, batchnorm, resize, pool, loss, step:
                the operations
    nn          init, module, layers, blocks, summary: operations that own weights
    models      resnet, fcn: ResNet-18 and 34, and FCN-32s, 16s, 8s
    files       regular, atomic, outputs, zips, weights, unpickle, foreign, download: reading others' files, safe writing
    data        classes, masks, voc, survey, synthetic, loader, upload: Pascal VOC's layout, and batches from it
    training    optim, arena, parallel, step, memory, options, metrics, scoring, checkpoint, pretrained, report, parts, signals,
                run, fit, chapter, theirs: from weights to better weights
    then        inference, photos, plotting, export, check, convert, book: images of any size, pictures, commands
    fast        faster twins of functions, last: the library is complete without them

Importing minifcn needs NumPy only. Pillow, matplotlib, tqdm and others are imported by the functions that use them.

>>> from minifcn import Tensor, nn
>>> import minifcn.functional as F
"""

from importlib.util import find_spec

from minifcn import data, models, nn, training
from minifcn import functional as functional
from minifcn.core.gradcheck import check_adjoint, check_vjp
from minifcn.core.tensor import Tensor, no_grad

if find_spec("minifcn.fast"):                   # a folder that can be deleted
    from minifcn import fast as fast

__version__ = "0.2.0"
__all__ = ["Tensor", "no_grad", "check_vjp", "check_adjoint", "functional", "nn", "models", "data", "training"]
