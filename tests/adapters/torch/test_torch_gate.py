"""The gate: which layers of a model may be cut where nothing else decides, and what that costs."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidValueError
from rmtspec.report import matrix_report
from rmtspec.report.report import Report

ADVICE = "let data decide with calibration= and budget=, or gate=None"
ROWS, COLUMNS = 120, 90


def orthogonal(rng, rows=ROWS, columns=COLUMNS):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def low_rank(rng, rank=5, dtype=np.float64, factors=np.float64):
    outer = rng.standard_normal((ROWS, rank)).astype(factors)
    inner = rng.standard_normal((rank, COLUMNS)).astype(factors)
    return (outer.astype(np.float64) @ inner.astype(np.float64) / math.sqrt(ROWS)).astype(dtype)


def layer(W, dtype=torch.float32):
    """A Linear with this weight, and a bias that nothing may change."""
    made = nn.Linear(W.shape[1], W.shape[0], dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(W))
    return made


def net(**weights):
    return nn.ModuleDict({name: layer(W) for name, W in weights.items()})


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@contextlib.contextmanager
def counted(monkeypatch):
    """Names of the matrices whose noise is fitted with another model than "mp"."""
    names = []
    real = matrix_report.noise_of

    def note(array, model, *rest):
        names.append((array.shape, model))
        return real(array, model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(matrix_report, "noise_of", note)
        yield names


# -- what is left alone


def test_orthogonal_and_identity_layers_are_left_alone(rng):
    model = net(
        orthogonal=orthogonal(rng), square=orthogonal(rng, COLUMNS), identity=np.eye(COLUMNS)
    )
    before = copy.deepcopy(model.state_dict())
    same, report = rt.prune(model)
    assert {row["name"]: row["action"] for row in report.rows} == dict.fromkeys(model, "keep")
    assert report.row("orthogonal")["reason"] == f"no noise-like bulk: {ADVICE}"
    assert report.row("square")["reason"] == f"no noise-like bulk: {ADVICE}"
    # Of the identity, one entry in each row and column is left: sign flips tell nothing.
    assert report.row("identity")["reason"] == f"cannot tell: {ADVICE}"
    assert {type(child) for child in same.values()} == {nn.Linear}
    assert all(torch.equal(value, before[key]) for key, value in same.state_dict().items())
    assert report.settings["gate"] == "noise"
    planned = rt.plan(model)
    assert [row["reason"] for row in planned.rows] == [row["reason"] for row in report.rows]
    assert planned.parameters_after == planned.parameters_before
    smaller, report = rt.prune(model, gate=None)
    assert {row["action"] for row in report.rows} == {"split"}
    assert all(row["weight_error"] > 0.5 for row in report.rows)  # what the gate prevents
    assert {type(child) for child in smaller.values()} == {rt.SplitLinear}


@pytest.mark.parametrize("rule", ["bema", "energy", "fraction", "gavish-donoho"])
def test_the_gate_holds_for_every_rule_and_for_truncation(rng, rule):
    model = net(orthogonal=orthogonal(rng))
    keep = {"keep": 0.3} if rule in ("energy", "fraction") else {}
    for mode in ("split", "truncate"):
        planned = rt.plan(model, rule=rule, mode=mode, **keep)
        assert planned.rows[0]["reason"] == f"no noise-like bulk: {ADVICE}"
        assert planned.rows[0]["action"] == "keep"


def test_a_small_layer_that_is_named_must_pass_too(rng):
    model = net(small=rng.standard_normal((40, 12)))
    assert rt.plan(model).rows[0]["reason"] == "smaller side 12 is below 16"
    assert rt.plan(model, include="small").rows[0]["reason"] == f"cannot tell: {ADVICE}"
    assert rt.plan(model, include="small", gate=None, bulk_keep=0.2).rows[0]["action"] == "split"


# -- what passes


@pytest.mark.parametrize(
    ("stored", "dtype", "factors", "digits"),
    [
        ("float64", torch.float64, np.float64, 1e-12),
        ("float32", torch.float32, np.float64, 1e-6),
        # Rounded factors have a product that is exactly of their rank.
        ("float32", torch.float32, np.float16, 1e-6),
        # A rounded product has a bulk of rounding, below what its dtype can hold: it may go.
        ("float16", torch.float16, np.float64, 2e-3),
    ],
)
def test_exactly_low_rank_passes_every_gate_and_loses_nothing(rng, stored, dtype, factors, digits):
    W = low_rank(rng, 5, np.dtype(stored), factors)
    model = nn.Sequential(layer(W, dtype))
    assert torch.equal(model[0].weight.detach(), torch.from_numpy(W))
    x = torch.randn(16, COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        expected = model(x)
        for gate in ("noise", 1e-9, None):
            smaller, report = rt.prune(model, gate=gate)
            row = report.rows[0]
            assert (row["action"], row["rule"], row["rank"]) == ("split", "exact", 5), gate
            assert row["keep"] is None
            assert row["weight_error"] < digits
            assert smaller[0].inner.weight.dtype == dtype
            lost = (smaller(x) - expected).double().norm() / expected.double().norm()
            assert lost < 2 * digits, gate


def test_low_rank_that_saves_nothing_is_left_with_the_reason(rng):
    rank = 60  # break-even is 51.4
    model = net(full=low_rank(rng, rank))
    row = rt.plan(model).rows[0]
    assert (row["action"], row["numerical_rank"]) == ("keep", rank)
    assert row["reason"] == f"no bulk left: {ADVICE}"


def test_a_rule_without_a_bulk_has_the_last_word_on_low_rank(rng):
    model = net(low=low_rank(rng, 5))
    row = rt.plan(model, rule="fraction", keep=0.02, gate=None).rows[0]
    assert (row["rule"], row["rank"]) == ("fraction", 1)


def test_low_rank_passes_every_gate_whatever_decides_the_rank(rng):
    model = net(low=low_rank(rng, 5))
    for gate in ("noise", 1e-9, None):
        for mode in ("split", "truncate"):
            for rule, keep, rank in (("fraction", 0.05, 4), ("exact", None, 5)):
                row = rt.plan(model, rule=rule, gate=gate, mode=mode, keep=keep).rows[0]
                assert (row["action"], row["rule"], row["rank"]) == (mode, rule, rank)
        row = rt.plan(model, gate=gate, mode="truncate").rows[0]  # nothing beyond it to remove
        assert (row["action"], row["reason"].split("; ")[0]) == ("keep", "no bulk")


def test_heavy_tails_and_unequal_rows_pass(rng):
    shape = (300, 200)
    scales = np.exp(rng.normal(size=(shape[0], 1)))
    planted = rmtspec.ensembles.spiked(*shape, [4.0, 6.0, 9.0], rng=rng)
    model = net(heavy=rng.standard_t(3, shape), rows=rng.standard_normal(shape) * scales,
                planted=planted * scales)  # fmt: skip
    _, report = rt.prune(model, beta=0.01)
    for row in report.rows:
        count = row["n_components"]
        assert row["verdict"] == "noise-like bulk", row["name"]
        assert (row["action"], row["rule"]) == ("split", "noise")
        assert row["rank"] == count + math.floor(0.45 * (200 - count))
    assert report.row("planted")["n_components"] == 3
    assert report.row("rows")["n_components"] == 0
    assert report.row("rows")["n_spikes"] > 0  # what one variance for all would have raised


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "t(3)", "uniform"])
def test_few_layers_of_pure_noise_are_left_alone(rng, noise):
    draw = {
        "normal": rng.standard_normal, "t(3)": lambda size: rng.standard_t(3, size),
        "uniform": lambda size: rng.uniform(-1.0, 1.0, size),
    }[noise]  # fmt: skip
    model = net(**{f"of{i}": draw((ROWS, COLUMNS)) for i in range(100)})
    left = [row for row in rt.plan(model).rows if row["action"] == "keep"]
    assert len(left) <= 8  # seen: 0 to 5; a law and a flip test, both at the level .05
    assert all(row["verdict"] == "no noise-like bulk" for row in left)


# -- its spellings, and what replaces it


def test_a_number_is_the_papers_gamma_in_either_spelling(rng):
    model = net(planted=rmtspec.ensembles.spiked(200, 120, [4, 9], rng=rng), bad=orthogonal(rng))
    statistic = rt.analyze(model).row("planted")["fit_statistic"]
    for cutoff in (statistic * 1.01, statistic * 0.99):
        one, other = rt.plan(model, gate=cutoff), rt.plan(model, fit_cutoff=cutoff)
        timeless = [[{**row, "seconds": 0} for row in plan.rows] for plan in (one, other)]
        assert timeless[0] == timeless[1]
        assert one.settings == other.settings
        assert (one.settings["gate"], one.settings["cutoff"]) == (cutoff, cutoff)
        assert (one.settings["rule"], one.settings["noise"]) == ("bema", "mp")
        passes = statistic <= cutoff
        assert (one.row("planted")["action"] == "split") is passes
        assert one.row("bad")["reason"].startswith("fit rejected: statistic")
    either = rt.plan(model, gate=None), rt.plan(model, fit_cutoff=None)
    assert either[0].settings == either[1].settings


@pytest.mark.parametrize("gate", ["noise", None, 0.1])
@pytest.mark.parametrize("cutoff", [None, 0.1])
def test_both_spellings_together_are_an_error(rng, gate, cutoff):
    model = net(planted=rng.standard_normal((60, 40)))
    for call in (rt.plan, rt.prune):
        with pytest.raises(InvalidValueError, match="two spellings of the same option"):
            call(model, gate=gate, fit_cutoff=cutoff)


def batches():
    return [torch.randn(300, COLUMNS, generator=torch.Generator().manual_seed(0))]


def test_it_is_lifted_where_calibration_and_budget_are_both_given(rng):
    model = nn.Sequential(layer(orthogonal(rng)))
    row = rt.plan(model, calibration=batches(), budget=0.5).rows[0]
    assert (row["action"], row["reason"]) == ("split", "")
    assert rt.prune(model, calibration=batches(), budget=0.5)[1].settings["gate"] is None
    for options in ({"budget": 0.5}, {"calibration": batches()}):
        _, report = rt.prune(model, **options)
        assert report.settings["gate"] == "noise"
        assert report.rows[0]["reason"] == f"no noise-like bulk: {ADVICE}"
    given = {"calibration": batches(), "budget": 0.5, "gate": "noise"}
    assert rt.plan(model, **given).rows[0]["action"] == "keep"  # asked for, it holds


def test_the_budget_is_shared_by_the_layers_that_pass(rng):
    model = net(noise=rng.standard_normal((ROWS, COLUMNS)), orthogonal=orthogonal(rng))
    planned = rt.plan(model, budget=0.5)
    assert planned.row("orthogonal")["action"] == "keep"
    assert planned.row("noise")["rank"] == int(0.5 * ROWS * COLUMNS / (ROWS + COLUMNS))


def test_ranks_lift_it_for_the_layers_that_they_name(rng):
    model = net(one=orthogonal(rng), other=orthogonal(rng))
    _, report = rt.prune(model, ranks={"one": 7})
    assert (report.row("one")["action"], report.row("one")["rank"]) == ("split", 7)
    assert report.row("other")["reason"] == f"no noise-like bulk: {ADVICE}"


def test_an_edited_plan_is_carried_out(rng, tmp_path):
    model = net(one=orthogonal(rng), other=orthogonal(rng))
    planned = rt.plan(model)
    planned.row("one").update(action="split", rank=7)
    planned.to_json(tmp_path / "plan.json")
    smaller, report = rt.apply_plan(model, Report.from_json(tmp_path / "plan.json"))
    assert (smaller["one"].rank, type(smaller["other"])) == (7, nn.Linear)
    assert report.row("other")["reason"] == f"no noise-like bulk: {ADVICE}"


# -- what it costs


class Refused(nn.Module):
    """A layer that may be cut, and layers that stay whatever their noise is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cut = nn.Linear(61, 70)
        self.forced = nn.Linear(62, 70)
        self.small = nn.Linear(63, 10)
        self.table = nn.Embedding(100, 64)
        self.attn = nn.MultiheadAttention(32, 2)
        self.recurrent = nn.GRU(65, 40)
        self.tied = nn.Linear(66, 70)
        self.again = nn.Linear(66, 70)
        self.again.weight = self.tied.weight


def test_only_what_may_be_cut_is_tested(monkeypatch):
    model = Refused()
    with counted(monkeypatch) as tested:
        planned = rt.plan(model, ranks={"forced": 5})
    assert tested == [((70, 61), "auto")]
    models = {row["name"]: row["noise_model"] for row in planned.rows}
    assert models.pop("cut") in ("equalized", "signflip")
    assert set(models.values()) == {"mp"}
    assert {"forced", "small", "table", "attn[q]", "tied"} < models.keys()
    assert planned.row("forced")["action"] == "split"
    # The same decisions as with the noise of all fitted, which can be asked for.
    with counted(monkeypatch) as tested:
        everywhere = rt.plan(model, ranks={"forced": 5}, noise="auto")
    assert len(tested) == len(planned.rows)
    keys = ("action", "rank", "reason", "rule")
    for one, other in zip(planned.rows, everywhere.rows, strict=True):
        if one["name"] != "forced":  # its rank by a rule is not used
            assert [one[k] for k in keys if k != "rank" or one["action"] == "split"] == [
                other[k] for k in keys if k != "rank" or one["action"] == "split"
            ]


def test_what_is_named_is_tested(monkeypatch):
    with counted(monkeypatch) as tested:
        rt.plan(Refused(), include="^(table|small)")
    assert tested == [((10, 63), "auto"), ((100, 64), "auto")]
    with counted(monkeypatch) as tested:  # attention can be truncated
        rt.plan(Refused(), include="attn", mode="truncate")
    assert tested == [((32, 32), "auto")] * 4


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"gate": None}, 0),
        ({"gate": 0.1}, 0),
        ({"gate": None, "rule": "noise"}, 1),
        ({"gate": "noise", "rule": "energy", "keep": 0.5}, 1),
        ({"gate": "noise", "noise": "mp"}, 0),
        ({"budget": 0.5}, 1),
        ({"budget": 0.5, "gate": None}, 0),
        ({"calibration": True}, 1),
        ({"calibration": True, "budget": 0.5}, 0),
    ],
    ids=str,
)
def test_the_noise_is_fitted_only_where_gate_or_rule_ask_for_it(monkeypatch, options, count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS))
    if "calibration" in options:
        options = {**options, "calibration": batches()}
    with counted(monkeypatch) as tested:
        _, report = rt.prune(model, **options)
    assert len(tested) == count
    assert report.settings["noise"] == ("auto" if count else "mp")


def test_analyze_and_training_cost_what_they_did(monkeypatch):
    torch.manual_seed(0)
    with counted(monkeypatch) as tested:
        for options, count in (({}, 0), ({"gate": "noise"}, 2)):
            model = rt.MLP([64, 100, 50, 10])
            rt.analyze(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            rt.RMTPruner(model, optimizer, every=1, **options).step()
            assert len(tested) == count
