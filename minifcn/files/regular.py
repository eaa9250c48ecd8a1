"""Opens files that others have named or made: regular files only, of at most a stated size. A pipe, a device or a folder is an
error at once. `printable` makes text from such files safe to print: it escapes characters that move the cursor of a terminal.

Without these checks, reading from a pipe without a writer would wait for ever, and reading /dev/zero would fill the memory.
"""

import errno
import os
import stat


def open_regular(path, largest=None):
    """The file at `path`, opened for reading bytes.

    largest: bytes; a larger file is an error, so reading the whole file takes at most this much memory. None: any size.
    raises: OSError that names the path: no such file, not a regular file, too large.
    """
    # O_NONBLOCK: opening a pipe must not wait for its writer. For regular files it changes nothing. Windows does not have it.
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
    """A text that is safe to print: control characters as \\x1b, line ends unchanged, at most about `most` characters."""
    if len(text) > most:
        text = f"{text[:most * 3 // 4]} ... {len(text) - most:,} characters ... {text[-most // 4:]}"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def read_regular(path, largest):
    """The bytes of a regular file of at most `largest` bytes. Raises the errors of open_regular."""
    with open_regular(path, largest) as file:
        content = file.read(largest + 1)                    # it may grow while it is read
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"grew beyond the {largest:,} bytes that are read", str(path))
    return content
