"""Files that appear whole or not at all, and folders that one process at a time writes into; on Linux, macOS and Windows.

At the names .NAME.minifcn (NAME while it is written) and .lock somebody else may have put a link. The link is not followed, and
no file that existed before is emptied.
Source: the order write, fsync, rename, fsync of the folder: Pillai et al., OSDI 2014, "All file systems are not created equal".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# The errors of file systems that have no locks, or cannot fsync a folder: some network file systems, such as Lustre.
UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
# The errors when another process holds the lock: the first two are flock's, the others are those of Windows.
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
WINDOWS = os.name == "nt"
BINARY = getattr(os, "O_BINARY", 0)             # only Windows has it; without it Windows would write \r\n for \n


class FolderInUse(ValueError):
    """Another process holds the folder's lock; the message names the folder."""


def unfinished(path):
    """The name that a file has while it is written. A name such as NAME.tmp might be that of a file of the user's."""
    return path.with_name(f".{path.name}.minifcn")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only when it is complete and on disk. Readers see the old file or the new one.

    If the process is killed, at most the file `unfinished(path)` is left; the next write replaces it. After an error it is
    removed, and an OSError (disk full, read-only folder, ...) names `path`. If two processes write one file at the same time,
    the first gets an OSError, unless they meet in the instant before the rename (use `locked` where this matters). A link at
    `path` is replaced by the file. Anything else that is not a regular file, such as /dev/null, is an error.
    """
    path = Path(path)
    temporary, mine = unfinished(path), None
    try:
        _check_replaceable(path)
        temporary.unlink(missing_ok=True)
        # O_EXCL: if the name exists again by now, even as a link, opening it is an error.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with os.fdopen(handle, "wb") as file:
            mine = os.fstat(handle)
            yield file
            file.flush()
            os.fsync(handle)
            if not _is(mine, temporary):
                raise OSError(errno.EBUSY, f"another process has written or removed {temporary.name} meanwhile")
        os.replace(temporary, path)
    except BaseException as error:
        if mine is not None and _is(mine, temporary):
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):                                              # the error of a write() names no file
            if error.errno is None:
                raise OSError(f"{path}: {error}") from error
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def _is(file, path):
    """Whether a file, given by its os.stat_result, has this name."""
    try:
        return os.path.samestat(file, os.lstat(path))
    except OSError:
        return False


def _check_replaceable(path):
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EINVAL, "a folder, a pipe or a device, which no file replaces")


def _sync_folder(folder):
    """Make sure that the rename is on disk. On Windows a folder cannot be opened, and this is not needed."""
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
    """Make the folder and hold its lock, the file .lock in it. The lock ends with the process, even if the process is killed.

    doing: for the message, such as "training".
    raises: FolderInUse when another process holds the lock; OSError when the folder or the file cannot be made or opened.
    If the file system has no locks, one warning names the folder, and the work goes on.
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
        os.close(handle)                        # this also releases the lock


def _open_lock(path):
    """A handle of the lock file. The file is made if it is missing. A link is not followed, and a file is not emptied."""
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
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)                      # locks the first byte, even of an empty file
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_warned: set[tuple] = set()


def _warn_once(folder, what):
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        warnings.warn(f"{folder}: the file system {what}", RuntimeWarning, stacklevel=4)
