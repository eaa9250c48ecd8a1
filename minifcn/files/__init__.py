"""Reading files that others made, and writing files safely.

Reading order:

    regular    opens regular files only, of a stated size at most
    atomic     files that appear whole or not at all, and locked folders
    outputs    do the outputs of a command overwrite each other, or its inputs?
    zips       the entries of a zip archive
    weights    weights from .pth, .safetensors and .npz
    unpickle   the pickle inside a .pth file, read as data. weights.py finds it, and the numbers for its tensors
    foreign    for other files: what they are, and how to make one that can be read
    download   Pascal VOC 2012 and ResNet-18's weights
"""
