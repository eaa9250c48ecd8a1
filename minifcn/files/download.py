"""Downloads Pascal VOC 2012 and ResNet-18's ImageNet weights from their hosts, and checks everything that it gets.

    FILE.part   what has arrived so far. If a connection breaks, the next request continues the file. A link with this name
                is not followed
    FILE        appears when size and checksum are right
    VOCdevkit/VOC2012    appears when every file in it has been written (until then it is called VOC2012.part)

data/voc.py reads the folder, weights.py reads the weights.
Sources: torchvision/datasets/voc.py and torchvision/models/resnet.py (addresses and checksums); d2l.ai (the mirror);
RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import threading
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from minifcn.files.atomic import FolderInUse, locked
from minifcn.files.regular import open_regular, printable, read_regular

ATTEMPTS = 20               # most requests to one host; a request that brings nothing new is the last one
BLOCK = 2**18               # bytes read at once
LEAST_RATE = 1024           # bytes a second, as a mean over `timeout` seconds; a connection that brings less is closed
SLOW = f"sends less than {LEAST_RATE:,} bytes a second"
LONGEST_LIST = 2**20        # bytes of a list of images in the archive; VOC's have 35,000


PART_FLAGS = (os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
              | getattr(os, "O_BINARY", 0))


class DownloadError(RuntimeError):
    """A file could not be downloaded, or is not the right one; the message says what to do by hand."""


class Source(NamedTuple):
    """A file: its name, its size and checksum, and its addresses."""
    file: str
    size: int               # bytes
    algorithm: str          # a name that hashlib knows
    digest: str             # the first hexadecimal digits of its checksum
    urls: tuple             # tried in this order


SOURCES = {
    "voc2012": Source("VOCtrainval_11-May-2012.tar", 1_999_639_040, "md5", "6cd6e144f989b92b3379bac3b3de84fd",
                      ("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",     # often down
                       "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar")),
    "resnet18": Source("resnet18-f37072fd.pth", 46_830_571, "sha256", "f37072fd",
                       ("https://download.pytorch.org/models/resnet18-f37072fd.pth",)),
}


def download(name: str, to: str | Path, everything: bool = False, timeout: float = 30.0) -> Path:
    """Get a data set or weights. What is there already is not downloaded again.

    name: "voc2012" (2.0 GB) or "resnet18" (47 MB).
    to: folder, made if needed. A file put there by hand is checked and used.
    everything: extract all of VOC 2012, not only the 2,913 images with masks, their masks and the lists.
    timeout: seconds without a byte, or with less than LEAST_RATE, after which a connection counts as broken.
    returns: Path of the folder VOCdevkit/VOC2012, or of the weights file.
    raises: DownloadError.
    """
    to = Path(to)
    voc = to / "VOCdevkit" / "VOC2012"
    if name == "voc2012" and os.path.lexists(voc):
        if everything and not (voc / "Annotations").exists():
            raise DownloadError(f"{voc} holds the segmentation files only; move it away to extract everything")
        if lacking := _lacking(voc):
            raise DownloadError(f"{voc} is there, but lacks {lacking}; move it away and run the command again")
        return voc
    try:
        with locked(to, "downloading"):         # two downloads would mix in FILE.part and VOC2012.part
            file = fetch(SOURCES[name], to, timeout)
            return extract_voc(file, to, everything) if name == "voc2012" else file
    except FolderInUse as error:
        raise DownloadError(str(error)) from None
    except OSError as error:                                    # an error of the disk; those of the network end in `fetch`
        raise DownloadError(f"{to}: {error}") from error


def fetch(source, to, timeout=30.0):
    """Get one file into the folder `to`, from the first host that has it, and check it; see `download`."""
    target = Path(to) / source.file
    if os.path.lexists(target):
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
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != source.size:
            return f"has {size:,} bytes instead of {source.size:,}"
        digest = hashlib.file_digest(file, source.algorithm).hexdigest()
    if not digest.startswith(source.digest):
        return f"has the {source.algorithm} {digest} instead of {source.digest}"
    return None


def _size(part):
    """Bytes of a .part file, 0 if there is none. Raises OSError for a link: another file would be written."""
    try:
        status = os.lstat(part)
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{part.name} is a link or no regular file; delete it")
    return status.st_size


def _fetch_from(url, part, source, timeout):
    """Send requests to one host as long as each brings something new. Returns None if `part` is right, else what is wrong."""
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
            restarted = True                # the first bytes may be from another host: once more from the start
        elif _size(part) == before or problem.endswith(SLOW):
            return problem
    return problem


def _request(url, part, source, timeout):
    """One request that continues `part`. Returns None when it has its full size, else what broke."""
    from tqdm import tqdm

    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _Watch(timeout) as watch:
        try:
            response = watch.opener().open(request, timeout=timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:       # ValueError: redirected to a wrong address
            return watch.problem or _printable(error)
        with (response, os.fdopen(os.open(part, PART_FLAGS, 0o666), "ab") as file,
              tqdm(desc=source.file, total=source.size, initial=have, unit="B", unit_scale=True, disable=None) as bar):
            return _receive(response, file, bar, have, source, watch)


def _receive(response, file, bar, have, source, watch):
    """Append the body of a response to the file, which has `have` bytes. Returns None if it is complete, else what broke."""
    ranged = response.status == 206
    if ranged and not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
        return f"answered with another range than bytes {have}-"
    skip = 0 if ranged else have                                # a host without range requests sends all from the start
    if response.length not in (None, source.size - have + skip):
        return f"announces {response.length:,} bytes instead of {source.size - have + skip:,}"
    while have < source.size:
        try:
            block = response.read1(BLOCK)                       # read1 returns what has arrived and does not wait for more
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"broke off after {have:,} bytes: {watch.problem or _printable(error)}"
        if not block:
            return f"broke off after {have:,} bytes" + (f": {watch.problem}" if watch.problem else "")
        watch.received += len(block)
        new = block[skip:][:source.size - have]
        skip -= min(skip, len(block))
        file.write(new)
        have += len(new)
        bar.update(len(new))
    return None


class _Watch:
    """Shuts down the connections of its opener when they bring less than LEAST_RATE.

    The socket's own timeout is not enough: every byte starts it again. A host that sends one byte in half a second, or
    "100 Continue" again and again, would keep it waiting for ever.
    """

    def __init__(self, seconds):
        self.seconds, self.received, self.problem = seconds, 0, None
        self.sockets, self.over = [], threading.Event()

    def opener(self):
        """An opener of http and https alone: no redirect leads to a file or to FTP."""
        watch = self

        def watched(kind):
            class Connection(kind):
                def connect(self):
                    super().connect()
                    watch.sockets.append(self.sock)
            return Connection

        class HTTP(urllib.request.HTTPHandler):
            def http_open(self, request):
                return self.do_open(watched(http.client.HTTPConnection), request)

        class HTTPS(urllib.request.HTTPSHandler):
            def https_open(self, request):
                return self.do_open(watched(http.client.HTTPSConnection), request)

        opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler(), HTTP(), HTTPS(), urllib.request.HTTPDefaultErrorHandler(),
                        urllib.request.HTTPRedirectHandler(), urllib.request.HTTPErrorProcessor(),
                        urllib.request.UnknownHandler()):
            opener.add_handler(handler)
        return opener

    def __enter__(self):
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        before = 0
        while not self.over.wait(self.seconds):
            if self.sockets and self.received - before < LEAST_RATE * self.seconds:
                self.problem = SLOW
                for connection in self.sockets:
                    try:
                        connection.shutdown(2)                  # both directions; a waiting read then ends
                    except OSError:                             # closed already
                        pass
            before = self.received

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()


def _printable(error):
    """What a host says, in one line for the terminal."""
    return printable((str(error) or type(error).__name__).replace("\n", " "), 300)


def extract_voc(archive, to, everything=False):
    """Extract the VOC tar into to/VOCdevkit/VOC2012, which appears only when it is whole.

    returns: Path of that folder.
    raises: DownloadError if the tar is damaged, lacks a listed image, or holds anything but plain files in
        VOCdevkit/VOC2012 (a path that leads elsewhere, a link, a device, a sparse file); then nothing is extracted.
    """
    from tqdm import tqdm

    target, part = Path(to) / "VOCdevkit" / "VOC2012", Path(to) / "VOC2012.part"
    if part.is_symlink():
        part.unlink()
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
    for member in tar:                                          # ends at the first header that is damaged
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
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):        # a tar ends with blocks of zeros
        raise DownloadError(f"{tar.name}: damaged tar archive: the header at byte {tar.offset:,} is none")
    return files


def _segmentation_files(tar, files):
    """The lists of ImageSets/Segmentation, and image and mask of every id in them."""
    lists = [name for name in files if name.startswith("ImageSets/Segmentation/")]
    wanted = lists + _listed(tar.extractfile(files[name]).read(LONGEST_LIST) for name in lists)
    absent = [path for path in wanted if path not in files]
    if absent or wanted == lists:
        raise DownloadError(f"{tar.name}: ImageSets/Segmentation is missing, or lists what is not there: {absent[:3]}")
    return wanted


def _listed(lists):
    """The paths of image and mask of every id in the bytes of some lists."""
    ids = {line.strip() for content in lists for line in content.decode("latin-1").splitlines()}
    return [path for name in sorted(ids - {""}) for path in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png")]


def _lacking(voc):
    """What a folder VOC2012 lacks, or None: lists that name something, and every image and mask in them."""
    try:
        lists = [read_regular(path, LONGEST_LIST) for path in (voc / "ImageSets" / "Segmentation").glob("*.txt")]
        wanted = _listed(lists)
        absent = [path for path in wanted if not (voc / path).is_file()]
    except (OSError, ValueError) as error:                      # ValueError: a name with a zero byte in it
        return f"readable lists: {_printable(error)}"
    return f"{len(absent)} files, such as {_printable(absent[0])}" if absent else None if wanted else "ImageSets/Segmentation"
