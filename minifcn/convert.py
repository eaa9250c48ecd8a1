"""`minifcn convert`: writes a data set in another layout as a folder in VOC's layout.

    SOURCE/JPEGImages, images or img          the images: .jpg .jpeg .png .webp, in letters of any case
    SOURCE/SegmentationClass, masks or cls    their masks: .png, .bmp, .webp without loss, SBD's .mat; with the images' names,
                                              or with one ending more (a.jpg, a_mask.png)
    SOURCE/classes.json                       the classes, or labelmap.txt (Datumaro, CVAT), class_names.txt (labelme),
                                              classification.txt (ISAT; beside the masks)
    SOURCE/ImageSets/Segmentation, or SOURCE  the lists train.txt and val.txt, with or without the images' endings; or none

Images are copied unchanged. data/masks.py finds out which labels a mask means; the new masks hold exactly these labels.
Sources: Hariharan et al. 2011, "Semantic contours from inverse detectors", and its README (SBD's .mat); the tools' own exports.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minifcn.core.machine import cores
from minifcn.data.classes import Classes, DataError, class_file, no_class, read_classes, read_text, write_classes
from minifcn.data.masks import decode_labels, header, read_bytes, write_labels
from minifcn.data.voc import IMAGE_ENDINGS, LARGEST_LIST

IMAGE_FOLDERS = ("JPEGImages", "images", "img")
MASK_FOLDERS = ("SegmentationClass", "masks", "cls")
MASK_ENDINGS = (*IMAGE_ENDINGS, ".bmp", ".mat")
SHOWN = 10                                   # faults in a message


def convert(source: str | Path, out: str | Path, images: str | Path | None = None, masks: str | Path | None = None,
            val: float = 0.2, seed: int = 0) -> list[str]:
    """Write images and masks in another layout as a folder in VOC's layout.

    source: folder in one of the layouts above. out: the new folder; it must be missing or empty, and neither a link nor the
    current folder. images, masks: None, or their folders if these are not in source. val: if source has no lists train and
    val, the fraction of the images for validation; equal pictures go to the same list. seed: of that split.
    Returns a list of lines about what was done. Raises DataError for anything that cannot be read; then nothing is written.
    """
    source, out = Path(source), Path(out)
    if not 0 < val < 1:
        raise ValueError(f"convert: val must be a fraction between 0 and 1, got {val}")
    if seed < 0:
        raise ValueError(f"convert: seed must be at least 0, got {seed}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; choose another folder")
    if out.is_symlink() or out.exists() and out.samefile(os.curdir):
        raise DataError(f"{out}: a link or the current folder, which no new folder can replace; choose another folder")
    image_folder = Path(images) if images else _folder(source, IMAGE_FOLDERS, "--images")
    mask_folder = Path(masks) if masks else _folder(source, MASK_FOLDERS, "--masks")
    pairs, said = _pairs(image_folder, mask_folder)
    root = source if class_file(source) else mask_folder             # ISAT writes its list beside the masks
    classes = read_classes(root)
    said.append(f"classes: {len(classes.names)}, of {class_file(root) or 'VOC (no list of classes is there)'}")
    lists, how = _lists(source, pairs, val, seed)
    wanted = {name: pairs[name] for names in lists.values() for name in names}
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(building / "new", wanted, lists, classes)
        if out.exists():
            out.rmdir()
        os.rename(building / "new", out)
    finally:
        shutil.rmtree(building)
    return [*said, f"train: {len(lists['train'])} images, val: {len(lists['val'])}, {how}"]


def _folder(source, names, option):
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise DataError(f"{source}: no folder {', '.join(names[:-1])} or {names[-1]} in it; name it with {option}")


def _files(folder, endings):
    """{stem: path} of the files with one of the endings in a folder, in the order of their names."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in endings:
            if path.stem in files:
                raise DataError(f"{folder}: which is it, {files[path.stem].name} or {path.name}?")
            if path.stem != path.stem.strip() or not path.stem.isprintable() or set(path.stem) & set("\\:"):
                raise DataError(f"{folder}: {path.name!r} cannot stand in a list (space at an end, control character, \\ or :)")
            files[path.stem] = path
    return files


def _pairs(image_folder, mask_folder):
    """({id: (image, mask)}, lines about files without a partner). A mask's name may be longer by one ending: a, a_mask."""
    images, masks = _files(image_folder, IMAGE_ENDINGS), _files(mask_folder, MASK_ENDINGS)
    for folder, files, endings in ((image_folder, images, IMAGE_ENDINGS), (mask_folder, masks, MASK_ENDINGS)):
        if not files:
            raise DataError(f"{folder}: no files in it that end in {', '.join(endings)}" + _why_no_masks(folder))
    if not images.keys() & masks.keys():
        endings = Counter(stem[k:] for stem in masks for k in range(1, len(stem)) if stem[:k] in images)
        ending = max(sorted(endings), key=endings.__getitem__, default="")
        masks = {stem.removesuffix(ending): path for stem, path in masks.items()}
    both = [stem for stem in images if stem in masks]
    if not both:
        raise DataError(f"{mask_folder}: no mask has the name of an image ({next(iter(images.values())).name} and "
                        f"{next(iter(masks.values())).name} are the first ones)")
    said = [f"{len(both)} pairs of {image_folder} and {mask_folder}"]
    for what, files, other in (("images without a mask", images, masks), ("masks without an image", masks, images)):
        alone = [files[stem].name for stem in files if stem not in other]
        if alone:
            said.append(f"{len(alone)} {what} are left out, the first is {alone[0]}")
    return {stem: (images[stem], masks[stem]) for stem in both}, said


def _why_no_masks(folder):
    return " (Datumaro writes none where there are only polygons: transform polygons to masks first)" * (
        folder.name == "SegmentationClass")


def _lists(source, pairs, val, seed):
    """({"train": ids, "val": ids}, how they were found)."""
    for folder in (source / "ImageSets" / "Segmentation", source):
        paths = {split: folder / f"{split}.txt" for split in ("train", "val")}
        if all(path.exists() for path in paths.values()):
            return {split: _listed(path, pairs) for split, path in paths.items()}, f"by the lists in {folder}"
    listed = []
    for path in sorted((source / "ImageSets" / "Segmentation").glob("*.txt")):
        listed += _listed(path, pairs)
    ids = sorted(set(listed)) or list(pairs)
    groups = {}                                                      # equal pictures, which must stay in one list
    for name in ids:
        groups.setdefault(hashlib.blake2b(read_bytes(pairs[name][0])).digest(), []).append(name)
    if len(groups) < 2:
        raise DataError(f"{source}: two different images wanted at least, to train on and to validate, got {len(groups)}")
    groups = list(groups.values())
    count, chosen = max(1, min(round(val * len(ids)), len(ids) - 1)), set()
    for k in np.random.default_rng(seed).permutation(len(groups))[1:]:
        if len(chosen) < count:
            chosen.update(groups[k])
    lists = {"train": [name for name in ids if name not in chosen], "val": [name for name in ids if name in chosen]}
    return lists, f"drawn at random with seed {seed}"


def _listed(path, pairs):
    """The ids in a list; a line may be an id or the name of its image. Raises DataError for any other line."""
    ids = []
    for number, line in enumerate(read_text(path, LARGEST_LIST).split("\n"), 1):
        name = line.strip()
        stem, ending = os.path.splitext(name)
        if name not in pairs and ending.lower() in IMAGE_ENDINGS:
            name = stem
        if name and name not in pairs:
            raise DataError(f"{path}, line {number}: {name[:200]!r} has no image or no mask")
        if name:
            ids.append(name)
    if not ids:
        raise DataError(f"{path}: the list is empty")
    return list(dict.fromkeys(ids))


def _write(root, pairs, lists, classes):
    """Write the new folder: copied images, masks with the labels that were meant, lists, classes.json."""
    from tqdm import tqdm

    folders = [root / "JPEGImages", root / "SegmentationClass", root / "ImageSets" / "Segmentation"]
    for folder in folders:
        folder.mkdir(parents=True)
    plain = Classes(classes.names, classes.palette, classes.void)    # without the map: it was applied when masks were read

    def one(name):
        image, mask = pairs[name]
        try:
            labels = _mat_labels(mask, classes) if mask.suffix.lower() == ".mat" else decode_labels(mask, classes)[0]
            size, _, turned = header(image, mask=False)
            if labels.shape not in (size, turned):
                raise DataError(f"{mask}: the mask has {labels.shape[0]} x {labels.shape[1]} pixels (height x width) but its "
                                f"image {size[0]} x {size[1]}")
            shutil.copyfile(image, folders[0] / (name + image.suffix))
            write_labels(folders[1] / f"{name}.png", labels, plain)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(len(cores())) as pool:
        found = list(tqdm(pool.map(one, pairs), "convert", len(pairs), leave=False, disable=None))
    faults = [fault for fault in found if fault]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
        raise DataError("\n".join([f"{len(faults)} of {len(pairs)} pairs cannot be read:", *faults[:SHOWN], *more]))
    for split, names in (lists | {"trainval": list(dict.fromkeys(lists["train"] + lists["val"]))}).items():
        (folders[2] / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    write_classes(root, plain)


def _mat_labels(path, classes):
    """The labels of a mask of SBD: GTcls.Segmentation in a MATLAB file, uint8 (H, W)."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path}: reading .mat files needs SciPy: pip install scipy") from None
    try:
        values = np.asarray(loadmat(path)["GTcls"][0, 0]["Segmentation"])
        if values.dtype != np.uint8 or values.ndim != 2:
            raise ValueError(f"GTcls.Segmentation is {values.dtype} {values.shape}")
    except Exception as error:                                       # loadmat raises many kinds
        raise DataError(f"{path}: not a mask of SBD, uint8 GTcls.Segmentation wanted: {error!r}") from error
    labels = classes.values[values]                                                      # (H, W)
    if (labels < 0).any():
        raise DataError(f"{path}: index {values[labels < 0][0]} {no_class(classes)}")
    return labels.astype(np.uint8)
