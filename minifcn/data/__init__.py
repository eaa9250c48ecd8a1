"""Images and masks in, batches out. Reading order: voc (the layout), synthetic (data drawn in it), loader, download."""

from minifcn.data.loader import Batch, Loader, normalize
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import VOC, Classes, DataError, Folder, check_folder, colour_to_index, index_to_colour

__all__ = ["VOC", "Batch", "Classes", "DataError", "Folder", "Loader", "check_folder", "colour_to_index",
           "index_to_colour", "normalize", "write_synthetic"]
