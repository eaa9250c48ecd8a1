"""Opens what strangers name: ordinary files only, of at most a stated size. A pipe, a device or a folder is an error at once.
And prints what strangers wrote: `printable` leaves no character that moves a terminal's cursor.

Without this, reading from a pipe that nobody writes to waits for ever, and reading /dev/zero ends when memory does.
Read after models/fcn.py; read next atomic.py.
"""

import errno
import os
import stat


def open_regular(path, largest=None):
    """The file at `path`, opened for reading bytes.

    largest: bytes; a larger file is refused, so that reading the whole of it takes a known memory. None: any size.
    raises: OSError that names the path: no such file, not an ordinary file, too large.
    """
    # O_NONBLOCK: opening a pipe must not wait for its writer; it changes nothing for ordinary files. Windows has none.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "a pipe, a device or a socket, not a regular file", str(path))
        if largest is not None and facts.st_size > largest:
            raise OSError(errno.EFBIG, f"has {facts.st_size:,} bytes, but at most {largest:,} are read", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def printable(text, most=4000):
    """A text as a terminal may show it: control characters as \\x1b, lines as they are, and not more than `most` characters."""
    if len(text) > most:
        text = f"{text[:most * 3 // 4]} ... {len(text) - most:,} characters ... {text[-most // 4:]}"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def read_regular(path, largest):
    """The bytes of an ordinary file of at most `largest` bytes; raises what open_regular does."""
    with open_regular(path, largest) as file:
        content = file.read(largest + 1)                    # it may grow while it is read
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"grew beyond the {largest:,} bytes that are read", str(path))
    return content
