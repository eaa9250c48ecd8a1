"""Reads the entries of a zip archive, and checks that none inflates beyond its declared size and none overlaps another.

    [30 bytes, name, extra] [bytes of entry 0]   [30 bytes, name, extra] [bytes of entry 1]   ...   directory
                                                                        the directory says where each begins, its sizes
                                                                        before and after inflation, and its CRC-32

Python's zipfile is used for the directory only. For an entry it inflates all its bytes first and cuts the result to the
declared size afterwards, so 2 MB may take 1 GB of memory.
Source: PKWARE's APPNOTE.TXT, sections 4.3.7 (the 30 bytes) and 4.4.
"""

import zipfile
import zlib

from minifcn.files.unpickle import WeightsError, show

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ENCRYPTED, UTF8 = 1, 0x800  # bits of an entry's flags


class Archive:
    """The entries of a zip archive by name. Raises WeightsError for a damaged archive and for tricks."""

    def __init__(self, file, file_size):
        self.file = file
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:      # OSError: wild seek
            raise WeightsError(f"damaged zip archive: {show(error)}") from None
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise WeightsError("two entries of the zip archive have one name")
        if any(entry.compress_type not in (STORED, DEFLATED) or entry.flag_bits & ENCRYPTED for entry in entries):
            raise WeightsError("the zip archive is encrypted, or compressed in another way than deflate")
        if sum(entry.compress_size for entry in entries) > file_size:
            raise WeightsError("the entries of the zip archive overlap")
        if not all(0 <= entry.header_offset < file_size for entry in entries):
            raise WeightsError("damaged zip archive: an entry lies outside the file")
        self.summed = any(entry.CRC for entry in entries)       # torch.serialization.set_crc32_options(False): all zero

    def __contains__(self, name):
        return name in self.entries

    def size(self, name):
        """Bytes of the entry, inflated."""
        return self.entries[name].file_size

    def seek(self, name):
        """Go to the first byte of an entry. Raises WeightsError unless the header before it has the entry's name."""
        entry = self.entries.get(name)
        if entry is None:
            raise WeightsError(f"the zip archive has no entry {show(name)}")
        self.file.seek(entry.header_offset)
        header = self.file.read(30)
        own = self.file.read(int.from_bytes(header[26:28], "little")).decode(
            "utf-8" if entry.flag_bits & UTF8 else "cp437", "replace")
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or own != entry.orig_filename:
            raise WeightsError(f"damaged zip archive: entry {show(name)} is not where the directory says")
        self.file.seek(int.from_bytes(header[28:30], "little"), 1)

    def read(self, name, limit):
        """The bytes of an entry, at most `limit`; its CRC-32 is checked."""
        self.seek(name)
        entry = self.entries[name]
        if entry.file_size > limit:
            raise WeightsError(f"entry {show(name)} has more than {limit:,} bytes")
        raw, whole = self.file.read(entry.compress_size), True
        if entry.compress_type == DEFLATED:
            inflate = zlib.decompressobj(-15)                   # -15: without zlib's own header and sum
            try:
                raw = inflate.decompress(raw, entry.file_size + 1)
            except zlib.error as error:
                raise WeightsError(f"damaged zip archive: entry {show(name)}: {show(error)}") from None
            whole = inflate.eof
        if len(raw) != entry.file_size or not whole:
            raise WeightsError(f"damaged zip archive: entry {show(name)} is not of the size that the directory says")
        if self.summed and zlib.crc32(raw) != entry.CRC:
            raise WeightsError(f"damaged zip archive: Bad CRC-32 for entry {show(name)}")
        return raw
