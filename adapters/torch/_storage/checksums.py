"""The checksums in a file of torch.save, a zip archive; torch.load compares none of them."""

import functools
import io
import lzma
import struct
import zipfile
import zlib
from typing import BinaryIO

from rmtspec.adapting import PathLike, open_regular
from rmtspec.errors import FileError

_BLOCK = 2**22


def check_archive(stream: BinaryIO, path: PathLike) -> None:
    """Raise `FileError` if a member of an archive does not have its CRC-32.

    Nothing is compared in a file that is no archive (as torch wrote before 1.6) or that was written
    without checksums (``torch.serialization.set_crc32_options(False)``: all of them are 0). The
    stream is left at its beginning.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if any(member.CRC for member in members):
                for member in members:
                    with archive.open(member) as content:
                        while content.read(_BLOCK):  # at the end zipfile compares the checksum
                            pass
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, LookupError,
        EOFError, OSError, RuntimeError, MemoryError,
    ) as error:  # fmt: skip
        stream.seek(0)
        if stream.read(2) == b"PK":
            raise FileError(
                f"{path} is damaged: {error}. It is not as it was written; copy or save it again."
            ) from error
    stream.seek(0, io.SEEK_SET)


@functools.lru_cache(maxsize=8)
def check_file(path: str, size: int, changed: int) -> None:
    """Do what `check_archive` does, once for a file with this size and time of change."""
    with open_regular(path) as stream:
        check_archive(stream, path)
