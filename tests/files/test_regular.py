"""Only ordinary files are opened, of at most a stated size; nothing waits for the writer of a pipe."""

import os
import socket

import pytest

from minifcn.files.regular import open_regular, read_regular


def test_an_ordinary_file_and_a_link_to_it(tmp_path):
    (tmp_path / "a").write_bytes(b"content\r\n")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content\r\n"
        assert read_regular(tmp_path / name, 9) == b"content\r\n"


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "endless device", "folder", "socket", "nothing",
                                  "broken link"])
def test_anything_else_is_an_error_that_names_it(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)                             # a socket's address has at most 107 bytes
    path = "thing"
    if "pipe" in kind:
        os.mkfifo("pipe")
        os.symlink("pipe", path)
    elif "device" in kind:
        path = "/dev/zero" if kind == "endless device" else "/dev/null"
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)                             # its file stays
    elif kind == "broken link":
        os.symlink("nowhere", path)
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=path):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == handles      # nothing stays open


def test_a_larger_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10))
    assert len(read_regular(tmp_path / "a", 10)) == 10
    with pytest.raises(OSError, match="10 bytes, but at most 9 are read: '.*a'"):
        open_regular(tmp_path / "a", 9)


def test_a_file_that_grows_while_it_is_read(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(bytes(10))
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result((*real(handle)[:6], 3, *real(handle)[7:])))
    with pytest.raises(OSError, match="grew beyond the 3 bytes"):
        read_regular(tmp_path / "a", 3)
