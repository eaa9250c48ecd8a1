"""minifcn: a fully convolutional network, down to every gradient, in NumPy and CuPy.

Read the source in this order. The first lines of a package list its files, in reading order too.

    core        arrays on two devices, and reverse-mode differentiation
    functional  the operations
    nn          layers: operations that own weights
    models      ResNet-18 and 34, and FCN-32s, 16s, 8s
    files       others' files read, our own written safely
    data        Pascal VOC's layout, and batches from it
    training    from weights to better weights
    inference   class indices for images of any size
    photos      `minifcn predict`: photographs in, masks and overlays out
    plotting    pictures of a run
    export      a network as an ONNX file
    check       `minifcn check`: a network, or this installation
    convert     `minifcn convert`: other layouts of data sets
    book        what two chapters of *Dive into Deep Learning* call of torch and d2l
    grade       `minifcn grade`: is the reader's own function right?
    __main__    the command line
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
