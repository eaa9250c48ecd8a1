"""Images and masks in, batches out.

Reading order:

    classes     names, colours, and what the values in a mask mean
    masks       one image file, one mask file
    voc         the layout of the folders, and the lists of images
    survey      one pass over a data set before training
    synthetic   a small data set of drawn shapes
    loader      batches of random crops
    upload      batches on their way to the GPU
"""

from minifcn.data.classes import VOC, Classes, DataError, colour_to_index, index_to_colour
from minifcn.data.loader import Batch, Loader
from minifcn.data.survey import check_folder, survey
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder

__all__ = ["VOC", "Batch", "Classes", "DataError", "Folder", "Loader", "check_folder", "colour_to_index",
           "index_to_colour", "survey", "write_synthetic"]
