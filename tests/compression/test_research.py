"""The prototypes of the compression trials: exact where they claim to be."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks/compression/research"


@pytest.fixture(scope="module")
def trials():
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ("cuts", "pairs", "pivoting")}
    finally:
        sys.path.remove(str(FOLDER))


def moment(size, seed=0):
    x = np.random.default_rng(seed).standard_normal((3 * size, size))
    x = x @ np.diag(np.linspace(0.2, 2, size))
    return torch.as_tensor(x.T @ x / len(x))


def loss(change, C, G):
    G = G.diag() if G.ndim == 1 else G
    return float(torch.trace(G @ change @ C @ change.T)) / 2


@pytest.mark.parametrize(("rows", "columns"), [(8, 14), (14, 8), (10, 10)])
@pytest.mark.parametrize("full", [False, True])
def test_the_tail_is_the_loss_of_the_cut(trials, rows, columns, full):
    cuts = trials["cuts"]
    W = torch.as_tensor(np.random.default_rng(1).standard_normal((rows, columns)))
    C, G = moment(columns), moment(rows, 2)
    G = G if full else G.diagonal()
    found = cuts.factor(W.float(), C, G)
    for rank in (0, 3, 7):
        expected = loss(W.float().double() - found.cut(rank), cuts.ridged(C), cuts.ridged(G))
        # The factors are float32.
        assert float(found.tail[rank]) == pytest.approx(expected, rel=1e-4)


def test_ranks_fill_the_budget_and_cost_the_least(trials):
    cuts = trials["cuts"]
    tails = {"a": torch.tensor([9.0, 3.0, 1.0, 0.0]), "b": torch.tensor([0.9, 0.3, 0.1, 0.0])}
    shapes = {"a": (3, 30), "b": (3, 30)}
    assert cuts.allocate(tails, shapes, 1.0) == {"a": None, "b": None}
    # Ranks of three cost more than the whole; what is left goes to the layer that loses more.
    assert cuts.allocate(tails, shapes, 0.75) == {"a": None, "b": 1}
    assert cuts.allocate(tails, shapes, 0.4) == {"a": 2, "b": 0}


@pytest.mark.parametrize("step", [1, 5])
def test_units_that_leave_cost_what_was_predicted(trials, step):
    cuts, pairs = trials["cuts"], trials["pairs"]
    W = torch.as_tensor(np.random.default_rng(3).standard_normal((7, 24)))
    C, G = moment(24), torch.linspace(0.1, 1, 7, dtype=torch.float64)
    found = pairs.eliminate(W, C, G, step=step)
    for count in (5, 10, 20):
        kept = torch.tensor(sorted(set(range(24)) - set(found.order[:count].tolist())))
        change = W - pairs.refit(W, C, kept)
        expected = loss(change, cuts.ridged(C), cuts.ridged(G))
        assert float(found.loss[count]) == pytest.approx(expected, rel=1e-9)


def test_units_that_leave_together_cost_what_was_predicted(trials):
    cuts, pairs = trials["cuts"], trials["pairs"]
    W = torch.as_tensor(np.random.default_rng(3).standard_normal((7, 24)))
    C, G, members = moment(24), moment(7, 4), torch.arange(24).view(8, 3)
    found = pairs.eliminate(W, C, G, members=members, step=2)
    gone = members[found.order[:4]].flatten().tolist()
    kept = torch.tensor(sorted(set(range(24)) - set(gone)))
    expected = loss(W - pairs.refit(W, C, kept), cuts.ridged(C), cuts.ridged(G))
    assert float(found.loss[4]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 5, 9])
def test_pivots_hold_the_same_matrix_in_fewer_numbers(trials, rank):
    generator = np.random.default_rng(5)
    outer, inner = generator.standard_normal((12, rank)), generator.standard_normal((rank, 9))
    found = trials["pivoting"].pivoted(outer, inner)
    rows = np.empty((12, 9))
    rows[found.pivots], rows[found.others] = found.kept, found.mixing @ found.kept
    np.testing.assert_allclose(rows, outer @ inner, rtol=0, atol=1e-12)
    assert found.kept.size + found.mixing.size == rank * (12 + 9 - rank)


def test_a_pivoted_layer_computes_what_its_factors_do(trials):
    torch.manual_seed(0)
    outer, inner, bias, x = (torch.randn(*s) for s in ((12, 5), (5, 9), (12,), (2, 4, 9)))
    layer = trials["pivoting"].PivotedLinear(outer, inner, bias)
    torch.testing.assert_close(layer(x), x @ (outer @ inner).T + bias, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in layer.parameters()) == 5 * (12 + 9 - 5) + 12


def test_pivots_of_factors_that_lack_rank_are_refused(trials):
    outer = np.ones((6, 2))
    with pytest.raises(ValueError, match="rank below its 2 columns"):
        trials["pivoting"].pivoted(outer, np.ones((2, 4)))
