"""minifcn: a fully convolutional network, down to every gradient, in NumPy and CuPy.

Read the source in this order; every file says what comes before and after it.

    core        backend, shapes, dispatch, tensor, gradcheck     arrays on two devices, and reverse-mode differentiation
    functional  basic, linear, conv, conv_transpose, conv_forms, batchnorm, resize, pool, loss, step: the operations
    nn          init, module, layers, blocks                     operations that own weights
    models      resnet, fcn                                      ResNet-18 and FCN-32s, 16s, 8s
    files       regular, atomic, outputs, zips, weights,
                unpickle, foreign; download later                what meets strangers' bytes and the disk
    data        classes, masks, voc, survey, synthetic, loader, upload: Pascal VOC's layout, and batches from it
    training    optim, arena, parallel, step, options, metrics, scoring, checkpoint, pretrained, report, run, chapter:
                from weights to better weights
    inference, photos, plotting                                  images of any size; pictures
    fast        replacements for array functions, last: the library is whole without them

Importing takes NumPy alone: Pillow, matplotlib, tqdm and others are imported by the functions that use them.

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
