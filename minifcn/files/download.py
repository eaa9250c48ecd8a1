"""Downloads Pascal VOC 2012 and ResNet-18's ImageNet weights from where they live, and believes nothing that it gets.

    FILE.part   grows from request to request: what a broken connection brought is kept, and the next one continues it
    FILE        appears when size and checksum are right
    VOCdevkit/VOC2012    appears when every file in it has been written (until then it is called VOC2012.part)

Read after upload.py; read next training/optim.py. voc.py reads the folder, files/weights.py the weights.
Sources: torchvision/datasets/voc.py and torchvision/models/resnet.py (addresses and checksums); d2l.ai (the mirror);
RFC 9110, section 14 (range requests).
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from minifcn.files.atomic import FolderInUse, locked

ATTEMPTS = 20               # requests to one host; each but the last has brought something new
BLOCK = 2**18               # bytes read at once


class DownloadError(RuntimeError):
    """A file could not be had, or is not what it should be; the message says what to do by hand."""


class Source(NamedTuple):
    """A file, what it must be, and where it is."""
    file: str
    size: int               # bytes
    algorithm: str          # a name that hashlib knows
    digest: str             # hexadecimal digits with which its checksum begins
    urls: tuple             # asked in this order


SOURCES = {
    "voc2012": Source("VOCtrainval_11-May-2012.tar", 1_999_639_040, "md5", "6cd6e144f989b92b3379bac3b3de84fd",
                      ("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",     # often down
                       "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar")),
    "resnet18": Source("resnet18-f37072fd.pth", 46_830_571, "sha256", "f37072fd",
                       ("https://download.pytorch.org/models/resnet18-f37072fd.pth",)),
}


def download(name, to, everything=False, timeout=30.0):
    """Get a data set or weights, once: what is already there is not fetched again.

    name: "voc2012" (2.0 GB) or "resnet18" (47 MB).
    to: folder, made if needed. A file put there by hand is checked and used.
    everything: extract all of VOC 2012, not only the 2,913 images with masks, their masks and the lists.
    timeout: seconds without a byte after which a connection counts as broken.
    returns: Path of the folder VOCdevkit/VOC2012, or of the weights file.
    raises: DownloadError.
    """
    to = Path(to)
    voc = to / "VOCdevkit" / "VOC2012"
    if name == "voc2012" and voc.exists():
        if everything and not (voc / "Annotations").exists():
            raise DownloadError(f"{voc} holds the segmentation files only; move it away to extract everything")
        return voc
    try:
        with locked(to, "downloading"):         # two downloads would mix in FILE.part and VOC2012.part
            file = fetch(SOURCES[name], to, timeout)
            return extract_voc(file, to, everything) if name == "voc2012" else file
    except FolderInUse as error:
        raise DownloadError(str(error)) from None
    except OSError as error:                                    # of the disk: those of the network do not come this far
        raise DownloadError(f"{to}: {error}") from error


def fetch(source, to, timeout=30.0):
    """Get one file into the folder `to`, from the first host that has it, and check it; see `download`."""
    target = Path(to) / source.file
    if target.exists():
        problem = mismatch(target, source)
        if problem:
            raise DownloadError(f"{target} {problem}; delete it and run the command again")
        return target
    part = target.with_name(source.file + ".part")
    missing = source.size - _size(part)
    if missing > shutil.disk_usage(to).free:
        raise DownloadError(f"{to} needs {missing / 1e6:,.0f} MB of free space for {source.file}")

    problems = []
    for url in source.urls:
        problem = _fetch_from(url, part, source, timeout)
        if problem is None:
            os.replace(part, target)
            return target
        problems.append(f"    {url}\n        {problem}")
    raise DownloadError("\n".join([
        f"{source.file} could not be downloaded:", *problems,
        f"Run the command again to continue ({_size(part):,} of {source.size:,} bytes are there), or get the file from one"
        f" of these addresses by other means, put it at\n    {target}\nand run the command again."]))


def mismatch(path, source):
    """What is wrong with a file, or None. Cost: reads it once, 0.5 GB/s or more."""
    if _size(path) != source.size:
        return f"has {_size(path):,} bytes instead of {source.size:,}"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, source.algorithm).hexdigest()
    if not digest.startswith(source.digest):
        return f"has the {source.algorithm} {digest} instead of {source.digest}"
    return None


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _fetch_from(url, part, source, timeout):
    """Ask one host for as long as it brings something new. Returns None once `part` is right, else what is wrong."""
    problem, restarted = None, False
    for _ in range(ATTEMPTS):
        before = _size(part)
        problem = _request(url, part, source, timeout) if before < source.size else None
        if problem is None:
            problem = mismatch(part, source)
            if problem is None:
                return None
            part.unlink()
            if before == 0 or restarted:
                return problem
            restarted = True                # the wrong bytes may be older than this host's: once more from the start
        elif _size(part) == before:
            return problem
    return problem


def _request(url, part, source, timeout):
    """One request that continues `part`. Returns None when it has its full size, else what broke."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    from tqdm import tqdm

    with (response, open(part, "ab") as file,
          tqdm(desc=source.file, total=source.size, initial=have, unit="B", unit_scale=True, disable=None) as bar):
        ranged = response.status == 206
        if ranged and not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            return f"answered with another range than bytes {have}-"
        skip = 0 if ranged else have                            # a host that knows no ranges sends all from the start
        if response.length not in (None, source.size - have + skip):
            return f"announces {response.length:,} bytes instead of {source.size - have + skip:,}"
        while have < source.size:
            try:
                block = response.read1(BLOCK)                   # what has arrived, so that nothing is lost in a stall
            except (OSError, http.client.HTTPException) as error:
                return f"broke off after {have:,} bytes: {error or type(error).__name__}"
            if not block:
                return f"broke off after {have:,} bytes"
            new = block[skip:][:source.size - have]
            skip -= min(skip, len(block))
            file.write(new)
            have += len(new)
            bar.update(len(new))
    return None


def extract_voc(archive, to, everything=False):
    """Extract the VOC tar into to/VOCdevkit/VOC2012, which appears only when it is whole.

    returns: Path of that folder.
    raises: DownloadError if the tar is damaged, lacks a listed image, or holds anything but plain files in
        VOCdevkit/VOC2012 (a path that leads elsewhere, a link, a device, a sparse file); then nothing is extracted.
    """
    from tqdm import tqdm

    target, part = Path(to) / "VOCdevkit" / "VOC2012", Path(to) / "VOC2012.part"
    shutil.rmtree(part, ignore_errors=True)                     # what an interrupted extraction left
    try:
        with tarfile.open(archive, "r:") as tar:
            files = _plain_files(tar)
            wanted = sorted(files) if everything else _segmentation_files(tar, files)
            for name in tqdm(wanted, desc="extracting", unit="file", disable=None):
                path = part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(files[name]) as source, open(path, "xb") as copy:
                    shutil.copyfileobj(source, copy)
        target.parent.mkdir(exist_ok=True)
        os.rename(part, target)
    except tarfile.TarError as error:
        raise DownloadError(f"{archive}: damaged tar archive: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _plain_files(tar):
    """{path below VOCdevkit/VOC2012: member}, after a look at every member."""
    files = {}
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or any(letter in member.name for letter in "\\:\0"):
            raise DownloadError(f"{tar.name}: {ascii(member.name)} leads out of the folder; nothing was extracted")
        if member.isdir():
            continue
        if not member.isreg() or member.sparse is not None:
            raise DownloadError(f"{tar.name}: {ascii(member.name)} is a link, a device or sparse; nothing was extracted")
        name = "/".join(path.parts[2:])
        if path.parts[:2] != ("VOCdevkit", "VOC2012") or name in files:
            raise DownloadError(f"{tar.name}: {ascii(member.name)} is not in VOCdevkit/VOC2012 or stands there twice")
        files[name] = member
    return files


def _segmentation_files(tar, files):
    """The lists of ImageSets/Segmentation, and image and mask of every id in them."""
    lists = [name for name in files if name.startswith("ImageSets/Segmentation/")]
    ids = {line.strip() for name in lists for line in tar.extractfile(files[name]).read().decode("latin-1").splitlines()}
    wanted = lists + [path for name in sorted(ids - {""})
                      for path in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png")]
    absent = [path for path in wanted if path not in files]
    if absent or not ids:
        raise DownloadError(f"{tar.name}: ImageSets/Segmentation is missing, or lists what is not there: {absent[:3]}")
    return wanted
