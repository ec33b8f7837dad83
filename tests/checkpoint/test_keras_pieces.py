"""Arrays of HDF5 in pieces: packed as Keras and h5py pack them, or made to do harm."""

import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoints import noise
from numpy.testing import assert_array_equal

from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError
from rmtspec.terms import Why

DEFLATE, SHUFFLE, SUM, LZF = (1, (9,)), (2, (4,)), (3, ()), (32000, (4, 261, 4800))
WHOLE = noise(40, 30).astype("f4")


def stored(path, filters, piece, chunks=(40, 30), shape=(40, 30), mask=0):
    """Write an array of one piece, as its bytes are; return the path."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(chunks)
        for number, values in filters:
            plan.set_filter(number, 0, values)
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        made = h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, dcpl=plan)
        if piece is not None:
            made.write_direct_chunk((0,) * len(shape), piece, mask)
    return path


@pytest.mark.parametrize("chunks", [None, (40, 30), (7, 30), (16, 16)])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "gzip", "fletcher32": True, "maxshape": (None, None)},
    ],
)  # fmt: skip
def test_what_h5py_packs_is_read(tmp_path, chunks, options):
    for libver in ("earliest", "latest"):
        with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
            plain = {} if chunks is None and not options else {"chunks": chunks or True}
            file.create_dataset("fc/kernel", data=WHOLE, **plain, **options)
        found = matrices_in(tmp_path / "m.h5")
        assert_array_equal(found.matrices["fc.kernel"](), WHOLE.T)


@pytest.mark.parametrize("filters", [[SUM, DEFLATE], [DEFLATE, SUM]], ids=["inside", "outside"])
def test_a_checksum_counts_on_the_side_where_it_stands(tmp_path, filters):
    path = tmp_path / "m.h5"
    with h5py.File(stored(path, filters, None), "r+") as file:
        file["layers/dense/vars/0"][...] = WHOLE
    assert_array_equal(matrices_in(path).matrices["dense.kernel"](), WHOLE.T)


def test_pieces_that_are_not_there_or_not_packed(tmp_path):
    path = stored(tmp_path / "m.h5", [DEFLATE], WHOLE.tobytes(), mask=1)
    assert_array_equal(matrices_in(path).matrices["dense.kernel"](), WHOLE.T)
    path = stored(tmp_path / "m.h5", [DEFLATE], None)
    assert_array_equal(matrices_in(path).matrices["dense.kernel"](), np.zeros((30, 40)))


def test_numbers_that_numpy_has_not(tmp_path):
    """A float of 16 bits with the exponent of one of 32; those of 80 bits are NumPy's own."""
    kept = h5py.h5t.IEEE_F32LE.copy()
    kept.set_fields(15, 7, 8, 0, 7)
    kept.set_precision(16)
    kept.set_size(2)
    kept.set_ebias(127)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("a")
        made = h5py.h5d.create(group.id, b"kernel", kept, h5py.h5s.create_simple((40, 30)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, WHOLE)
        file["b/kernel"] = WHOLE.astype(np.longdouble)
        file["c/kernel"] = WHOLE.astype(">f2")
    found = matrices_in(tmp_path / "m.h5")
    assert_array_equal(found.matrices["c.kernel"](), WHOLE.astype("f2").T)
    assert_array_equal(found.matrices["b.kernel"](), WHOLE.T)
    assert [(entry["name"], entry["reason"]) for entry in found.skipped] == [(
        "a.kernel",
        "a type of numbers that NumPy has not (2 bytes) is not supported; save the array as "
        "float32",
    )]  # fmt: skip


def test_a_mutant_that_the_hdf5_library_crashes_on_when_it_reads(tmp_path):
    """A piece beyond the sides of its array."""
    content = (Path(__file__).parents[1] / "fuzz/corpus/hdf5-7474.h5").read_bytes()
    (tmp_path / "m.h5").write_bytes(content)
    found = matrices_in(tmp_path / "m.h5")
    reasons = {entry["name"]: entry["reason"] for entry in found.skipped}
    assert reasons["pieces.at once"] == "damaged: a piece of it begins at (0, 8)"
    for matrix in found.matrices.values():
        assert matrix().size == 96


def test_what_lies_before_hdf5_is_refused(tmp_path):
    """Offsets in such a file begin after it."""
    with h5py.File(tmp_path / "m.h5", "w", userblock_size=512) as file:
        file["a/kernel"] = WHOLE
    with pytest.raises(FileError, match=r"m\.h5 is not a file of Keras"):
        matrices_in(tmp_path / "m.h5")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(tmp_path / "m.h5", "model.weights.h5")
    with pytest.raises(FileError, match=r"is damaged: other content lies before that of HDF5"):
        matrices_in(tmp_path / "m.keras")


PACKED = zlib.compress(WHOLE.tobytes())
WRONG = {
    "a bomb": ([DEFLATE], zlib.compress(bytes(2**26))),
    "longer": ([DEFLATE], zlib.compress(WHOLE.tobytes() + b"x")),
    "shorter": ([DEFLATE], zlib.compress(WHOLE.tobytes()[:-1])),
    "cut": ([DEFLATE], PACKED[:-60]),
    "no stream": ([DEFLATE], b"x" * 100),
    "plain, shorter": ([], b"x"),
    "plain, longer": ([], bytes(5000)),
    "shuffled, shorter": ([SHUFFLE], bytes(8)),
    "a checksum, shorter": ([SUM], bytes(100)),
    "a checksum that is wrong": ([SUM], WHOLE.tobytes() + b"abcd"),
    "half a number": ([SHUFFLE], bytes(4799)),
    "a long stream": ([DEFLATE], PACKED + bytes(9000)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_piece_of_another_length_is_refused(tmp_path, case):
    """The HDF5 library takes the memory for the longer, and what lies there for the shorter."""
    filters, piece = WRONG[case]
    (matrix,) = matrices_in(stored(tmp_path / "m.h5", filters, piece)).matrices.values()
    with pytest.raises(FileError, match=r"is damaged at 'dense\.kernel': "):
        matrix()


def test_a_mask_hides_no_bomb(tmp_path):
    """Of a piece that is said not to be packed, and is longer than the array."""
    path = stored(tmp_path / "m.h5", [DEFLATE], zlib.compress(bytes(2**24)), mask=1)
    (matrix,) = matrices_in(path).matrices.values()
    with pytest.raises(FileError, match=r"its piece at \(0, 0\) takes \d+ bytes, and has 4800"):
        matrix()


@pytest.mark.parametrize(
    "filters", [[DEFLATE, DEFLATE], [DEFLATE, SHUFFLE], [SUM, SUM], [LZF], [(32123, (1,))]]
)
def test_other_filters_are_named(tmp_path, filters):
    """Two packers multiply; another unpacks by numbers in the file, or is code on the disk."""
    path = tmp_path / "m.h5"
    known = [each if each[0] < 4 else DEFLATE for each in filters]
    content = stored(path, known, zlib.compress(b"x")).read_bytes()
    for (number, _), (written, _) in zip(filters, known, strict=True):
        if number != written:
            name = b"deflate\0"
            at = content.index(name) - 8
            changed = struct.pack("<H", number) + content[at + 2 : at + 8]
            content = content[:at] + changed + content[at + 8 :]
    path.write_bytes(content)
    found = matrices_in(path)
    assert not found.matrices
    numbers = ", ".join(str(number) for number, _ in filters)
    assert found.skipped[0]["reason"].startswith(f"packed by the HDF5 filters {numbers}; ")
    assert Why.of(found.skipped[0]["reason"]) == (Why.PACKED,)


@pytest.mark.parametrize(
    ("chunks", "shape", "words"),
    [
        ((2**14, 2**14), (40, 30), "a piece of it has 1073741824 bytes, and it stores 9"),
        ((40, 30), (40000, 30000), "it announces 4800000000 bytes and stores 9"),
    ],
)
def test_pieces_that_the_file_cannot_hold(tmp_path, chunks, shape, words):
    piece = zlib.compress(b"x")
    found = matrices_in(stored(tmp_path / "m.h5", [DEFLATE], piece, chunks, shape))
    assert not found.matrices
    assert words in found.skipped[0]["reason"]
    assert Why.of(found.skipped[0]["reason"]) == (Why.DAMAGED,)
