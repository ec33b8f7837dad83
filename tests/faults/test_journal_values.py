"""Lines of a journal with values of other types, as mutated journals had: damaged, and said."""

import json

import pytest
from checkpoints import planted, write_safetensors

import rmtspec
from rmtspec.errors import FileError
from rmtspec.runs import journal as _journal


def moments(content, value):
    content["spectrum"]["moments"][1] = value


#: Each changes a line in place.
CHANGES = {
    "n is negative": lambda line: line["spectrum"].update(n=-30),
    "n is larger than the matrix": lambda line: line["spectrum"].update(n=31),
    "n is a list": lambda line: line["spectrum"].update(n=[30]),
    "another shape": lambda line: line["spectrum"].update(shape=[29, 20]),
    "fewer eigenvalues": lambda line: line["spectrum"].update(
        eigenvalues=line["spectrum"]["eigenvalues"][:64]
    ),
    "a moment is a list": lambda line: moments(line, []),
    "a moment is text": lambda line: moments(line, "x"),
    "rounding is a list": lambda line: line["spectrum"].update(rounding_variance=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_values(tmp_path, change):
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted(30, 20)})
    journal = tmp_path / "j"
    rmtspec.analyze_checkpoint(tmp_path / "m.safetensors", journal=journal)
    first, second = journal.read_bytes().splitlines(keepends=True)
    line = json.loads(second)
    del line["crc32"]
    change(line)
    journal.write_bytes(first + _journal._line(line))
    with pytest.raises(FileError, match=r"line of 'fc\.weight' in the journal is damaged"):
        rmtspec.analyze_checkpoint(tmp_path / "m.safetensors", journal=journal)


def test_a_name_that_is_a_list(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted(30, 20)})
    journal = tmp_path / "j"
    expected = rmtspec.analyze_checkpoint(tmp_path / "m.safetensors", journal=journal)
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + _journal._line({"name": ["fc.weight"], "spectrum": {}}) + second)
    found = rmtspec.analyze_checkpoint(tmp_path / "m.safetensors", journal=journal)
    assert found.rows == expected.rows
