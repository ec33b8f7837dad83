"""Undoing a split on disk: what is multiplied out, what is copied, and every bad folder."""

import errno
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.index_writer import file_names
from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS, Manifest, SplitEntry
from rmtspec.checkpoint.safetensors_reader import stored_metadata, stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.errors import FileError, InvalidTypeError
from rmtspec.runs import merge as _merge_checkpoint
from rmtspec.runs.merge import merge_checkpoint

DENSE = "model.safetensors"


def noise(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def write(file, tensors, metadata=None):
    outgoing = [
        Outgoing(name, format_dtype(array.dtype), array.shape, lambda array=array: array)
        for name, array in tensors.items()
    ]
    digest = write_safetensors(file, outgoing, metadata)
    return {"bytes": file.stat().st_size, "sha256": digest}


@pytest.fixture
def split_folder(tmp_path):
    """Return a function that writes a folder with factors, as `save` and `prune` do."""

    def make(*shards, splits=(), tied=None, metadata=None):
        folder = tmp_path / "split"
        folder.mkdir()
        names = file_names(WEIGHTS, len(shards))
        pairs = zip(names, shards, strict=True)
        files = {name: write(folder / name, tensors, metadata) for name, tensors in pairs}
        Manifest(tuple(splits), tied or {}, files, {}).write(folder)
        return folder

    return make


def merged(folder, out):
    """Merge, and return the names and all tensors of the one new file."""
    names = merge_checkpoint(folder, out)
    return names, load_file(out / DENSE)


def wide(array):
    return array.astype(np.float64)


def once(product, dtype="float32"):
    """Rounded once: the sums in float64 may differ in their last digits, and so may ties."""
    return {"desired": product.astype(dtype), "rtol": np.finfo(dtype).eps}


FC = {"fc.outer.weight": noise(40, 5), "fc.inner.weight": noise(5, 30)}
FC_ENTRY = SplitEntry("fc", "linear", 5, (40, 30))


def test_a_linear_layer_and_all_that_is_beside_it(split_folder, tmp_path):
    others = {
        "norm.weight": noise(7),
        "steps": np.array(9),
        "mask": np.array([True, False]),
        "nothing": np.zeros((0, 3), np.float32),
        "half": noise(3, 2, dtype=ml_dtypes.bfloat16),
    }
    folder = split_folder({**FC, "fc.outer.bias": noise(40, seed=1), **others}, splits=[FC_ENTRY])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert merge_checkpoint(folder, tmp_path / "out") == ["fc.weight"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [DENSE]
    found = {t.name: t() for t in stored_tensors(tmp_path / "out" / DENSE)}
    assert found.keys() == {"fc.weight", "fc.bias", *others}
    product = wide(FC["fc.outer.weight"]) @ wide(FC["fc.inner.weight"])
    assert_allclose(found["fc.weight"], **once(product))
    assert found["fc.weight"].dtype == np.float32
    assert found["fc.bias"].tobytes() == noise(40, seed=1).tobytes()
    for name, array in others.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name
    assert stored_metadata(tmp_path / "out" / DENSE) == {"format": "pt"}
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def grouped_kernel(outer, inner, groups):
    """The kernel of two convolutions in a row, entry by entry."""
    rank = outer.shape[1]
    rows = outer.shape[0] // groups
    kernel = np.zeros((outer.shape[0], *inner.shape[1:]))
    for channel in range(outer.shape[0]):
        for k in range(rank):
            kernel[channel] += (
                float(outer[channel].reshape(-1)[k]) * inner[channel // rows * rank + k]
            )
    return kernel


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("extent", [(4,), (3, 2), (2, 2, 2)])
def test_convolutions(split_folder, tmp_path, groups, extent):
    outer = noise(12, 2, *(1 for _ in extent))
    inner = noise(2 * groups, 4, *extent)
    entry = SplitEntry("conv", f"conv{len(extent)}d", 2, (12, 4, *extent), groups=groups)
    folder = split_folder({"conv.outer.weight": outer, "conv.inner.weight": inner}, splits=[entry])
    names, found = merged(folder, tmp_path / "out")
    assert names == ["conv.weight"]
    assert found["conv.weight"].shape == (12, 4, *extent)
    assert_allclose(
        found["conv.weight"], grouped_kernel(outer, wide(inner), groups), rtol=1e-6, atol=1e-7
    )


def test_tables_and_layers_stored_the_other_way_round(split_folder, tmp_path):
    tensors = {
        "table.inner.weight": noise(50, 4),
        "table.outer.weight": noise(20, 4),
        "attn.inner.weight": noise(3, 20),
        "attn.outer.weight": noise(60, 3),
        "attn.outer.bias": noise(60),
    }
    splits = [
        SplitEntry("table", "embedding", 4, (50, 20)),
        SplitEntry("attn", "transposed linear", 3, (20, 60)),
    ]
    names, found = merged(split_folder(tensors, splits=splits), tmp_path / "out")
    assert names == ["table.weight", "attn.weight"]
    assert found.keys() == {"table.weight", "attn.weight", "attn.bias"}
    table = wide(tensors["table.inner.weight"]) @ wide(tensors["table.outer.weight"]).T
    attn = (wide(tensors["attn.outer.weight"]) @ wide(tensors["attn.inner.weight"])).T
    assert_allclose(found["table.weight"], **once(table))
    assert_allclose(found["attn.weight"], **once(attn))


def test_a_layer_split_again_is_rounded_once(split_folder, tmp_path):
    """Both factors of a layer, one of them three times; and the same for a model of one layer."""
    for name in ("fc", ""):
        prefix = f"{name}." if name else ""
        tensors = {
            "outer.outer.weight": noise(40, 6),
            "outer.inner.weight": noise(6, 20),
            "outer.outer.bias": noise(40, seed=1),
            "inner.inner.weight": noise(7, 30),
            "inner.outer.outer.weight": noise(20, 3),
            "inner.outer.inner.weight": noise(3, 7),
        }
        splits = [
            SplitEntry(name, "linear", 20, (40, 30)),
            SplitEntry(f"{prefix}outer", "linear", 6, (40, 20)),
            SplitEntry(f"{prefix}inner", "linear", 7, (20, 30)),
            SplitEntry(f"{prefix}inner.outer", "linear", 3, (20, 7)),
        ]
        folder = split_folder({prefix + k: v for k, v in tensors.items()}, splits=splits)
        names, found = merged(folder, tmp_path / f"out{name}")
        assert names == [f"{prefix}weight"]
        product = np.linalg.multi_dot([
            wide(tensors[key]) for key in (
                "outer.outer.weight", "outer.inner.weight", "inner.outer.outer.weight",
                "inner.outer.inner.weight", "inner.inner.weight",
            )
        ])  # fmt: skip
        # A sum that cancels has fewer digits in any order of multiplication, in float64.
        assert_allclose(found[f"{prefix}weight"], product, rtol=1e-7, atol=1e-12)
        assert found[f"{prefix}bias"].tobytes() == tensors["outer.outer.bias"].tobytes()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_the_dtype_is_the_stored_one_and_rounded_once(split_folder, tmp_path, dtype):
    tensors = {name: array.astype(dtype) for name, array in FC.items()}
    merge_checkpoint(split_folder(tensors, splits=[FC_ENTRY]), tmp_path / "out")
    (tensor,) = stored_tensors(tmp_path / "out" / DENSE)
    found = tensor()
    assert found.dtype == dtype
    product = wide(tensors["fc.outer.weight"]) @ wide(tensors["fc.inner.weight"])
    # Sums in float32 may tip a value that lies between two to the other side, seldom.
    assert np.mean(found == product.astype(dtype)) > (0.9 if dtype == np.float64 else 0.995)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert_allclose(wide(found), product, rtol=eps, atol=eps / 64)


def test_blocks_of_rows(split_folder, tmp_path, monkeypatch):
    folder = split_folder(FC, splits=[FC_ENTRY])
    whole = merged(folder, tmp_path / "a")[1]["fc.weight"]
    for entries in (1, 7 * 30):
        monkeypatch.setattr(_merge_checkpoint, "_ENTRIES", entries)
        assert_allclose(
            merged(folder, tmp_path / f"b{entries}")[1]["fc.weight"], whole, rtol=1e-6, atol=1e-7
        )


def test_what_is_not_finite_stays_so(split_folder, tmp_path):
    """No warning either: the tests make errors of them."""
    tensors = {name: array.astype(np.float16) for name, array in FC.items()}
    tensors["fc.outer.weight"][3] = 6e4
    tensors["fc.outer.weight"][5] = np.nan
    tensors["fc.outer.weight"][7] = np.inf
    found = merged(split_folder(tensors, splits=[FC_ENTRY]), tmp_path / "out")[1]["fc.weight"]
    assert np.isinf(found[3]).any()
    assert np.isnan(found[5]).all()
    rest = np.delete(np.arange(40), [3, 5, 7])
    assert np.isfinite(found[rest]).all()


def test_tied_keys_are_written_in_full(split_folder, tmp_path):
    tensors = {**FC, "embed.weight": noise(9, 4)}
    tied = {"head.weight": "embed.weight", "last.outer.weight": "fc.outer.weight"}
    tensors["last.inner.weight"] = noise(5, 30, seed=1)
    splits = [FC_ENTRY, SplitEntry("last", "linear", 5, (40, 30))]
    names, found = merged(split_folder(tensors, splits=splits, tied=tied), tmp_path / "out")
    assert names == ["fc.weight", "last.weight"]
    assert found.keys() == {"fc.weight", "last.weight", "embed.weight", "head.weight"}
    assert found["head.weight"].tobytes() == found["embed.weight"].tobytes()
    last = wide(tensors["fc.outer.weight"]) @ wide(tensors["last.inner.weight"])
    assert_allclose(found["last.weight"], **once(last))


def test_a_layer_with_two_names_gets_its_weight_under_both(split_folder, tmp_path):
    """The manifest lists a shared layer once, and ties the factors under its other name."""
    tensors = {
        "a.fc.inner.weight": noise(5, 30),
        "a.fc.outer.outer.weight": noise(40, 3),
        "a.fc.outer.inner.weight": noise(3, 5),
        "a.fc.outer.outer.bias": noise(40),
    }
    tied = {f"b{name[1:]}": name for name in tensors}
    splits = [
        SplitEntry("a.fc", "linear", 5, (40, 30)),
        SplitEntry("a.fc.outer", "linear", 3, (40, 5)),
    ]
    names, found = merged(split_folder(tensors, splits=splits, tied=tied), tmp_path / "out")
    assert names == ["a.fc.weight", "b.fc.weight"]
    assert found.keys() == {"a.fc.weight", "a.fc.bias", "b.fc.weight", "b.fc.bias"}
    assert_array_equal(found["a.fc.weight"], found["b.fc.weight"])
    assert_array_equal(found["a.fc.bias"], found["b.fc.bias"])


def test_no_splits_is_a_copy(split_folder, tmp_path):
    tensors = {"fc.weight": noise(4, 3), "inner.weight": noise(3, 3)}
    names, found = merged(split_folder(tensors), tmp_path / "out")
    assert names == []
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


def test_a_model_without_tensors(split_folder, tmp_path):
    assert merged(split_folder({}), tmp_path / "out") == ([], {})


def test_shards_stay_shards(split_folder, tmp_path):
    shards = (
        {**FC, "fc.outer.bias": noise(40)},
        {"lm.outer.weight": noise(50, 2), "norm.weight": noise(3)},
        {"lm.inner.weight": noise(2, 20)},  # .npy files are packed so that factors may part
    )
    splits = [FC_ENTRY, SplitEntry("lm", "tensor", 2, (50, 20))]
    folder = split_folder(*shards, splits=splits, tied={"head.weight": "norm.weight"})
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}')
    assert merge_checkpoint(folder, tmp_path / "out") == ["fc.weight", "lm.weight"]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / "out" / f"{DENSE}.index.json").read_text())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, f"{DENSE}.index.json"]
    assert index["weight_map"] == {
        "fc.bias": names[0],
        "fc.weight": names[0],
        "head.weight": names[1],
        "lm.weight": names[1],
        "norm.weight": names[1],
    }
    listed = matrices_in(tmp_path / "out")  # checks the index
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in listed.tensors.values())
    lm = wide(shards[1]["lm.outer.weight"]) @ wide(shards[2]["lm.inner.weight"])
    assert_allclose(listed.tensors["lm.weight"](), **once(lm))


def test_the_other_files_and_the_free_text_go_along(split_folder, tmp_path):
    folder = split_folder(FC, splits=[FC_ENTRY], metadata={"format": "np", "by": "me"})
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "tokenizer.model").write_bytes(b"\x00\x01")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    (folder / ".hidden").touch()
    (folder / "inside").mkdir()
    merge_checkpoint(str(folder), str(tmp_path / "out"))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["config.json", DENSE, "tokenizer.model"]
    assert (out / "config.json").read_text() == '{"model_type": "x"}'
    assert stored_metadata(out / DENSE) == {"format": "np", "by": "me"}


# -- what prune writes


def planted(rows=120, columns=90, seed=0):
    return ensembles.spiked(rows, columns, [5, 20], rng=seed).astype(np.float32)


CHECKPOINT = (
    {
        "fc.weight": planted(),
        "fc.bias": noise(120),
        "tok_embeddings.weight": planted(150, 60, seed=2),
    },
    {
        "conv.weight": planted(60, 48, seed=4).reshape(60, 4, 4, 3),
        "conv.bias": noise(60),
        "norm.weight": noise(90),
        "out.weight": planted(seed=3).astype(ml_dtypes.bfloat16),
    },
)
RANKS = {"fc": 4, "tok_embeddings": 3, "conv": 5, "out": 6}


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    names = file_names(DENSE, len(CHECKPOINT))
    places = {}
    for name, tensors in zip(names, CHECKPOINT, strict=True):
        write(folder / name, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / f"{DENSE}.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


def test_pruned_and_merged_is_what_dense_would_have_been(sharded, tmp_path):
    options = {"ranks": RANKS, "include": [*RANKS]}
    rmtspec.prune_checkpoint(sharded, tmp_path / "small", **options)
    rmtspec.prune_checkpoint(sharded, tmp_path / "dense", mode="truncate", **options)
    names = merge_checkpoint(tmp_path / "small", tmp_path / "out")
    assert sorted(names) == sorted(f"{name}.weight" for name in RANKS)
    files = sorted(p.name for p in (tmp_path / "dense").iterdir())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    assert "model-00002-of-00002.safetensors" in files
    for file in (f"{DENSE}.index.json", "config.json"):
        assert (tmp_path / "out" / file).read_text() == (tmp_path / "dense" / file).read_text()
    dense, found = matrices_in(tmp_path / "dense").tensors, matrices_in(tmp_path / "out").tensors
    assert found.keys() == dense.keys()
    for name, tensor in dense.items():
        expected, got = tensor(), found[name]()
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        if name not in names:
            assert got.tobytes() == expected.tobytes(), name
            continue
        # The factors were rounded, each entry by half an eps, before they were multiplied.
        eps = float(ml_dtypes.finfo(got.dtype).eps)
        error = np.linalg.norm(wide(got) - wide(expected)) / np.linalg.norm(wide(expected))
        assert error < eps, name


def test_a_merged_folder_can_be_pruned_again(sharded, tmp_path):
    rmtspec.prune_checkpoint(sharded, tmp_path / "small", ranks={"fc": 4}, include="fc")
    with pytest.raises(FileError, match="undo the split first: rmtspec merge"):
        rmtspec.prune_checkpoint(tmp_path / "small", tmp_path / "again", ranks={"fc": 4})
    merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    again = rmtspec.prune_checkpoint(
        tmp_path / "dense", tmp_path / "again", ranks={"fc": 4}, include="fc"
    )
    assert again.row("fc.weight")["weight_error"] < 1e-5  # it has rank 4 already


# -- bad input


def test_folders_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    save_file({"a": noise(2, 2)}, tmp_path / WEIGHTS)
    for folder, message in [
        (tmp_path / "missing", "does not exist; expected a folder written by"),
        (tmp_path / "empty", r"has no rmtspec\.json; expected a folder written by"),
        (tmp_path / WEIGHTS, "is a file; expected a folder written by"),
    ]:
        with pytest.raises(FileError, match=message):
            merge_checkpoint(folder, tmp_path / "out")
    with pytest.raises(InvalidTypeError, match="`folder` is a int; expected the path"):
        merge_checkpoint(3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be(split_folder, tmp_path):
    folder = split_folder(FC, splits=[FC_ENTRY])
    before = sorted(p.name for p in folder.iterdir())
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for out, error, message in [
        (folder, FileError, "is not empty"),
        (folder / "out", FileError, "is in .*split, which is only read"),
        (tmp_path / "link" / "out", FileError, "is in .*split, which is only read"),
        (tmp_path / "no" / "out", FileError, "does not exist. Make that folder first"),
        (folder / MANIFEST, FileError, "is a file; expected a folder"),
        (3, InvalidTypeError, "The path is 3"),
    ]:
        with pytest.raises(error, match=message):
            merge_checkpoint(folder, out)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_an_empty_folder_is_filled(split_folder, tmp_path):
    (tmp_path / "out").mkdir()
    merge_checkpoint(split_folder(FC, splits=[FC_ENTRY]), tmp_path / "out")
    assert (tmp_path / "out" / DENSE).is_file()


def without(name):
    return {key: array for key, array in FC.items() if key != name}


OTHER = noise(5, 5)


@pytest.mark.parametrize(
    ("tensors", "entry", "message"),
    [
        (without("fc.inner.weight"), {}, r"no file holds 'fc\.inner\.weight', a factor that"),
        (without("fc.outer.weight"), {}, r"no file holds 'fc\.outer\.weight', a factor that"),
        (FC, {"name": "other"}, r"no file holds 'other\.outer\.weight'"),
        (
            FC,
            {"rank": 4},
            r"factors of 'fc' are \(40, 5\) and \(5, 30\); for kind 'linear', shape \(40, 30\) "
            r"and rank 4, expected \(40, 4\) and \(4, 30\)\. Copy the folder again",
        ),
        (FC, {"shape": (40, 31)}, r"\(40, 5\) and \(5, 31\)"),
        (FC, {"kind": "transposed linear"}, r"expected \(30, 5\) and \(5, 40\)"),
        (FC, {"kind": "embedding"}, r"expected \(30, 5\) and \(40, 5\)"),
        (FC, {"kind": "conv2d", "shape": (40, 30, 1, 1)}, r"expected \(40, 5, 1, 1\) and"),
        (FC, {"groups": 2}, r"expected \(40, 5\) and \(10, 30\)"),
        (FC, {"groups": 3}, r"lists 'fc' as linear of shape \(40, 30\) and 3 groups"),
        (FC, {"kind": "embedding", "groups": 2}, r"as embedding of shape \(40, 30\) and 2 groups"),
        (FC, {"kind": "embedding", "shape": (4, 3, 2)}, r"as embedding of shape \(4, 3, 2\) and"),
        (FC, {"kind": "hologram"}, r"the kind 'hologram', which this version .* Update rmtspec"),
        (
            {name: np.zeros(array.shape, np.int8) for name, array in FC.items()},
            {},
            r"factor 'fc\.outer\.weight' has dtype I8, not floats",
        ),
        ({**FC, "fc.weight": OTHER}, {}, r"it holds both 'fc\.weight' and its factors"),
        (
            {**FC, "fc.bias": OTHER, "fc.outer.bias": OTHER},
            {},
            r"it holds both 'fc\.bias' and its factors",
        ),
        ({**FC, "fc.inner.bias": OTHER}, {}, r"has 'fc\.inner\.bias', so the factor 'inner'"),
        ({**FC, "fc.outer.lora.A": OTHER}, {}, r"has 'fc\.outer\.lora\.A', so the factor 'outer'"),
        (
            {**without("fc.inner.weight"), "fc.inner.base.weight": OTHER},
            {},
            r"has 'fc\.inner\.base\.weight', so the factor 'inner' of 'fc' has been changed since",
        ),
        (
            {
                "fc.outer.weight": noise(30, 5), "fc.inner.weight": noise(40, 5),
                "fc.outer.bias": OTHER,
            },
            {"kind": "embedding"},
            r"has 'fc\.outer\.bias', so the factor 'outer' of 'fc'",
        ),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit(split_folder, tmp_path, tensors, entry, message):
    words = {"name": "fc", "kind": "linear", "rank": 5, "shape": (40, 30), **entry}
    folder = split_folder(tensors, splits=[SplitEntry(**words)])
    with pytest.raises(FileError, match=message):
        merge_checkpoint(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["split"]


def test_other_tensors_beside_a_matrix_that_prune_split(split_folder, tmp_path):
    """A file tells names only: there "fc" may be a module with a child called "inner"."""
    tensors = {**FC, "fc.inner.bias": OTHER, "fc.outer.proj.weight": OTHER}
    entry = SplitEntry("fc", "tensor", 5, (40, 30))
    _, found = merged(split_folder(tensors, splits=[entry]), tmp_path / "out")
    assert found.keys() == {"fc.weight", "fc.inner.bias", "fc.outer.proj.weight"}


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ({"a": "nowhere"}, "'a' shares the values of 'nowhere', which no file holds"),
        ({"b": "c"}, "'b' shares the values of 'c', and has its own"),
        ({"a": "d", "d": "b"}, "'a' shares the values of 'd', which no file holds"),
    ],
)
def test_ties_that_cannot_be(split_folder, tmp_path, tied, message):
    folder = split_folder({"b": OTHER, "c": OTHER}, tied=tied)
    with pytest.raises(FileError, match=message):
        merge_checkpoint(folder, tmp_path / "out")


def test_files_that_do_not_belong_together(split_folder, tmp_path):
    folder = split_folder({"a": OTHER}, {"b": OTHER, "a": OTHER})
    with pytest.raises(
        FileError, match=r"00001-of-00002\.safetensors both hold a tensor named 'a'"
    ):
        merge_checkpoint(folder, tmp_path / "out")
    Manifest((), {}, {}, {}).write(folder)
    with pytest.raises(FileError, match="has no weight files in its manifest"):
        merge_checkpoint(folder, tmp_path / "out")


def test_files_that_are_not_what_was_written(split_folder, tmp_path):
    folder = split_folder({"a": OTHER}, FC, splits=[FC_ENTRY])
    file = folder / "rmtspec-00002-of-00002.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 1
    for content, message in [
        (bytes(changed), "has changed since it was saved: its SHA-256"),
        (whole + b"0", "is damaged: .*not fully covered"),
        (whole[:-10], "is truncated"),
        (b"", "is empty"),
    ]:
        file.write_bytes(content)
        with pytest.raises(FileError, match=message):
            merge_checkpoint(folder, tmp_path / "out")
    file.unlink()
    with pytest.raises(FileError, match=r"no such file.*; it is listed in rmtspec\.json"):
        merge_checkpoint(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["split"]


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("target", "replacement", "error", "message"),
    [
        ("os.fsync", no_space, FileError, "no space left on device. Nothing was left there"),
        ("rmtspec.runs.merge.copy_companions", stop, KeyboardInterrupt, None),
    ],
)
def test_what_fails_midway_leaves_nothing(
    split_folder, tmp_path, monkeypatch, target, replacement, error, message
):
    folder = split_folder(FC, splits=[FC_ENTRY])
    monkeypatch.setattr(target, replacement)
    with pytest.raises(error, match=message):
        merge_checkpoint(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_that_is_too_small(split_folder, tmp_path, monkeypatch):
    folder = split_folder(FC, splits=[FC_ENTRY])
    (folder / "config.json").write_text("x" * 500)
    for free, fits in [(4 * 40 * 30 + 499, False), (4 * 40 * 30 + 500, True)]:
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            merge_checkpoint(folder, tmp_path / "out")
            continue
        with pytest.raises(FileError, match="needs 5,300 bytes, and 5,299 are free"):
            merge_checkpoint(folder, tmp_path / "out")
        assert list(tmp_path.iterdir()) == [folder]
