"""One bad matrix is one skipped row: the others are analysed."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from checkpoints import planted, write_safetensors
from click.testing import CliRunner

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint import memory as _memory
from rmtspec.cli import main
from rmtspec.errors import FileError

#: Headers that numpy's reader answers with errors of Python's parser, and others.
HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4",  # TokenError
    b"{'descr': '<f4' 'fortran_order': False, 'shape': (3, 4), }",  # SyntaxError
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1e400), }",
    b"{'descr': '<f99999999999', 'fortran_order': False, 'shape': (3, 4), }",
    b"{'descr': [('a'], 'fortran_order': False, 'shape': (3, 4), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    b"{'descr': '\\q4', 'fortran_order': False, 'shape': (3L, 4L), }",
    b"(" * 4000,
]


def npy(header, data=bytes(48)):
    text = header + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_damaged_header_in_a_folder_and_in_an_archive(tmp_path, header):
    np.save(tmp_path / "good.npy", planted(40, 30))
    (tmp_path / "bad.npy").write_bytes(npy(header))
    with pytest.raises(FileError, match=r"bad\.npy"):
        matrices_in(tmp_path / "bad.npy")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("bad.npy", npy(header))
        archive.write(tmp_path / "good.npy", "good.npy")
    report = rmtspec.analyze_checkpoint(tmp_path / "w.npz")
    assert [row["name"] for row in report.rows] == ["good"]
    (tmp_path / "w.npz").unlink()
    report = rmtspec.analyze_checkpoint(tmp_path)
    assert [row["name"] for row in report.rows] == ["good"]
    assert [entry["name"] for entry in report.skipped] == ["bad"]


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_one_damaged_member_of_an_archive(tmp_path, packing):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for i in range(3):
            stream = io.BytesIO()
            np.save(stream, planted(40, 30, seed=i))
            archive.writestr(f"w{i}.npy", stream.getvalue())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        second = archive.infolist()[1]
    for at in range(second.header_offset + 400, second.header_offset + 420):
        content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    result = CliRunner().invoke(main, ["analyze", str(path)])
    assert "2 analysed, 1 skipped" in result.output
    assert "w1" in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_small_archive_that_claims_much(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (136500, 136500), }"
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", npy(header))
    (entry,) = matrices_in(tmp_path / "w.npz").skipped
    assert entry["reason"].startswith("damaged: its header announces 745")


def test_a_small_file_of_torch_that_expands(tmp_path):
    state = {"big": torch.ones(1).expand(40_000, 40_000), "w": torch.from_numpy(planted(40, 30))}
    torch.save(state, tmp_path / "m.pt")
    report = rmtspec.analyze_checkpoint(tmp_path / "m.pt")
    assert [row["name"] for row in report.rows] == ["w"]
    (entry,) = report.skipped
    assert entry["reason"] == "(40000, 40000) entries from 4 bytes: expanded, not stored"


def test_a_matrix_too_large_for_the_memory(tmp_path, monkeypatch):
    write_safetensors(
        tmp_path / "m.safetensors", {"big": np.zeros((3000, 3000), "<f4"), "w": planted(40, 30)}
    )
    monkeypatch.setattr(_memory, "free_memory", lambda: 10**6)
    report = rmtspec.analyze_checkpoint(tmp_path / "m.safetensors", journal=tmp_path / "j")
    assert [row["name"] for row in report.rows] == ["w"]
    (entry,) = report.skipped
    assert entry["reason"] == ("too large for the memory: 0.072 GB are needed, 0.001 GB are free")
    assert len((tmp_path / "j").read_bytes().splitlines()) == 2  # the next run tries again


def test_a_failed_allocation_is_a_skipped_row():
    def fails():
        raise MemoryError

    report = rmtspec.analyze_many({"big": fails, "w": planted(40, 30)})
    assert [row["name"] for row in report.rows] == ["w"]
    assert report.skipped[0]["reason"] == "too large for the memory: an allocation failed"


def test_the_free_memory_is_known_here():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = _memory.free_memory()
    assert free is None or free > 2**20
