"""The twins for CuPy.

Reading order, first the kernels in CUDA:

    kernels/common.cuh            what all kernels share
    kernels/columns.cu            im2col and col2im
    kernels/sums.cuh              two sums of a block, added as a tree
    kernels/norm.cu               batch norm, ReLU and shortcut
    kernels/pool.cu               max-pooling
    kernels/stem.cu               norm, ReLU and max-pooling in one sweep
    kernels/loss.cu               softmax and loss of every pixel
    kernels/cells.cu              head and loss, without ever writing the logits as an image
    kernels/descent.cu            normalised images, and a step of SGD
    kernels/device.cuh            instructions of tensor cores; the kernels from here on need them
    kernels/fragments.cuh         two tiles multiplied by a warp
    kernels/pack.cu               weights in the layout of the convolutions
    kernels/implicit_gemm.cu      a convolution as a product whose columns are never written
    kernels/patch.cu              a pixel is fetched once for nine taps
    kernels/weight_gradient.cu    the gradient of the weights
    kernels/stem_gradient.cu      the same of the stem, from pictures
    kernels/hopper.cuh            Hopper's tensor core and its barriers
    kernels/warpgroup.cu          the 3 x 3 convolution on Hopper

    launch                        one way to start a kernel, one to multiply
    layout                        channels last
    head                          head and loss in cells
    convolution                   from columns to tensor cores
    norm                          batch norm, shortcut and ReLU
    stem                          norm, ReLU and max-pooling
    pool                          max-pooling, and the loss of every pixel
    descent                       normalised images, and a step of SGD
    graph                         a whole step as one launch
"""
