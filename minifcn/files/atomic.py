"""Files that appear whole or not at all, and folders that one process at a time writes into; on Linux, macOS and Windows.

A name with a suffix, .tmp or .lock, may be a link that a stranger has put there. Neither is followed, and nothing that was
there before is emptied.
Read after regular.py; read next outputs.py.
Source: the order write, fsync, rename, fsync of the folder: Pillai et al., OSDI 2014, "All file systems are not created equal".
"""

import contextlib
import errno
import os
import stat
import warnings
from pathlib import Path

# What a file system answers when it does not know a lock or an fsync of a folder: some network file systems, such as Lustre.
UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
# What it answers when another process holds the lock: flock the first two, Windows the others.
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
WINDOWS = os.name == "nt"
BINARY = getattr(os, "O_BINARY", 0)             # Windows alone has it, and would write \r\n for \n without it


class FolderInUse(ValueError):
    """Another process holds the folder's lock; the message names the folder."""


@contextlib.contextmanager
def atomic(path):
    """A binary file that takes its name only when it is complete and on disk: readers see the old file or the new one.

    Killed at any moment, at most `<name>.tmp` is left over, which the next write replaces. An error removes it; an OSError
    (disk full, read-only folder, ...) names `path`. What is there and no file, such as /dev/null, is not replaced; a link is.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        _check_replaceable(path)
        temporary.unlink(missing_ok=True)
        # O_EXCL: a name that exists by now, be it a link, is not opened.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error        # a failed write() does not know its file
        raise
    _sync_folder(path.parent)


def _check_replaceable(path):
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EINVAL, "a folder, a pipe or a device, which no file replaces")


def _sync_folder(folder):
    """Bring the rename itself to the disk. Windows opens no folders, and does it by itself."""
    if WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        _warn_once(folder, "cannot be synchronised, so that a file written just before a power cut may be the older one")
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder, doing):
    """Make the folder and hold its lock, the file .lock in it. The lock ends with the process, however that ends.

    doing: for the message, such as "training".
    raises: FolderInUse when another process holds it; OSError when the folder or the file cannot be had.
    Where the file system knows no locks, a warning names the folder, once, and the work goes on.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file, where a folder is wanted", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    handle = _open_lock(path)
    try:
        _lock(handle)
    except OSError as error:
        if error.errno in HELD:
            os.close(handle)
            raise FolderInUse(f"{folder}: another process is {doing} into this folder") from None
        if error.errno not in UNKNOWN:
            os.close(handle)
            raise OSError(error.errno, error.strerror, str(path)) from error
        _warn_once(folder, f"knows no locks ({error.strerror}): nothing keeps a second process from {doing} into it")
    try:
        yield
    finally:
        os.close(handle)                        # and with it the lock


def _open_lock(path):
    """A handle of the lock file, which is made if it is not there, and neither followed nor emptied if it is."""
    flags = os.O_RDWR | os.O_CREAT | BINARY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, which a lock is not; delete it", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not an ordinary file, which a lock is; delete it", str(path))
    return handle


def _lock(handle):
    """Take an exclusive lock or raise OSError at once."""
    try:
        import fcntl
    except ImportError:                         # Windows
        import msvcrt
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)                      # the first byte, which need not exist
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_warned: set[tuple] = set()


def _warn_once(folder, what):
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        warnings.warn(f"{folder}: the file system {what}", RuntimeWarning, stacklevel=4)
