"""The manifest of a split model: round trip, and every way it or its files can be wrong."""

import dataclasses
import hashlib
import json

import pytest

from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS, Manifest, SplitEntry
from rmtspec.errors import FileError

CONTENT = b"0123456789" * 20


@pytest.fixture
def manifest():
    return Manifest(
        splits=(
            SplitEntry("encoder.fc1", "linear", 5, (40, 30), "torch.nn.modules.linear.Linear"),
            SplitEntry("", "conv2d", 3, (16, 8, 3, 3), groups=2),
        ),
        tied={"head.weight": "embed.weight"},
        files={
            WEIGHTS: {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()},
        },
        versions={"rmtspec": "0.1.0", "torch": "2.4"},
    )


@pytest.fixture
def folder(tmp_path, manifest):
    (tmp_path / WEIGHTS).write_bytes(CONTENT)
    manifest.write(tmp_path)
    return tmp_path


def test_round_trip(folder, manifest):
    found = Manifest.read(folder)
    assert found == manifest
    assert Manifest.read(str(folder)) == manifest
    found.check_files(folder)
    content = json.loads((folder / MANIFEST).read_text())
    assert (content["schema"], content["format"]) == (1, "rmtspec split model")
    assert content["splits"][1] == {
        "name": "",
        "kind": "conv2d",
        "rank": 3,
        "shape": [16, 8, 3, 3],
        "original": "",
        "groups": 2,
        "form": "plain",
        "stored": "",
    }


def test_entries_of_later_versions_may_say_more(folder, manifest):
    content = json.loads((folder / MANIFEST).read_text())
    content["more"] = content["splits"][0]["more"] = 3
    (folder / MANIFEST).write_text(json.dumps(content))
    assert Manifest.read(folder) == manifest


def test_folders_that_have_none(tmp_path):
    expected = "expected a folder written by `rmtspec prune` or by `save` of the torch"
    with pytest.raises(FileError, match=f"missing does not exist; {expected}"):
        Manifest.read(tmp_path / "missing")
    with pytest.raises(FileError, match=f"has no rmtspec.json; {expected}"):
        Manifest.read(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match=f"file is a file; {expected}"):
        Manifest.read(tmp_path / "file")


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"has schema 2; this version of rmtspec reads up to 1\. Update"),
        ({"schema": "1"}, "no number under 'schema'"),
        ({"format": "other"}, "'format' is 'other', expected 'rmtspec split model'"),
        ({"splits": {}}, r"its 'splits' is \{\}; expected a list"),
        ({"splits": [3]}, "an entry of 'splits' is 3"),
        ({"splits": ["name"]}, "an entry of 'splits' is name"),
        ({"splits": [{"name": "a", "kind": "linear", "rank": 3}]}, "an entry of 'splits'"),
        ({"splits": [{"rank": 0}]}, "an entry of 'splits'"),
        ({"tied": []}, r"its 'tied' is \[\]; expected a dict"),
        ({"tied": {"a": 3}}, "'tied' is .*; expected text by name"),
        ({"versions": {"a": None}}, "'versions' is .*; expected text by name"),
        ({"files": None}, "its 'files' is None; expected a dict"),
        ({"files": {"../w": {"bytes": 3, "sha256": DIGEST}}}, r"names the file '\.\./w'"),
        ({"files": {"..": {"bytes": 3, "sha256": DIGEST}}}, r"names the file '\.\.'"),
        ({"files": {"/etc/w": {"bytes": 3, "sha256": DIGEST}}}, "names the file '/etc/w'"),
        ({"files": {"a\\w": {"bytes": 3, "sha256": DIGEST}}}, "names the file"),
        ({"files": {"c:w": {"bytes": 3, "sha256": DIGEST}}}, "names the file"),
        ({"files": {"": {"bytes": 3, "sha256": DIGEST}}}, "names the file ''"),
        ({"files": {"w": {"bytes": -1, "sha256": DIGEST}}}, "expected bytes and sha256"),
        ({"files": {"w": {"bytes": 3, "sha256": "00"}}}, "expected bytes and sha256"),
        ({"files": {"w": 3}}, "its entry of 'w' is 3; expected bytes and sha256"),
    ],
)
def test_manifests_that_cannot_be_right(folder, change, message):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **change}))
    with pytest.raises(FileError, match=message):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": True},
        {"rank": 2.0},
        {"shape": [3]},
        {"shape": "abc"},
        {"shape": [3, 0]},
        {"shape": [2] * 6},
        {"name": None},
        {"kind": 3},
        {"original": None},
        {"groups": 0},
    ],
)
def test_entries_that_cannot_be_right(folder, change):
    content = json.loads((folder / MANIFEST).read_text())
    content["splits"][0].update(change)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FileError, match="is damaged: an entry of 'splits'"):
        Manifest.read(folder)


def test_a_layer_listed_twice(folder):
    content = json.loads((folder / MANIFEST).read_text())
    content["splits"] *= 2
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"lists the layer 'encoder\.fc1' twice"):
        Manifest.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_no_json(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(FileError, match="is not a manifest of rmtspec"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], r"is truncated: 199 bytes, but rmtspec\.json says 200"),
        (CONTENT + b"x", "has changed since it was saved: its size"),
        (b"x" + CONTENT[1:], "has changed since it was saved: its SHA-256"),
    ],
)
def test_files_that_are_not_what_was_written(folder, manifest, content, message):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(FileError, match=message):
        manifest.check_files(folder)


def test_files_that_are_not_there(folder, manifest):
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileError, match=r"does not exist, but rmtspec\.json lists it"):
        manifest.check_files(folder)
    (folder / WEIGHTS).mkdir()
    whole = dataclasses.replace(manifest, files={WEIGHTS: {"bytes": 0, "sha256": DIGEST}})
    with pytest.raises(FileError, match="cannot be read: is a directory"):
        whole.check_files(folder)
