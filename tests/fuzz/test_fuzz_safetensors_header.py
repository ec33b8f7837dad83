"""Headers of .safetensors files: accepted if and only if the reference library accepts them."""

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import EXAMPLES, mutated_text
from safetensors import SafetensorError, safe_open

from rmtspec.checkpoint.safetensors_reader import stored_tensors
from rmtspec.errors import FileError

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I8", "shape": [0], "data_offsets": [32, 32]},
}
W = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
#: Headers for 8 bytes of data that one of the two accepted and the other did not.
FOUND = {
    "an entry lost": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "an entry as a list": '{"a":["F32",[2],[0,8]]}',
    "a dtype as an object": '{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}',
    "a name twice": f'{{"a":{W},"a":{W}}}',
    "a field twice": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8],"shape":[2]}}',
    "text that is a number": f'{{"__metadata__":{{"a":1}},"a":{W}}}',
    "an unknown dtype": '{"a":{"dtype":"XX","shape":[2],"data_offsets":[0,8]}}',
    "not a number": f'{{"a":{W[:-1]},"x":NaN}}}}',
    "minus zero": '{"a":{"dtype":"F32","shape":[-0,2],"data_offsets":[0,8]}}',
    "half a surrogate pair": f'{{"\\ud800":{W}}}',
    "empty in the middle": f'{{"a":{W},"b":{{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}}}',
    "65 dimensions": f'{{"a":{W.replace("[2]", str([1] * 64 + [2]))}}}',
    "deep": f'{{"a":{W[:-1]},"x":{"[" * 126 + "]" * 126}}}}}',
}


def both(data):
    """Return the names that the reference finds in a file, and those found here; None refuses."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "m.safetensors")
        file.write_bytes(data)
        try:
            with safe_open(file, framework="numpy") as opened:
                expected = sorted(opened.keys())
        except SafetensorError:
            expected = None
        try:
            found = sorted(tensor.name for tensor in stored_tensors(file))
        except FileError:
            found = None
    return expected, found


def assembled(text, data, length=None):
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + data


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND.keys())
def test_what_was_found(text):
    expected, found = both(assembled(text.encode(), bytes(8)))
    assert found == expected


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64))
def test_the_reference_decides(seed):
    rng = random.Random(seed)
    text = mutated_text(rng, HEADER) if rng.random() < 0.95 else json.dumps(HEADER).encode()
    length = len(text) + (rng.choice([-1, 1, -8, 10**9]) if rng.random() < 0.05 else 0)
    data = assembled(text, bytes(rng.choice([32] * 8 + [31, 33, 0])), max(0, length))
    expected, found = both(data)
    assert found == expected
