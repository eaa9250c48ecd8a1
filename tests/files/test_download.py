"""Downloads from a local server that does what servers do: it stalls, hangs up, lies and sends something else."""

import io
import os
import resource
import shutil
import signal
import socket
import tarfile

import pytest
from hosts import BUSY, BYTES, DRIPS, REDIRECTS, faults, patiently, source

from minifcn.__main__ import main
from minifcn.files import download as module
from minifcn.files.download import DownloadError, Source, download, extract_voc, fetch, mismatch


@pytest.mark.parametrize("paths, asked", [
    (["good"], ["good"]),
    (["404", "good"], ["404", "good"]),                                     # official host, then mirror
    (["500", "good"], ["500", "good"]),
    (["dead", "good"], ["dead", "good"]),
    (["cut/good"], ["cut", "good"]),                                        # the same host continues
    (["cut/404", "good"], ["cut", "404", "good"]),                          # the mirror continues
    (["cut/cut/good"], ["cut", "cut", "good"]),
    (["cut/unranged"], ["cut", "unranged"]),                                # skips what is there already
    (["cut/shifted", "good"], ["cut", "shifted", "good"]),
    (["unsized"], ["unsized"]),
    (["endless"], ["endless"]),                                             # the first bytes are right
    (["short", "good"], ["short", "good"]),                                 # a length that cannot be right
    (["long", "good"], ["long", "good"]),
    (["other", "good"], ["other", "good"]),
    (["wrong", "good"], ["wrong", "good"]),
    (["cut/wrong/good"], ["cut", "wrong", "good"]),                         # bad bytes somewhere: once more from the start
])
def test_gets_the_file_in_spite_of(server, tmp_path, paths, asked):
    path = fetch(source(server, *paths), tmp_path, timeout=BUSY)
    assert path == tmp_path / "file.bin" and path.read_bytes() == BYTES
    assert faults(server) == asked
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_host_that_stalls_is_asked_again(server, tmp_path):
    def attempt(folder, timeout):
        assert fetch(source(server, "stall/good"), folder, timeout=timeout).read_bytes() == BYTES
        assert faults(server) == ["stall", "good"]

    patiently(server, tmp_path, attempt)


@pytest.mark.parametrize("fault", sorted(REDIRECTS))
def test_a_redirect_that_leads_nowhere_is_the_mirrors_turn(server, tmp_path, fault):
    path = fetch(source(server, fault, "good"), tmp_path, timeout=BUSY)
    assert path.read_bytes() == BYTES and faults(server)[-1] == "good"


@pytest.mark.parametrize("fault", sorted(DRIPS))
def test_a_host_that_sends_too_little_is_given_up(server, tmp_path, fault):
    """One byte now and then keeps any timeout of a socket waiting; so do headers and "100 Continue" without end."""
    def attempt(folder, timeout):
        with pytest.raises(DownloadError, match="sends less than 1,024 bytes a second"):
            fetch(source(server, fault), folder, timeout=timeout)
        assert fetch(source(server, f"{fault}/404", "good"), folder, timeout=timeout).read_bytes() == BYTES

    patiently(server, tmp_path, attempt)


def test_what_a_host_says_is_printed_without_control_characters(server, tmp_path):
    with pytest.raises(DownloadError, match=r"404: \\x1b\[2J\\x07gone!") as error:
        fetch(source(server, "escape"), tmp_path, timeout=BUSY)
    assert len(str(error.value)) < 1000 and "\x1b" not in str(error.value)


def test_links_are_not_followed(server, tmp_path):
    """In the places of FILE.part and VOC2012.part: what they lead to is neither written nor deleted."""
    to, precious = tmp_path / "to", tmp_path / "precious"
    to.mkdir(), precious.mkdir()
    (precious / "file").write_text("keep me")
    (to / "file.bin.part").symlink_to(precious / "file")
    with pytest.raises(OSError, match="file.bin.part is a link or no regular file; delete it"):
        fetch(source(server, "good"), to, timeout=BUSY)
    (to / "file.bin.part").unlink()
    os.mkfifo(to / "file.bin.part")
    with pytest.raises(OSError, match="file.bin.part is a link or no regular file; delete it"):
        fetch(source(server, "good"), to, timeout=BUSY)
    (to / "VOC2012.part").symlink_to(precious)
    (to / "voc.tar").write_bytes(tar(VOC))
    assert tree(extract_voc(to / "voc.tar", to)) == WANTED
    assert tree(precious) == {"file"} and (precious / "file").read_text() == "keep me"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to nothing"])
def test_what_is_no_file_in_the_files_place(server, tmp_path, kind, monkeypatch):
    target = tmp_path / "file.bin"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path),
     "link to nothing": lambda path: os.symlink("nowhere", path)}[kind](target)
    monkeypatch.setitem(module.SOURCES, "resnet18", source(server, "good"))
    with pytest.raises(DownloadError, match="file.bin"):
        download("resnet18", tmp_path, timeout=BUSY)


def test_continues_where_it_broke_off(server, tmp_path):
    fetch(source(server, "cut/good"), tmp_path, timeout=BUSY)
    assert server.requests == [("cut", None), ("good", "bytes=300000-")]


def test_a_later_run_continues(server, tmp_path):
    with pytest.raises(DownloadError, match=r"300,000 of 700,001"):
        fetch(source(server, "cut/404"), tmp_path, timeout=BUSY)
    assert os.listdir(tmp_path) == ["file.bin.part"]
    fetch(source(server, "good"), tmp_path, timeout=BUSY)
    assert server.requests[-1] == ("good", "bytes=300000-")


@pytest.mark.parametrize("rest", [0, 1, 5])                                 # of an older, longer or damaged file
def test_a_part_that_is_wrong_is_replaced(server, tmp_path, rest):
    (tmp_path / "file.bin.part").write_bytes(bytes(len(BYTES) - 1 + rest))
    assert fetch(source(server, "good"), tmp_path, timeout=BUSY).read_bytes() == BYTES


@pytest.mark.parametrize("path, message", [
    ("404", "HTTP Error 404"), ("500", "HTTP Error 500"), ("dead", "broke off after 0 bytes"),
    ("short", "announces 699,991 bytes instead of 700,001"), ("long", "announces 700,011"), ("other", "announces 43 bytes"),
    ("wrong", "has the sha256 .* instead of"), ("stall/dead", "broke off after 300,000 bytes"),
    ("cut/shifted", "another range than bytes 300000-"), ("unranged-cut", "broke off after 233,333"),
    ("cut/wrong", "has the sha256"), ("cut/wrong/cut/wrong/good", "has the sha256"),
])
def test_gives_up_with_a_message(server, tmp_path, path, message):
    def attempt(folder, timeout):
        with pytest.raises(DownloadError, match=message) as error:
            fetch(source(server, path), folder, timeout=timeout)
        assert server.url + path in str(error.value) and str(folder / "file.bin") in str(error.value)   # by hand: from, to
        assert not (folder / "file.bin").exists()
        assert len(server.requests) <= 4

    if "stall" in path:
        patiently(server, tmp_path, attempt)
    else:
        attempt(tmp_path, BUSY)


def test_a_host_that_drips_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="broke off after 600,000"):
        fetch(source(server, "cut"), tmp_path, timeout=BUSY)
    assert faults(server) == ["cut", "cut"]


def test_without_a_network(tmp_path):
    with socket.socket() as closed:                                         # a port on which nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match="refused") as error:
            fetch(Source("file.bin", 5, "md5", "00", (url,)), tmp_path, timeout=BUSY)
    assert url in str(error.value) and f"put it at\n    {tmp_path / 'file.bin'}" in str(error.value)


def test_a_file_put_there_by_hand(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(BYTES)
    fetch(source(server, "good"), tmp_path)
    assert server.requests == []
    (tmp_path / "file.bin").write_bytes(BYTES[:-1] + b"!")
    with pytest.raises(DownloadError, match="delete it"):
        fetch(source(server, "good"), tmp_path)
    assert (tmp_path / "file.bin").exists() and server.requests == []


def test_mismatch(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(BYTES)
    assert mismatch(tmp_path / "file.bin", source(server, digits=8)) is None
    assert "instead of" in mismatch(tmp_path / "file.bin", source(server)._replace(digest="f37072fd"))
    assert "bytes" in mismatch(tmp_path / "file.bin", source(server)._replace(size=3))


def test_full_disk(server, tmp_path):
    with pytest.raises(DownloadError, match="free space"):
        fetch(source(server, "good")._replace(size=10**18), tmp_path)
    assert server.requests == []


def test_disk_that_fills_up_while_writing(server, tmp_path, monkeypatch):
    monkeypatch.setitem(module.SOURCES, "resnet18", source(server, "good", "good"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))         # bytes a file may have
    try:
        with pytest.raises(DownloadError, match="too large"):
            download("resnet18", tmp_path, timeout=BUSY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert faults(server) == ["good"]                                       # the mirror would not help
    assert download("resnet18", tmp_path, timeout=BUSY).read_bytes() == BYTES


def test_what_is_downloaded():
    voc, resnet = module.SOURCES["voc2012"], module.SOURCES["resnet18"]
    assert len(voc.urls) == 2 and all(url.endswith("/" + voc.file) for url in voc.urls)
    assert voc.algorithm == "md5" and len(voc.digest) == 32
    assert resnet.file.removesuffix(".pth").endswith(resnet.digest)         # PyTorch's convention


# -- the tar -----------------------------------------------------------------------------------------------------------

ROOT = "VOCdevkit/VOC2012/"
VOC = {ROOT + name: name.encode() * 50 for name in (
    "Annotations/a.xml", "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/other.jpg", "SegmentationClass/a.png",
    "SegmentationClass/b.png", "SegmentationObject/a.png", "ImageSets/Main/a_train.txt")} | {
    ROOT + "ImageSets/Segmentation/train.txt": b"a\n", ROOT + "ImageSets/Segmentation/val.txt": b"b\r\n\n"}
WANTED = {"JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png", "SegmentationClass/b.png",
          "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"}


def tar(files, *special):
    """A tar archive with directories, as VOC's; special: (name, type, where a link leads)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("VOCdevkit", "VOCdevkit/VOC2012"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, kind, linkname in special:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname, entry.devmajor, entry.devminor = linkname, 1, 3         # /dev/null
            archive.addfile(entry)
    return stream.getvalue()


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_extracts_the_segmentation_files_only(tmp_path):
    (tmp_path / "voc.tar").write_bytes(tar(VOC))
    voc = extract_voc(tmp_path / "voc.tar", tmp_path)
    assert voc == tmp_path / "VOCdevkit" / "VOC2012" and tree(voc) == WANTED
    assert all((voc / name).read_bytes() == VOC[ROOT + name] for name in WANTED)


def test_extracts_everything_when_asked(tmp_path):
    (tmp_path / "voc.tar").write_bytes(tar(VOC))
    assert tree(extract_voc(tmp_path / "voc.tar", tmp_path, everything=True)) == {name.removeprefix(ROOT) for name in VOC}


OUT, PLAIN, TWICE = "leads out of the folder", "is a link, a device or sparse", "or stands there twice"


@pytest.mark.parametrize("name, kind, linkname, message", [
    (ROOT + "../../../escaped.txt", tarfile.REGTYPE, "", OUT),
    ("/tmp/minifcn-escaped.txt", tarfile.REGTYPE, "", OUT),
    ("../VOCdevkit/VOC2012/escaped.txt", tarfile.REGTYPE, "", OUT),
    (ROOT + "JPEGImages/..\\..\\escaped.txt", tarfile.REGTYPE, "", OUT),
    ("C:" + ROOT + "escaped.txt", tarfile.REGTYPE, "", OUT),
    (ROOT + "..", tarfile.DIRTYPE, "", OUT),
    ("elsewhere.txt", tarfile.REGTYPE, "", TWICE),
    (ROOT + "JPEGImages/a.jpg", tarfile.REGTYPE, "", TWICE),
    (ROOT + "link", tarfile.SYMTYPE, "/etc", PLAIN),
    (ROOT + "link", tarfile.LNKTYPE, ROOT + "JPEGImages/a.jpg", PLAIN),
    (ROOT + "device", tarfile.CHRTYPE, "", PLAIN),
    (ROOT + "device", tarfile.BLKTYPE, "", PLAIN),
    (ROOT + "pipe", tarfile.FIFOTYPE, "", PLAIN),
    (ROOT + "sparse", tarfile.GNUTYPE_SPARSE, "", PLAIN),
])
@pytest.mark.parametrize("everything", [False, True])
def test_refuses_members(tmp_path, name, kind, linkname, message, everything):
    to = tmp_path / "inside"
    to.mkdir()
    (to / "voc.tar").write_bytes(tar(VOC, (name, kind, linkname)))
    with pytest.raises(DownloadError, match=f"voc.tar: .*{message}"):
        extract_voc(to / "voc.tar", to, everything)
    assert os.listdir(to) == ["voc.tar"] and os.listdir(tmp_path) == ["inside"]


@pytest.mark.parametrize("size", [0, 100, 3000, 8000, -3000])
def test_refuses_a_tar_cut_short(tmp_path, size):
    content = tar({name: content * 10 for name, content in VOC.items()})
    content = content.rstrip(b"\0")
    (tmp_path / "voc.tar").write_bytes(content[:size])
    with pytest.raises(DownloadError, match="voc.tar"):
        extract_voc(tmp_path / "voc.tar", tmp_path)
    assert os.listdir(tmp_path) == ["voc.tar"]


@pytest.mark.parametrize("lacking", ["JPEGImages/b.jpg", "SegmentationClass/a.png", "ImageSets"])
def test_refuses_a_tar_that_lacks_listed_files(tmp_path, lacking):
    (tmp_path / "voc.tar").write_bytes(tar({name: content for name, content in VOC.items() if lacking not in name}))
    with pytest.raises(DownloadError, match="lists what is not there"):
        extract_voc(tmp_path / "voc.tar", tmp_path)
    assert os.listdir(tmp_path) == ["voc.tar"]


@pytest.mark.parametrize("everything", [False, True])
def test_refuses_a_tar_with_a_damaged_header_in_its_midst(tmp_path, everything):
    """Python's tarfile ends there, as if the archive did."""
    content = bytearray(tar(VOC | {ROOT + "Annotations/last.xml": b"<xml/>"}))
    content[content.rindex(b"ustar") - 200] ^= 1                                # in the last header
    (tmp_path / "voc.tar").write_bytes(content)
    with pytest.raises(DownloadError, match=r"voc.tar: damaged tar archive: the header at byte [\d,]+ is none"):
        extract_voc(tmp_path / "voc.tar", tmp_path, everything)
    assert os.listdir(tmp_path) == ["voc.tar"]


@pytest.mark.parametrize("spoil, match", [
    (shutil.rmtree, "lacks ImageSets/Segmentation"),
    (lambda voc: (voc / "JPEGImages" / "a.jpg").unlink(), r"lacks 1 files, such as JPEGImages/a.jpg"),
    (lambda voc: shutil.rmtree(voc / "SegmentationClass"), r"files, such as SegmentationClass"),
    (lambda voc: shutil.rmtree(voc / "ImageSets"), "lacks ImageSets/Segmentation"),
    (lambda voc: [os.unlink(path) or os.mkfifo(path) for path in (voc / "ImageSets" / "Segmentation").glob("*.txt")],
     "lacks readable lists")])
def test_a_folder_that_is_not_whole_is_no_success(tmp_path, spoil, match):
    (tmp_path / "voc.tar").write_bytes(tar(VOC))
    voc = extract_voc(tmp_path / "voc.tar", tmp_path)
    assert download("voc2012", tmp_path) == voc
    spoil(voc)
    voc.mkdir(exist_ok=True)
    with pytest.raises(DownloadError, match=match):
        download("voc2012", tmp_path)


def test_a_half_extracted_tree_never_looks_whole(tmp_path):
    """Killed after the third file: VOCdevkit/VOC2012 is not there, and the next run does not trip over the remains."""
    (tmp_path / "voc.tar").write_bytes(tar(VOC))
    pid = os.fork()
    if pid == 0:
        copy, copied = shutil.copyfileobj, []

        def copy_three(source, target):
            if len(copied) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            copied.append(copy(source, target))

        shutil.copyfileobj = copy_three
        try:
            extract_voc(tmp_path / "voc.tar", tmp_path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(tree(tmp_path / "VOC2012.part")) == 4 and not (tmp_path / "VOCdevkit").exists()
    assert tree(extract_voc(tmp_path / "voc.tar", tmp_path)) == WANTED
    assert not (tmp_path / "VOC2012.part").exists()


def test_voc_from_address_to_folder_once(server, tmp_path, monkeypatch):
    server.content = tar(VOC)
    voc = source(server, "404", "cut/good", content=server.content)._replace(file="voc.tar")
    monkeypatch.setitem(module.SOURCES, "voc2012", voc)
    voc = download("voc2012", tmp_path / "new" / "folder", timeout=BUSY)
    assert tree(voc) == WANTED
    asked = len(server.requests)
    assert download("voc2012", tmp_path / "new" / "folder") == voc and len(server.requests) == asked
    with pytest.raises(DownloadError, match="segmentation files only"):
        download("voc2012", tmp_path / "new" / "folder", everything=True)


def test_command_line(server, tmp_path, monkeypatch, capsys):
    server.content = tar(VOC)
    tar_file = source(server, "good", content=server.content)._replace(file="voc.tar")
    monkeypatch.setitem(module.SOURCES, "voc2012", tar_file)
    monkeypatch.setitem(module.SOURCES, "resnet18", tar_file._replace(file="some.pth"))
    monkeypatch.chdir(tmp_path)
    assert main(["download", "voc2012", "--to", "some folder", "--everything"]) == 0
    assert capsys.readouterr().out == "use it with: minifcn train --data 'some folder/VOCdevkit/VOC2012'\n"
    assert tree(tmp_path / "some folder" / "VOCdevkit" / "VOC2012") == {name.removeprefix(ROOT) for name in VOC}
    assert main(["download", "resnet18"]) == 0
    assert capsys.readouterr().out == "use it with: minifcn train --pretrained runs/data/some.pth\n"
    with pytest.raises(SystemExit, match="2"):
        main(["download", "mnist"])
    assert "choose from" in capsys.readouterr().err


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="file"):
        download("resnet18", tmp_path / "file" / "folder")
