"""Atomic writes and locks: nothing is half-written, nothing is followed, and Windows and file systems without locks work."""

import errno
import os
import subprocess
import sys
import types
import warnings

import pytest

from minifcn.files import atomic as files
from minifcn.files.atomic import FolderInUse, atomic, locked, unfinished


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "file") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with atomic(tmp_path / "file") as file:
        file.write(b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["file", ".file.minifcn"])
def test_a_link_is_replaced_and_not_followed(name, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()


def test_a_file_of_the_users_is_not_taken_for_a_remainder(tmp_path):
    (tmp_path / "file.tmp").write_bytes(b"mine")
    with atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file.tmp").read_bytes() == b"mine" and (tmp_path / "file").read_bytes() == b"new"


def test_what_a_killed_process_left_is_replaced(tmp_path):
    unfinished(tmp_path / "file").write_bytes(b"half")
    with atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(make, tmp_path):
    """A root who exports a network to /dev/null shall not lose /dev/null."""
    make(tmp_path / "thing")
    with pytest.raises(OSError, match="a folder, a pipe or a device, which no file replaces: '.*thing'"):
        with atomic(tmp_path / "thing") as file:
            file.write(b"new")
    assert os.listdir(tmp_path) == ["thing"] and not (tmp_path / "thing").is_file()


def test_a_folder_in_the_place_of_the_temporary_file(tmp_path):
    unfinished(tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file") as error, atomic(tmp_path / "file"):
        pass
    assert error.value.filename == str(tmp_path / "file")


HOLD = """
import sys
from minifcn.files.atomic import locked
with locked(sys.argv[1], "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    """The second is refused; the lock goes with its holder, even one that is killed."""
    (tmp_path / ".lock").write_bytes(b"kept")
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match="another process is drawing into this folder"), locked(tmp_path, "drawing"):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path, "drawing"):
        pass
    assert (tmp_path / ".lock").read_bytes() == b"kept"


@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_lock_that_is_a_link_is_refused(target, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".lock").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match=r"a link, which a lock is not; delete it: .*\.lock"), locked(tmp_path, "training"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"precious" and not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"not an ordinary file, which a lock is.*\.lock"), locked(tmp_path, "training"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_work_goes_on_and_one_warning_names_the_folder(number, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(RuntimeWarning, match="knows no locks .*: nothing keeps a second process from training") as caught:
        with locked(tmp_path, "training"):
            pass
        with locked(tmp_path, "training"):
            pass
    assert len(caught) == 1 and str(tmp_path) in str(caught[0].message)


def test_other_errors_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match=r"Input/output error: .*\.lock"), locked(tmp_path, "training"):
        pass


def test_a_folder_that_cannot_be_synchronised(tmp_path, monkeypatch):
    """Some network file systems know no fsync of a folder: the file is there all the same."""
    fsync = os.fsync

    def files_only(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    with pytest.warns(RuntimeWarning, match="cannot be synchronised"), atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_windows(tmp_path, monkeypatch):
    """Windows has msvcrt in place of fcntl, opens no folders, and answers EACCES for a lock that is held."""
    held, real_open = set(), os.open

    def locking(handle, mode, count):
        assert (mode, count) == (2, 1)
        file = os.fstat(handle).st_ino
        if file in held:
            raise OSError(errno.EACCES, "Permission denied")
        held.add(file)

    def opens_no_folders(path, *arguments):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", opens_no_folders)
    for flag in ("O_NOFOLLOW", "O_NONBLOCK"):
        monkeypatch.delattr(os, flag)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with locked(tmp_path, "training"):
            with atomic(tmp_path / "file") as file:
                file.write(b"new")
            with pytest.raises(FolderInUse, match="another process is training"), locked(tmp_path, "training"):
                pass
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file")
def test_two_writers_of_one_file(tmp_path):
    """The second one takes the name while the first still writes. The first one fails; nothing half-written appears."""
    path = tmp_path / "f"
    with pytest.raises(OSError, match="another process has written or removed .f.minifcn"):
        with atomic(path) as first:
            first.write(b"AAAAA")
            second = atomic(path)
            file = second.__enter__()
            file.write(b"BB")
    assert not path.exists()
    file.write(b"BBB")
    second.__exit__(None, None, None)
    assert path.read_bytes() == b"BBBBB"


def test_an_error_without_a_number(tmp_path):
    with pytest.raises(OSError, match="f: encoder error -2"):
        with atomic(tmp_path / "f"):
            raise OSError("encoder error -2")
