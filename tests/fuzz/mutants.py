"""Damaged versions of good content, made by a seeded generator: of JSON, and of bytes."""

import copy
import json
import os

#: How many mutants a test of a minute makes of each format; `make fuzz` sets more.
EXAMPLES = int(os.environ.get("RMTSPEC_FUZZ_EXAMPLES", "300"))
VALUES = [
    0, 1, -1, 2**31, 2**62, 2**64, 2**70, 1.0, -0.0, 1e300, None, True, "", "x", "../x", "F32",
    "F4", "U8", "BF16", [], [0], [[1]], {}, {"F32": None}, [0, 24], [24, 32], [32, 32], "\ud800",
    float("inf"), float("nan"),
]  # fmt: skip
_PUNCTUATION = b' {}[]",:0-e\\u\n\0'


def mutated_json(rng, content, most=3):
    """Return a copy of a JSON value with up to `most` changes anywhere in it."""
    root = [copy.deepcopy(content)]
    for _ in range(rng.randint(1, most)):
        holder, key = _place(rng, root)
        value = holder[key]
        choice = rng.random()
        if choice < 0.15 and holder is not root:
            del holder[key]
        elif choice < 0.25 and isinstance(value, dict):
            value[rng.choice(["extra", "name", "\u00e9", *value])] = rng.choice(VALUES)
        elif choice < 0.35 and isinstance(value, dict):
            holder[key] = list(value.values())
        elif choice < 0.6 and type(value) is int:
            holder[key] = rng.choice([value + 1, value - 1, value * 2, -value, value + 2**40])
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def mutated_bytes(rng, content, most=3):
    """Return bytes with up to `most` flips, cuts, insertions or repetitions."""
    data = bytearray(content)
    for _ in range(rng.randint(1, most)):
        at, choice = rng.randrange(len(data) or 1), rng.random()
        if not data:
            break
        if choice < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        elif choice < 0.6:
            del data[at]
        elif choice < 0.75:
            data.insert(at, rng.choice(_PUNCTUATION))
        elif choice < 0.85:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif choice < 0.93:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        else:
            del data[at:]
    return bytes(data)


def mutated_text(rng, content):
    """Return the bytes of a JSON value: changed as a value, as bytes, or as both."""
    value = mutated_json(rng, content) if rng.random() < 0.7 else content
    text = json.dumps(value).encode()
    return mutated_bytes(rng, text) if rng.random() < 0.4 else text


def _place(rng, root):
    """Return a holder and a key in it, at a random depth below a list of one value."""
    holder, key = root, 0
    while True:
        value = holder[key]
        keys = (
            list(value)
            if isinstance(value, dict)
            else list(range(len(value)))
            if isinstance(value, list)
            else []
        )
        if not keys or rng.random() < 0.25:
            return holder, key
        holder, key = value, rng.choice(keys)
