"""Weights that were trained elsewhere, put into the trunk of a network.

Read after checkpoint.py; read next trainer.py. The names are torchvision's, which models/resnet.py uses too.
"""

import numpy as np

from minifcn.files.weights import load_state


def load_pretrained(net, path):
    """Load what a file in torchvision's names (conv1.weight, layer1.0.bn1.bias, ...) offers into `trunk.*` of an FCN.

    Half precision is widened; what the trunk does not know (fc.*) is left out. Prints what the file lacks.
    Returns the set of full names that were loaded. Raises ValueError for a file with none of them or with other shapes.
    """
    offered, state = load_state(path), net.state_dict()
    wanted = [name for name in state if name.startswith("trunk.")]
    loaded = {name: offered[short] for name in wanted if (short := name.removeprefix("trunk.")) in offered}
    if not loaded:
        raise ValueError(f"{path}: holds none of the trunk's arrays, such as {wanted[0].removeprefix('trunk.')}")
    for name, array in loaded.items():
        if array.shape != state[name].shape:
            raise ValueError(f"{path}: {name.removeprefix('trunk.')} is {array.shape}, the net wants {state[name].shape}; "
                             "choose the --backbone and --width that the file was made with")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name.removeprefix('trunk.')} holds numbers that are not finite")
    net.load_state_dict(state | {name: array.astype(state[name].dtype) for name, array in loaded.items()})
    lacking = [name.removeprefix("trunk.") for name in wanted if name not in loaded]
    print(f"pretrained: {len(loaded)} of the trunk's {len(wanted)} arrays from {path}"
          + (f"; it lacks {', '.join(lacking)}" if lacking else ""), flush=True)
    return set(loaded)
