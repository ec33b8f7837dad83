"""HDF5 files damaged where it matters: in what their structures say, with checksums that hold.

Most bytes of a file are numbers and unused room, and newer files have checksums over all that
describes them, so that bytes changed at random are seldom seen by more than a few lines of the
library.
"""

import re
import struct

import h5py
import numpy as np
from checkpoints import planted

_SIGNATURES = re.compile(
    rb"TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|BTHD|BTLF|BTIN|FAHD|FADB|EAHD|EAIB|EASB|EADB"
)
#: How many bytes of a structure are changed at most: what follows is data, or more of the same.
_LENGTHS = {b"TREE": 120, b"SNOD": 88, b"HEAP": 64, b"GCOL": 64, b"FHDB": 120, b"EADB": 120}
_LONGEST = 640
_ODD = [0, 1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31,
        2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]  # fmt: skip
#: Messages of a header that an object of another kind has, or that are rare.
_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 255)


def write_hdf5(path, libver):
    """Write a file with every way of storing an array, list of links and attribute here."""
    W = planted(12, 8).astype("f4")
    with h5py.File(path, "w", libver=libver) as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "fc"
        group.attrs["shape"] = np.arange(3)
        group.create_dataset("0", data=W)
        group.create_dataset("1", data=np.ones(8))
        group = file.create_group("pieces", track_order=libver == "latest")
        packed = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        group.create_dataset("several", data=W, chunks=(5, 8), **packed)
        group.create_dataset("one", data=W, chunks=(12, 8), compression="gzip")
        group.create_dataset("longer", data=W, chunks=(4, 4), maxshape=(None, 8))
        group.create_dataset("open", data=W, chunks=(4, 4), maxshape=(None, None), shuffle=True)
        group.create_dataset("at once", (12, 8), "f2", chunks=(6, 8), fillvalue=2)
        group["at once"][...] = W
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((12, 8))
        made = h5py.h5d.create(group.id, b"compact", h5py.h5t.IEEE_F32BE, space, dcpl=plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, W)
        many = file.create_group("many")
        for index in range(12):
            many[f"link {index}"] = h5py.SoftLink("/layers") if index % 3 else group["one"]
    return path


class Hdf5Mutants:
    """Damaged versions of one good file; the file's structures are found once."""

    def __init__(self, path):
        self.content = path.read_bytes()
        #: By kind: (start, length, where the checksum begins or None).
        self.parts = {}
        self.messages = []
        with h5py.File(path) as file:
            self._add(b"superblock", 8, 48 if self.content[8] >= 2 else 88)
            objects = {h5py.h5o.get_info(file.id).addr}
            file.visititems(lambda _, found: objects.add(h5py.h5o.get_info(found.id).addr))
        for at in sorted(objects):
            if not self.content.startswith(b"OHDR", at):
                self._old_header(at)
        for found in _SIGNATURES.finditer(self.content):
            self._add(found[0], found.start(), _LENGTHS.get(found[0], 160))
            if found[0] == b"OHDR":
                self._new_header(found.start())
        starts = [start for parts in self.parts.values() for start, _, _ in parts]
        self.addresses = sorted({*objects, *starts, 0, len(self.content), 2**64 - 1})

    def _add(self, kind, start, length):
        end = _checksum(self.content, 0 if kind == b"superblock" else start)
        length = (end or start + length) - start
        self.parts.setdefault(kind, []).append((start, length, end))

    def _old_header(self, at):
        """Note the messages of a header of version 1, and of what continues it."""
        self._add(b"header", at, 16)
        blocks = [(at + 16, struct.unpack_from("<I", self.content, at + 8)[0])]
        for start, length in blocks:
            place = start
            while place + 8 <= start + length:
                kind, size = struct.unpack_from("<HH", self.content, place)
                self.messages.append((kind, place, place + 8, size, 2, None))
                if kind == 16:
                    blocks.append(struct.unpack_from("<QQ", self.content, place + 8))
                place += 8 + size

    def _new_header(self, at):
        """Note the messages of a header of version 2; what continues it is a part."""
        start, _, end = self.parts[b"OHDR"][-1]
        if end is None:
            return
        flags = self.content[at + 5]
        place = at + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0) + (1 << (flags & 3))
        extra = 6 if flags & 4 else 4
        while place + extra <= end:
            kind, size = struct.unpack_from("<BH", self.content, place)
            self.messages.append((kind, place, place + extra, size, 1, (start, end)))
            place += extra + size

    def mutant(self, rng, most=3):
        """Return the bytes of the file with up to `most` changes in its structures."""
        data = bytearray(self.content)
        summed = []
        for _ in range(rng.randint(1, most)):
            if rng.random() < 0.5:
                summed.append(self._message(rng, data))
                continue
            kind = rng.choice(sorted(self.parts))
            start, length, end = rng.choice(self.parts[kind])
            first = 0 if kind == b"superblock" else 4
            self._field(rng, data, (start + first, length - first))
            summed.append((0 if kind == b"superblock" else start, end) if end else None)
        for part in summed:
            if part and rng.random() < 0.95:
                start, end = part
                struct.pack_into("<I", data, end, lookup3(data[start:end]))
        return bytes(data)

    def _message(self, rng, data):
        """Change a message: its kind, its size, a field of it, or all for another's."""
        kinds = sorted({kind for kind, *_ in self.messages})
        kind = rng.choice(kinds)
        chosen = rng.choice([message for message in self.messages if message[0] == kind])
        _, place, body, size, width, part = chosen
        choice = rng.random()
        if choice < 0.1:
            data[place] = rng.choice(_TYPES)
        elif choice < 0.2:
            changed = max(0, size + rng.choice([-8, -4, -1, 1, 4, 8, 64, 2**15]))
            struct.pack_into("<H", data, place + width, min(changed, 2**16 - 1))
        elif choice < 0.3:
            _, _, other, length, *_ = rng.choice(self.messages)
            taken = min(size, length)
            data[body : body + taken] = self.content[other : other + taken]
        elif size:
            self._field(rng, data, (body, size))
        return part

    def _field(self, rng, data, part):
        """Change a number of 1 to 8 bytes in a part of the file."""
        start, length = part
        width = rng.choice([1, 1, 2, 4, 8, 8])
        if length < width:
            width = 1
        at = start + rng.randrange(length - width + 1)
        if rng.random() < 0.7:
            at -= (at - start) % width
        if at + width > len(data):
            return
        before = int.from_bytes(data[at : at + width], "little")
        choice = rng.random()
        if choice < 0.25:
            after = before ^ 1 << rng.randrange(8 * width)
        elif choice < 0.45:
            after = before + rng.choice([-1, 1, before, -before // 2, 8, -8])
        elif width == 8 and choice < 0.8:
            after = rng.choice(self.addresses)
        else:
            after = rng.choice(_ODD)
        data[at : at + width] = (after % 256**width).to_bytes(width, "little")


def _checksum(content, start):
    """Return where the checksum of a structure begins; None if it has none."""
    for end in range(start + 8, min(start + _LONGEST, len(content) - 4)):
        found = struct.unpack_from("<I", content, end)[0]
        if found and found == lookup3(content[start:end]):
            return end
    return None


def lookup3(data):
    """Return Jenkins' hash as HDF5 uses it for checksums."""
    most = 0xFFFFFFFF
    length = len(data)
    a = b = c = 0xDEADBEEF + length & most
    blocks = (length + 11) // 12
    words = struct.unpack(f"<{3 * blocks}I", bytes(data).ljust(12 * blocks, b"\0"))
    for at in range(0, len(words) - 3, 3):
        a, b, c = a + words[at] & most, b + words[at + 1] & most, c + words[at + 2] & most
        for turn in (4, 6, 8, 16, 19, 4):
            a = (a - c & most) ^ (c << turn & most | c >> 32 - turn)
            a, b, c = b, c + b & most, a
    if not length:
        return c
    a, b, c = a + words[-3] & most, b + words[-2] & most, c + words[-1] & most
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << turn & most | b >> 32 - turn) & most
        a, b, c = b, c, a
    return b
