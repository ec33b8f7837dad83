"""The reasons of reports on models are among the enumerated ones."""

import numpy as np
import pytest
import torch
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.terms import Kind, Why


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2, 40, 30))
        self.four = nn.Parameter(torch.randn(2, 2, 4, 4))


class OwnForward(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 30))


def weight(make):
    layer = nn.Linear(4, 5, bias=False)
    layer.weight = nn.Parameter(make(), requires_grad=False)
    return layer


def with_buffer():
    layer = nn.Linear(30, 40)
    layer.register_buffer("scale", torch.ones(1))
    return layer


def replaced():
    layer = nn.Linear(30, 40)
    layer.forward = lambda x: x
    return layer


def all_kinds():
    torch.manual_seed(0)
    planted = rmtspec.ensembles.spiked(120, 90, [5, 20], rng=0) / np.sqrt(120)
    fc = nn.Linear(90, 120)
    with torch.no_grad():
        fc.weight.copy_(torch.from_numpy(planted))
    zero = nn.Linear(30, 40)
    nn.init.zeros_(zero.weight)
    model = nn.ModuleDict(
        {
            "fc": fc,
            "noise": nn.Linear(90, 80),
            "small": nn.Linear(120, 10),
            "zero": zero,
            "conv1": nn.Conv1d(20, 40, 3),
            "conv": nn.Conv2d(8, 40, 3, groups=2),
            "deep": nn.Conv2d(8, 8, 3, groups=8),
            "up": nn.ConvTranspose2d(20, 20, 3),
            "embed": nn.Embedding(50, 40),
            "normed": nn.Embedding(50, 40, max_norm=1.0),
            "attn": nn.MultiheadAttention(32, 2),
            "rnn": nn.LSTM(20, 20),
            "experts": Experts(),
            "table": Table(),
            "own": OwnForward(30, 40),
            "buffer": with_buffer(),
            "replaced": replaced(),
            "tied": nn.Linear(90, 120),
            "again": nn.Linear(90, 120),
            "parametrized": nn.utils.parametrizations.orthogonal(nn.Linear(30, 30)),
            "meta": nn.Linear(30, 40, device="meta"),
            "complex": weight(lambda: torch.randn(5, 4, dtype=torch.complex64)),
            "codes": weight(lambda: torch.ones(5, 4, dtype=torch.int8)),
            "sparse": weight(lambda: torch.randn(5, 4).to_sparse()),
            "none": weight(lambda: torch.empty(0, 4)),
            "e8m0": weight(lambda: torch.zeros(5, 4).to(torch.float8_e8m0fnu)),
            "fp8": weight(lambda: torch.randn(30, 40).to(torch.float8_e4m3fn)),
            "nan": weight(lambda: torch.full((30, 40), torch.nan)),
        }
    )
    model["again"].weight = model["tied"].weight
    model.scale = nn.Parameter(torch.tensor(1.0))
    return model


def whys(*reports):
    return {
        entry["name"]: Why.of(entry["reason"])
        for report in reports
        for entry in (*report.rows, *report.skipped)
    }


@pytest.fixture
def model():
    return all_kinds()


def test_every_reason_of_a_model_is_known(model):
    given = (
        {"bulk_keep": 0.0},
        {"rule": "fraction", "keep": 0.8},
        {"rule": "fraction", "keep": 1.0, "mode": "truncate"},
        {"rule": "fraction", "keep": 0.2, "min_saving": 0.9},
        {"bulk_keep": 0.3, "fit_cutoff": 1e-9},
        {"budget": 0.95},
        {"include": [r"conv\[0\]", "nothing"]},
    )
    reports = [rt.plan(model, **options) for options in given]
    reports += [rt.analyze(model), rt.analyze(model, include="^(fc|own)$", exclude="fc")]
    met = set()
    for report in reports:
        reasons_of = whys(report)
        assert [name for name, reasons in reasons_of.items() if Why.OTHER in reasons] == []
        met |= {why for reasons in reasons_of.values() for why in reasons}
    assert met == {
        Why.NO_BULK, Why.NO_SIGNAL, Why.ALL_ZERO, Why.TOO_SMALL, Why.UNRELIABLE, Why.FIT_REJECTED,
        Why.GATED,
        Why.NOT_FINITE, Why.SAVES_NOTHING, Why.SAVES_LITTLE, Why.FULL_RANK, Why.STAYS_DENSE,
        Why.NOT_INCLUDED, Why.EXCLUDED, Why.NOT_NAMED, Why.NO_MATRIX_MEETS, Why.LAYER_LEFT,
        Why.TIED, Why.TIED_ELSEWHERE, Why.EMPTY, Why.NUMBER, Why.VECTOR, Why.DEPTHWISE,
        Why.UNKNOWN_AXES, Why.UNREADABLE, Why.COMPLEX, Why.QUANTISED, Why.SPARSE, Why.META,
        Why.PARAMETRIZED, Why.NO_ARITHMETIC, Why.READ_BY_LAYER, Why.OWN_FORWARD,
        Why.FORWARD_REPLACED, Why.HOLDS_MORE, Why.MAX_NORM, Why.TRANSPOSED_CONV,
    }  # fmt: skip


def test_every_reason_of_a_training_is_known(model):
    trained = nn.ModuleDict({name: model[name] for name in ("fc", "noise", "small")})
    trained["noise"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    pruner = rt.RMTPruner(trained, optimizer, every=1, budget=0.95, fit_cutoff=None)
    reports = [pruner.step(), pruner.step()]
    assert whys(reports[0])["noise"] == (Why.FROZEN,)
    assert whys(reports[1])["small"] == (Why.BUDGET_SPENT,)
    assert not any(Why.OTHER in reasons for reasons in whys(*reports).values())


def test_kinds(model):
    kinds = {m.kind for m in rt.weight_matrices(model) if m.kind}
    assert all(type(kind) is Kind for kind in kinds)
    assert kinds == {
        Kind.LINEAR, Kind.CONV1D, Kind.CONV2D, Kind.TRANSPOSED_CONV, Kind.EMBEDDING,
        Kind.ATTENTION, Kind.RECURRENT, Kind.EXPERT, Kind.PARAMETER,
    }  # fmt: skip
    assert {type(row["kind"]) for row in rt.analyze(model).rows} == {str}
