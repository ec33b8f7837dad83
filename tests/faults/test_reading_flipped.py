"""Single flipped bits where data must survive: an error, or the same values; never others."""

import random
import zipfile

import pytest
import torch
from checkpoints import planted, write_safetensors
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, RmtspecError
from rmtspec.runs.journal import open_journal
from rmtspec.runs.work_folder import work_path

HEADER = {"command": "analyze", "checkpoint": "abc", "settings": {"alpha": 0.2}, "versions": {}}
ENTRIES = [{"name": f"w{i}", "row": {"seconds": 0.5, "rank": i}} for i in range(5)]


def flips(content, count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        at = rng.randrange(len(content))
        yield at, content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_journal(tmp_path, count):
    path = tmp_path / "j.jsonl"
    with open_journal(path, HEADER) as journal:
        for entry in ENTRIES:
            journal.add(entry)
    whole, refused = path.read_bytes(), 0
    for at, content in flips(whole, count):
        path.write_bytes(content)
        try:
            with open_journal(path, HEADER) as journal:
                assert journal.entries == ENTRIES[: len(journal.entries)], at
                assert len(journal.entries) >= len(ENTRIES) - 2  # a newline lost joins two lines
        except FileError:
            refused += 1
    assert refused > count / 2


def test_a_journal_without_checksums_is_read(tmp_path):
    import json

    path = tmp_path / "j.jsonl"
    first = {"schema": 1, "format": "rmtspec journal", **HEADER}
    path.write_text("".join(json.dumps(line) + "\n" for line in [first, *ENTRIES[:2]]))
    with open_journal(path, HEADER) as journal:
        assert journal.entries == ENTRIES[:2]
        journal.add(ENTRIES[2])
    with open_journal(path, HEADER) as journal:
        assert journal.entries == ENTRIES[:3]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_training(tmp_path, count):
    from rmtspec.adapters.torch._training.file import _content, write_training

    path = tmp_path / "t.pt"
    model = nn.Linear(6, 4)
    write_training(path, {"model": model, "optimizer": torch.optim.Adam(model.parameters())})
    whole, expected = path.read_bytes(), _content(path)
    found = 0
    for at, content in flips(whole, count):
        path.write_bytes(content)
        try:
            assert equal(_content(path), expected), at
        except RmtspecError:
            found += 1
    assert found > count / 4


def test_a_training_has_checksums_whatever_is_set(tmp_path):
    from rmtspec.adapters.torch._training.file import write_training

    torch.serialization.set_crc32_options(False)
    try:
        write_training(tmp_path / "t.pt", {"model": nn.Linear(6, 4)})
        assert torch.serialization.get_crc32_options() is False
        torch.save({"w": torch.ones(9, 8)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)

    assert zipfile.ZipFile(tmp_path / "t.pt").testzip() is None
    assert rt.read_state_dict(tmp_path / "plain.pt")["w"].shape == (9, 8)  # nothing to compare


def test_a_state_dict_of_torch(tmp_path):
    path = tmp_path / "m.pt"
    weight = torch.from_numpy(planted(40, 30))
    torch.save({"fc.weight": weight}, path)
    whole = path.read_bytes()
    at = whole.index(weight.numpy().tobytes()[:64]) + 1000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(FileError, match=r"damaged: Bad CRC-32 for file '.*data/0'"):
        matrices_in(path).matrices["fc.weight"]()
    with pytest.raises(FileError, match="Bad CRC-32"):
        rt.read_state_dict(path)


@pytest.mark.parametrize("packing", [8, 12, 14, 99])
def test_a_state_dict_that_says_it_is_packed(tmp_path, packing):
    path = tmp_path / "m.pt"
    torch.save({"fc.weight": torch.from_numpy(planted(40, 30))}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = next(m for m in archive.infolist() if m.filename.endswith("data/0")).header_offset
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        found = content.index(mark, at if mark == b"PK\x03\x04" else 0)
        while mark == b"PK\x01\x02" and b"data/0" not in content[found : found + 80]:
            found = content.index(mark, found + 1)
        content[found + place] = packing
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match="damaged"):
        rt.read_state_dict(path)


@pytest.mark.parametrize("damaged", ["finished", "unfinished"])
def test_a_file_that_is_damaged_between_a_kill_and_the_resumption(tmp_path, damaged):
    names = [f"h.{i}.weight" for i in range(4)]
    write_safetensors(
        tmp_path / "m.safetensors", {n: planted(60, 40, seed=i) for i, n in enumerate(names)}
    )
    given, options = tmp_path / "m.safetensors", {"ranks": dict.fromkeys(names, 4)}
    expected = tmp_path / "expected"
    rmtspec.prune_checkpoint(given, expected, **options)
    out, calls = tmp_path / "out", []

    def killed(done, *_):
        calls.append(done)
        if len(calls) == 4 + (3 if damaged == "unfinished" else 4):
            raise KeyboardInterrupt

    if damaged == "unfinished":
        with pytest.raises(KeyboardInterrupt):
            rmtspec.prune_checkpoint(given, out, progress=killed, **options)
    else:
        from rmtspec.runs import prune

        copy = prune.copy_companions
        prune.copy_companions = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                rmtspec.prune_checkpoint(given, out, **options)
        finally:
            prune.copy_companions = copy
    (file,) = (work_path(out) / "content").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    rmtspec.prune_checkpoint(given, out, **options)
    assert (out / file.name).read_bytes() == (expected / file.name).read_bytes()
