"""Arrays of other packages, and objects that are no arrays, given to the core's functions."""

import sys

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import rmtspec
from rmtspec import _arrays
from rmtspec.errors import InvalidTypeError, InvalidValueError

W = np.random.default_rng(5).standard_normal((40, 30)).astype(np.float32)


class DlpackOnly:
    """An array that only DLPack can read."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def eigenvalues(given):
    return rmtspec.spectrum(given).eigenvalues


@pytest.mark.parametrize(
    "wrap",
    [
        torch.tensor,
        lambda w: nn.Parameter(torch.tensor(w)),
        lambda w: torch.tensor(w, requires_grad=True) * 1.0,
        lambda w: torch.tensor(np.ascontiguousarray(w.T)).T,
        DlpackOnly,
        scipy.sparse.csr_array,
        scipy.sparse.coo_matrix,
        lambda w: np.ma.masked_array(w, mask=False),
        memoryview,
        lambda w: w.tolist(),
    ],
    ids=["tensor", "parameter", "with-gradient", "strided", "dlpack", "csr", "coo",
         "nothing-masked", "memoryview", "list"],
)  # fmt: skip
def test_the_same_numbers(wrap):
    np.testing.assert_array_equal(eigenvalues(wrap(W.copy())), eigenvalues(W))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16"])
def test_short_floats_of_torch(name):
    given = torch.tensor(W).to(getattr(torch, name))
    known = W.astype(getattr(ml_dtypes, name, np.float16))
    np.testing.assert_array_equal(eigenvalues(given), eigenvalues(known))
    assert rmtspec.analyze(given).spectrum.dtype == name


def test_every_public_function_of_a_matrix_takes_tensors():
    given = torch.tensor(W).bfloat16()
    moment = torch.eye(30)
    assert rmtspec.fit_noise(given).n_components == rmtspec.fit_noise(given.float()).n_components
    assert rmtspec.choose_rank(given, rule="fixed", rank=3).rank == 3
    parts = rmtspec.split(given, 3, input_moment=moment)
    assert parts.outer.dtype == ml_dtypes.bfloat16
    assert rmtspec.Spectrum(torch.tensor([1.0, 2.0]), n=4).p == 2


def test_a_state_dict_in_bfloat16_is_analysed():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20)).bfloat16()
    report = rmtspec.analyze_many(model.state_dict())
    assert [row["name"] for row in report.rows] == ["0.weight", "2.weight"]
    assert {entry["name"] for entry in report.skipped} == {"0.bias", "2.bias"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.ones(4, 4).to_sparse(), "convert it with to_dense"),
        (torch.ones(4, 4, device="meta"), "load the weights first"),
        (torch.ones(4, 4, dtype=torch.complex64), "complex"),
        (torch.ones(4, 4, dtype=torch.bool), "dtype bool"),
        (torch.ones(4, 4).to(torch.float8_e4m3fnuz), "convert it to bfloat16"),
        ({"a": W}, r"call rmtspec\.analyze_many"),
        (nn.Linear(3, 3), r"rmtspec\.adapters\.torch\.analyze\(model\)"),
        (nn.Sequential(nn.Linear(3, 3)), r"rmtspec\.adapters\.torch\.analyze\(model\)"),
        ("weights.npy", r"rmtspec\.checkpoint\.matrices_in"),
        (lambda: W, "call it"),
        (iter(W), "Pass an array"),
        (None, "return nothing"),
    ],
    ids=["sparse", "meta", "complex", "bool", "fnuz", "mapping", "layer", "sequential", "path",
         "callable", "iterator", "none"],
)  # fmt: skip
def test_what_is_no_readable_matrix_is_told_where_to_go(given, words):
    with pytest.raises(InvalidTypeError, match=words):
        rmtspec.analyze(given)


def test_a_model_is_no_collection_of_matrices():
    for source in (nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))):
        with pytest.raises(InvalidTypeError, match=r"adapters\.torch\.analyze\(model\)"):
            rmtspec.analyze_many(source)
    skipped = rmtspec.analyze_many({"layer": nn.Linear(3, 3), "w": W}).skipped
    assert "layer.weight" in skipped[0]["reason"]


def test_masked_entries_are_refused_with_the_way_out():
    masked = np.ma.masked_array(W, mask=W > 2.5)
    with pytest.raises(InvalidValueError, match=r"filled\(value\).*compress_rows"):
        rmtspec.analyze(masked)
    assert rmtspec.analyze(masked.filled(0.0)).spectrum.shape == W.shape


def test_a_large_sparse_matrix_is_refused_honestly():
    large = scipy.sparse.coo_array((20_000, 20_000))
    with pytest.raises(InvalidValueError, match="400,000,000 entries when dense"):
        rmtspec.analyze(large)


def test_no_framework_is_needed_or_imported(monkeypatch):
    for name in ("torch", "scipy.sparse"):
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    assert _arrays.as_array([[1.0, 2.0]], "W").shape == (1, 2)
    assert set(sys.modules) == before
