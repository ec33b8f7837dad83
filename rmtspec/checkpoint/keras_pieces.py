"""Arrays of HDF5 that are stored in pieces: refused where a piece is not as large as it says.

The HDF5 library unpacks a piece into as much memory as it takes: 10 KB packed twice become 10 GB.
Of a piece that is too short it gives what lies behind it in the memory of the process.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

from rmtspec.terms import Why

#: Nothing that HDF5 or zip compress becomes more than about 1030 times smaller.
RATIO = 1100
SMALL = 2**20
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
#: Without the checksum, which may stand anywhere. Each of the others unpacks by numbers in the
#: file, and the library loads those that it does not know from the reader's disk.
_READ: tuple[list[int], ...] = ([], [_DEFLATE], [_SHUFFLE], [_SHUFFLE, _DEFLATE])
#: What packing adds to a piece that cannot be packed, at most: a part of it, and a few bytes.
_PART, _FEW = 64, 1024
_SUM = 4
#: Bytes that an index takes for each piece at least.
_ENTRY = 8


def not_unpacked(entry: Mapping[str, Any], size: int) -> str:
    """Return why an array that a file of that size announces is not read, or nothing."""
    filters = [number for number in entry["filters"] if number != _CHECKSUM]
    if filters not in _READ or entry["filters"].count(_CHECKSUM) > 1:
        return Why.PACKED.words(filters=", ".join(map(str, entry["filters"])))
    stored = min(entry["stored"], size)
    error = ""
    announced = entry["item"] * math.prod(entry["shape"])
    if announced > RATIO * stored + SMALL:
        error = f"it announces {announced} bytes and stores {stored}"
    elif entry["chunks"] is None and 0 < stored < announced:
        error = f"it has {announced} bytes and stores {stored}"
    elif entry["chunks"] is not None:
        error = _of_pieces(entry, stored, size)
    return Why.DAMAGED.words(error=error) if error else ""


def _of_pieces(entry: Mapping[str, Any], stored: int, size: int) -> str:
    chunks, shape = entry["chunks"], entry["shape"]
    if len(chunks) != len(shape) or not all(chunks):
        return f"a piece of it has the sides {tuple(chunks)}"
    piece = entry["item"] * math.prod(chunks)
    if piece > RATIO * stored + SMALL:
        return f"a piece of it has {piece} bytes, and it stores {stored}"
    pieces = math.prod(-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True))
    if pieces > size // _ENTRY + _FEW:
        return f"it announces {pieces} pieces in a file of {size} bytes"
    return ""


def check_pieces(dataset: Any) -> None:
    """Raise `ValueError` if a piece is not, once unpacked, as long as the array says.

    The HDF5 library reads beyond the end of one that is shorter: into the memory of the process.
    """
    if dataset.chunks is None:
        return
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    size = dataset.id.get_type().get_size() * math.prod(dataset.chunks)
    for part in dataset.iter_chunks():
        corner = tuple(side.start for side in part)
        found = dataset.id.get_chunk_info_by_coord(corner)
        if found.byte_offset is None:  # never written: filled in
            continue
        used = [number for at, number in enumerate(filters) if not found.filter_mask >> at & 1]
        length = found.size
        if _DEFLATE in used and length <= size + size // _PART + _FEW:
            packed = dataset.id.read_direct_chunk(corner)[1]
            length = _inflated(packed, used, size)
        elif _CHECKSUM in used:
            length -= _SUM
        if length != size:
            raise ValueError(f"its piece at {corner} is not of {size} bytes")


def _inflated(packed: bytes, used: list[int], size: int) -> int:
    """Return how long a packed piece becomes; anything above `size` if it becomes longer."""
    before = used.index(_CHECKSUM) < used.index(_DEFLATE) if _CHECKSUM in used else False
    extra = _SUM if before else 0
    return len(zlib.decompressobj().decompress(packed, size + extra + 1)) - extra
