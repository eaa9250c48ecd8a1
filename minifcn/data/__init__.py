"""Images and masks in, batches out. Reading order: classes (names and colours), masks (one file), voc (the layout),
survey (what is in it), synthetic (data drawn in it), loader, upload."""

from minifcn.data.classes import VOC, Classes, DataError, colour_to_index, index_to_colour
from minifcn.data.loader import Batch, Loader
from minifcn.data.survey import check_folder, survey
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder

__all__ = ["VOC", "Batch", "Classes", "DataError", "Folder", "Loader", "check_folder", "colour_to_index",
           "index_to_colour", "survey", "write_synthetic"]
