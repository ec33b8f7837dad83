"""RMTPruner: when it acts, what it decides, what it leaves alone, and that training continues."""

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from small_training import Clusters, conv1d_of_transformers, network, pruner_of
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecError, RmtspecWarning


def sgd(model, **options):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, **{"lr": 0.05, "momentum": 0.9, **options})


def planted(rows, columns, strengths, seed):
    """Return a Linear whose weight is noise with a signal of known rank."""
    layer = nn.Linear(columns, rows)
    W = rmtspec.ensembles.spiked(rows, columns, strengths, rng=seed) / np.sqrt(max(rows, columns))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
    return layer


def one_step(model, optimizer, x):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def kinds(model):
    return {name: type(m).__name__ for name, m in model.named_modules() if not list(m.children())}


@pytest.fixture
def model():
    return network()


# ------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("every", "ends", "over"),
    [
        (3, [3, 6, 9], False),
        (3.0, [3, 6, 9], False),
        (np.int64(4), [4, 8], False),
        ([2, 5], [2, 7], True),
        ((1, 1, 1), [1, 2, 3], True),
        (np.array([2, 2]), [2, 4], True),
        ((n for n in (1, 3)), [1, 4], True),
        (itertools.count(1), [1, 3, 6, 10], False),  # has no end
        (itertools.repeat(4), [4, 8], False),
        (lambda cycle: cycle + 1, [1, 3, 6, 10], False),
        (lambda cycle: 2 if cycle < 2 else None, [2, 4], True),
    ],
)
def test_cycles_end_when_the_schedule_says(model, every, ends, over):
    pruner = pruner_of(model, sgd(model), every=every)
    assert pruner.next_epoch == ends[0]
    acted = [epoch for epoch in range(1, 11) if pruner.step() is not None]
    assert acted == ends
    assert pruner.epoch == 10
    assert len(pruner.history) == len(ends)
    assert (pruner.next_epoch is None) is over


@pytest.mark.parametrize(
    ("every", "kind", "message"),
    [
        (0, InvalidValueError, "`every` is 0; expected a whole number of epochs, 1 or more"),
        (-1, InvalidValueError, "`every` is -1"),
        (2.5, InvalidValueError, r"`every` is 2\.5"),
        (float("nan"), InvalidValueError, "`every` is nan"),
        (float("inf"), InvalidValueError, "`every` is inf"),
        ("3", InvalidTypeError, r"`every` is '3' \(str\); expected a whole number of epochs"),
        (True, InvalidTypeError, r"`every` is True \(bool\)"),
        (None, InvalidTypeError, "`every` is None"),
        ([], InvalidValueError, r"no cycles; expected at least one length, such as every=\[3\]"),
        (iter(()), InvalidValueError, "no cycles"),
        ([3, 0], InvalidValueError, r"`every\[1\]` is 0"),
        ([3, None], InvalidTypeError, r"`every\[1\]` is None"),
        (["3"], InvalidTypeError, r"`every\[0\]` is '3'"),
        (lambda cycle: 0, InvalidValueError, r"`every\(0\)` is 0"),
        (lambda cycle: float("nan"), InvalidValueError, r"`every\(0\)` is nan"),
        (lambda cycle: "3", InvalidTypeError, r"`every\(0\)` is '3'"),
        (lambda cycle: True, InvalidTypeError, r"`every\(0\)` is True"),
        (lambda cycle: None, InvalidValueError, "no cycles"),
    ],
)
def test_nonsense_in_the_schedule_is_refused_at_once(model, every, kind, message):
    optimizer = sgd(model)
    with pytest.raises(kind, match=message):
        pruner_of(model, optimizer, every=every)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("later", "kind"),
    [(0, InvalidValueError), (float("nan"), InvalidValueError), ("2", InvalidTypeError)],
)
@pytest.mark.parametrize("form", ["function", "iterator"])
def test_nonsense_later_in_the_schedule_changes_nothing(model, later, kind, form):
    answers = [2, later]
    every = answers.__getitem__ if form == "function" else iter(answers)
    pruner = pruner_of(model, sgd(model), every=every, ranks={"layers.0": 5})
    before = kinds(model)
    assert pruner.step() is None
    for _ in range(2 if form == "function" else 1):
        with pytest.raises(kind, match=r"`every[\[(]1[\])]` is"):
            pruner.step()
        assert (pruner.epoch, pruner.next_epoch, pruner.history) == (1, 2, [])
        assert kinds(model) == before


# ------------------------------------------------------------------------------- decisions


def test_the_first_split_has_the_rank_of_the_paper():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 1500))
    report = rt.RMTPruner(model, sgd(model), every=1).step()
    row = report.row("0")
    spikes = row["n_spikes"]
    assert row["action"] == "split"
    assert row["rank"] == model[0].rank == spikes + math.floor(0.45 * (784 - spikes))
    assert row["parameters_after"] == row["rank"] * (784 + 1500)
    assert rt.count_parameters(model) == row["parameters_after"] + 1500
    assert report.totals["parameters_after"] == rt.count_parameters(model)


def test_a_fit_that_is_rejected_leaves_the_layer():
    torch.manual_seed(0)
    steep = nn.Linear(100, 150)
    with torch.no_grad():  # singular values that fall evenly to 0, unlike noise
        left, _, right = torch.linalg.svd(steep.weight, full_matrices=False)
        steep.weight.copy_((left * torch.linspace(2.0, 0.0, 100) ** 3) @ right)
    for cutoff, action in ((None, "split"), (0.1, "keep")):
        model = nn.Sequential(copy.deepcopy(steep))
        options = {} if cutoff == 0.1 else {"fit_cutoff": cutoff}  # 0.1 is the default
        row = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0.1, **options).step().row("0")
        assert row["action"] == action
        assert type(model[0]) is {"keep": nn.Linear, "split": rt.SplitLinear}[action]
    assert row["fit_statistic"] > 0.1
    assert "fit rejected: statistic" in row["reason"]


def test_what_saves_nothing_is_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 110))
    report = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0.6).step()
    assert (report.row("0")["action"], type(model[0])) == ("keep", nn.Linear)
    assert "not below break-even 52.4" in report.row("0")["reason"]
    report = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0.45, min_saving=0.5).step()
    assert "less than min_saving 50.0%" in report.row("0")["reason"]


def test_the_bulk_goes_at_bulk_keep_0():
    model = nn.Sequential(planted(200, 120, [4, 8, 20], 0), nn.ReLU(), planted(100, 200, [], 1))
    report = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0, beta=0.01).step()
    assert (model[0].rank, report.row("0")["n_spikes"]) == (3, 3)
    assert report.row("2")["reason"] == "no signal found"
    assert type(model[2]) is nn.Linear


def test_splits_go_on_in_the_factors():
    model = network([200, 300, 10])
    pruner = rt.RMTPruner(
        model, sgd(model), every=1, fit_cutoff=None, bulk_keep=0.3, recut="factors"
    )
    sizes = [rt.count_parameters(model)]
    for _ in range(3):
        pruner.step()
        sizes.append(rt.count_parameters(model))
    assert sizes[0] > sizes[1] > sizes[2]
    assert type(model.layers[0].inner) is rt.SplitLinear
    assert [entry["name"] for entry in pruner.state_dict()["splits"]][:2] == [
        "layers.0", "layers.0.inner"
    ]  # fmt: skip
    assert model(torch.ones(2, 200)).shape == (2, 10)
    assert type(rt.merge(model).layers[0]) is nn.Linear


def test_frozen_layers_are_left_with_the_reason(model):
    model.layers[1].requires_grad_(False)
    for ranks in ({}, {"layers.1": 4}):  # frozen for now, perhaps not at a later split
        pruner = rt.RMTPruner(model, sgd(model), every=1, ranks=ranks)
        report = pruner.step()
        frozen = {"name": "layers.1", "reason": "frozen: requires_grad is False"}
        assert frozen in report.skipped
        assert type(model.layers[1]) is nn.Linear
    model.layers[1].requires_grad_(True)
    pruner._optimizer.optimizer.add_param_group({"params": list(model.layers[1].parameters())})
    pruner.step()
    assert model.layers[1].rank == 4


def test_all_frozen_is_said(model):
    for layer in model.layers:
        layer.weight.requires_grad_(False)
    pruner = rt.RMTPruner(model, sgd(model), every=1)
    report = pruner.step()
    assert report.rows == []
    reasons = {entry["name"]: entry["reason"] for entry in report.skipped}
    assert reasons["layers.0"] == "frozen: requires_grad is False"
    assert pruner.history[0].skipped == report.skipped
    assert report.totals["parameters_after"] == rt.count_parameters(model)
    assert "3 (layers.0, layers.1, layers.2): frozen" in repr(report)


def test_patterns_that_meet_nothing_after_the_split(model):
    optimizer = sgd(model)
    pruner = rt.RMTPruner(model, optimizer, every=1, include=r"^layers\.0$", recut="factors")
    first = pruner.step()
    assert [row["name"] for row in first.rows] == ["layers.0"]
    for _ in range(2):
        second = pruner.step()
        assert second.rows == []
        reasons = {entry["name"]: entry["reason"] for entry in second.skipped}
        assert reasons["layers.0.inner"] == "not in `include`"
        assert reasons["include='^layers\\\\.0$'"] == "this pattern meets no matrix"
    one_step(model, optimizer, torch.ones(2, 40))
    assert kinds(model)["layers.1"] == "Linear"


def test_exclude(model):
    options = {"fit_cutoff": None, "exclude": "inner|outer", "recut": "factors"}
    pruner = rt.RMTPruner(model, sgd(model), every=1, **options)
    for _ in range(3):
        report = pruner.step()
    assert report.rows == []
    assert {type(m) for m in model.layers} == {rt.SplitLinear}


def test_ranks_by_the_name_of_layer_matrix_or_weight():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(32, 48, 3, groups=2),
        nn.Conv2d(48, 40, 3, groups=2),
        nn.Flatten(),
        nn.Linear(40, 30),
        conv1d_of_transformers(35, 30),
        nn.Embedding(90, 40),
    )
    ranks = {"0": 4, "1[1]": 3, "3.weight": 5, "4": 6, "5": 7}
    report = pruner_of(model, sgd(model), ranks=ranks).step()
    decided = {row["name"]: (row["action"], row["rank"], row["rule"]) for row in report.rows}
    assert decided == {
        "0[0]": ("split", 4, "given"),
        "0[1]": ("split", 4, "given"),
        "1[0]": ("split", 3, "given"),
        "1[1]": ("split", 3, "given"),
        "3": ("split", 5, "given"),
        "4": ("split", 6, "given"),
        "5": ("split", 7, "given"),
    }
    assert [model[i].rank for i in (0, 1, 3, 4, 5)] == [4, 3, 5, 6, 7]


def test_ranks_count_once(model):
    pruner = pruner_of(model, sgd(model), ranks={"layers.0": 30})
    pruner.step()
    pruner.step()
    assert model.layers[0].rank == 30
    assert kinds(model)["layers.0.inner"] == "Linear"


def test_truncate(model):
    optimizer = sgd(model)
    pruner = rt.RMTPruner(model, optimizer, every=1, mode="truncate", ranks={"layers.0": 5})
    one_step(model, optimizer, torch.ones(2, 40))
    weight = model.layers[0].weight
    report = pruner.step()
    assert report.row("layers.0")["action"] == "truncate"
    assert model.layers[0].weight is weight
    assert np.linalg.matrix_rank(weight.detach().numpy(), tol=1e-5) == 5
    assert "momentum_buffer" in optimizer.state[weight]
    assert pruner.state_dict()["splits"] == []


def test_budget():
    model = network([100, 300, 200, 20])
    pruner = rt.RMTPruner(model, sgd(model), every=1, budget=0.3, fit_cutoff=None)
    report = pruner.step()
    kept = sum(row["parameters_after"] for row in report.rows)
    assert 0.28 < kept / sum(row["parameters_before"] for row in report.rows) <= 0.3
    size = rt.count_parameters(model)
    report = pruner.step()  # not 0.3 of 0.3
    assert rt.count_parameters(model) == size
    assert {e["reason"] for e in report.skipped if "bias" not in e["name"]} == {
        "the budget is spent: layers were split to it before"
    }  # fmt: skip


def test_other_rules(model):
    report = rt.RMTPruner(model, sgd(model), every=1, rule="fraction", keep=0.2).step()
    assert report.row("layers.0")["rank"] == 8
    assert report.settings["rule"] == "fraction"


def test_tied_weights_and_modules_used_twice_stay():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(90, 40)
            self.head = nn.Linear(40, 90, bias=False)
            self.head.weight = self.table.weight
            self.body = nn.Linear(40, 40)
            self.again = self.body
            self.free = nn.Linear(40, 40)

        def forward(self, tokens):
            return self.head(self.free(self.again(self.body(self.table(tokens)))))

    model = Shared()
    optimizer = sgd(model)
    pruner = rt.RMTPruner(model, optimizer, every=1, bulk_keep=0.2)
    report = pruner.step()
    assert report.row("body")["reason"] == "tied to again.weight"
    assert report.row("table")["reason"] == "tied to head.weight"
    assert type(model.free) is rt.SplitLinear
    assert model.head.weight is model.table.weight
    one_step(model, optimizer, torch.arange(5))
    model = Shared()
    optimizer = sgd(model)
    with pytest.raises(InvalidValueError, match="'body', which stays as it is: tied to again"):
        pruner_of(model, optimizer, ranks={"body": 3})


def test_ranks_of_what_cannot_be_split():
    model = nn.Sequential(nn.MultiheadAttention(32, 2), nn.Linear(32, 32))
    optimizer = sgd(model)
    for name in ("0[q]", "0.out_proj"):
        with pytest.raises(InvalidValueError, match="stays as it is: MultiheadAttention reads"):
            pruner_of(model, optimizer, ranks={name: 3})
        report = pruner_of(model, optimizer, ranks={name: 3}, mode="truncate").step()
        assert report.row(name)["action"] == "truncate"


def test_convolutions_train_on_after_the_split():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 36, 10),
    )  # fmt: skip
    optimizer = sgd(model)
    x = torch.randn(8, 3, 8, 8)
    one_step(model, optimizer, x)
    pruner = rt.RMTPruner(model, optimizer, every=1, fit_cutoff=None, bulk_keep=0.3)
    report = pruner.step()
    assert {row["name"] for row in report.rows if row["action"] == "split"} == {
        "0", "3[0]", "3[1]"
    }  # fmt: skip
    before = one_step(model, optimizer, x)
    for _ in range(5):
        after = one_step(model, optimizer, x)
    assert after < before


def test_nothing_to_split_is_a_report_with_reasons():
    model = nn.Sequential(nn.Linear(8, 12), nn.LSTM(20, 24))
    optimizer = sgd(model)
    for _ in range(2):
        report = rt.RMTPruner(model, optimizer, every=1).step()
        assert {row["action"] for row in report.rows} == {"keep"}
        assert all(row["reason"] for row in report.rows)


def test_the_report_is_kept_without_spectra(model):
    pruner = rt.RMTPruner(model, sgd(model), every=1)
    report = pruner.step()
    assert report.matrices
    assert pruner.history[0].matrices == {}
    assert pruner.history[0].rows == report.rows


# ------------------------------------------------------------------------------- the model


def test_flags_hooks_and_bias_stay(model):
    model.eval()
    model.layers[1].train()
    seen = []
    model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    bias = model.layers[0].bias
    pruner_of(model, sgd(model), ranks={"layers.0": 5, "layers.1": 5}).step()
    assert [layer.training for layer in model.layers] == [False, True, False]
    assert [layer.inner.training for layer in model.layers[:2]] == [False, True]
    model(torch.ones(1, 40))
    assert seen == [1]
    assert model.layers[0].bias is bias
    assert all(p.requires_grad for p in model.parameters())


def test_a_step_within_a_cycle_touches_nothing(model):
    before = copy.deepcopy(model.state_dict())
    pruner = pruner_of(model, sgd(model), every=3, ranks={"layers.0": 5})
    assert pruner.step(0.5) is None
    assert pruner.step(torch.tensor(0.5)) is None
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(before) == list(model.state_dict())


def test_full_rank_changes_no_output(model):
    x = torch.randn(4, 40)
    before = model(x)
    pruner_of(model, sgd(model), ranks={"layers.0": 40, "layers.1": 50}).step()
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_after_a_split(model):
    pruner_of(model, sgd(model), ranks={"layers.0": 5}).step()
    x = torch.ones(2, 40)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.layers[0].inner.weight is not model.layers[0].inner.weight


def test_a_model_that_became_double(model):
    optimizer = sgd(model)
    model.double()
    pruner = pruner_of(model, optimizer, ranks={"layers.0": 5})
    one_step(model, optimizer, torch.ones(2, 40, dtype=torch.float64))
    pruner.step()
    assert model.layers[0].inner.weight.dtype == torch.float64
    one_step(model, optimizer, torch.ones(2, 40, dtype=torch.float64))


def test_two_pruners_share_an_optimizer(model):
    optimizer = sgd(model)
    one_step(model, optimizer, torch.ones(2, 40))
    first = pruner_of(model, optimizer, include=r"layers\.0", ranks={"layers.0": 5})
    second = pruner_of(model, optimizer, include=r"layers\.1", every=2, ranks={"layers.1": 6})
    for _ in range(2):
        first.step()
        second.step()
    assert (model.layers[0].rank, model.layers[1].rank) == (5, 6)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert held == [id(p) for p in model.parameters()]
    one_step(model, optimizer, torch.ones(2, 40))


# ------------------------------------------------------------------------------- nan


@pytest.mark.parametrize(
    "loss", [float("nan"), float("inf"), torch.tensor(float("nan")), np.float32("nan")]
)
def test_a_loss_that_is_nan_splits_nothing(model, loss):
    optimizer = sgd(model)
    pruner = pruner_of(model, optimizer, ranks={"layers.0": 5})
    with pytest.warns(RmtspecWarning, match="No layer is split after epoch 1: the loss is") as seen:
        assert pruner.step(loss) is None
    assert seen[0].filename == __file__
    assert kinds(model)["layers.0"] == "Linear"
    assert (pruner.epoch, pruner.next_epoch, pruner.history) == (1, 2, [])
    one_step(model, optimizer, torch.ones(2, 40))
    assert pruner.step(torch.tensor(0.3, requires_grad=True)) is not None
    assert model.layers[0].rank == 5


def test_nan_within_a_cycle_is_not_yet_of_interest(model):
    pruner = pruner_of(model, sgd(model), every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pruner.step(float("nan")) is None


def test_nan_in_the_weights_splits_nothing(model):
    pruner = pruner_of(model, sgd(model), ranks={"layers.0": 5})
    value = model.layers[2].bias[3].item()
    for trouble in (float("nan"), float("inf")):
        with torch.no_grad():
            model.layers[2].bias[3] = trouble
        with pytest.warns(RmtspecWarning, match=r"layers\.2\.bias has nan or infinite.*continues"):
            assert pruner.step(0.5) is None
        assert kinds(model)["layers.0"] == "Linear"
    with torch.no_grad():
        model.layers[2].bias[3] = value
    assert pruner.step(0.5).row("layers.0")["action"] == "split"


def test_frozen_weights_of_any_dtype_are_no_trouble(model):
    model.codes = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    model.indices = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    assert pruner_of(model, sgd(model), ranks={"layers.0": 5}).step() is not None


@pytest.mark.parametrize(
    "loss", ["0.3", [0.3], torch.ones(2), {"loss": 1}, True, 1j, np.ones(1), torch.tensor(True)]
)
def test_a_loss_of_another_type(model, loss):
    pruner = pruner_of(model, sgd(model))
    with pytest.raises(InvalidTypeError, match="expected the loss of the epoch, a number"):
        pruner.step(loss)
    assert pruner.epoch == 0


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"bulk_keep": 2}, InvalidValueError, "`bulk_keep` is 2; expected a number"),
        ({"fit_cutoff": -1}, InvalidValueError, "`fit_cutoff` is -1; expected a number in"),
        ({"rule": "none"}, InvalidValueError, "`rule` is 'none'"),
        ({"rule": "energy"}, InvalidValueError, "`keep` is not given"),
        ({"keep": 0.5}, InvalidValueError, "`keep` belongs to the rules"),
        ({"mode": "cut"}, InvalidValueError, "`mode` is 'cut'; expected one of split, truncate"),
        ({"budget": 0}, InvalidValueError, "`budget` is 0"),
        ({"budget": 0.5, "bulk_keep": 0.1}, InvalidValueError, "both given"),
        ({"min_saving": 3}, InvalidValueError, "`min_saving` is 3"),
        ({"include": "nowhere"}, InvalidValueError, "no name matches include='nowhere'"),
        ({"exclude": "["}, InvalidValueError, "not a regular expression"),
        ({"exclude": "."}, InvalidValueError, "No weight matrix of this MLP is left"),
        ({"ranks": {"layer": 3}}, InvalidValueError, "`ranks` names 'layer', which is not among"),
        ({"ranks": {"layers.0": 41}}, InvalidValueError, "whole number from 1 to 40"),
        ({"ranks": [3]}, InvalidTypeError, "expected a mapping"),
        ({"device": "abacus"}, InvalidValueError, "`device` 'abacus' cannot be used"),
        ({"n_jobs": "two"}, InvalidTypeError, "`n_jobs` is 'two'"),
        ({"progress": 3}, InvalidTypeError, "`progress` is 3; expected a callable"),
        ({"alpha": 7}, InvalidValueError, "`alpha` is 7"),
        ({"alfa": 0.2}, InvalidTypeError, "`alfa` is not an option of the analysis"),
        ({"cutoff": 0.1}, InvalidTypeError, "called `gate` here"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(model, options, kind, message):
    optimizer = sgd(model)
    with pytest.raises(kind, match=message):
        rt.RMTPruner(model, optimizer, **options)
    assert issubclass(kind, RmtspecError)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_wrapped_models(model):
    optimizer = sgd(model)
    for wrapped, cure in (
        (nn.DataParallel(model), r"model\.module"),
        (torch.compile(model, backend="eager"), r"model\._orig_mod"),
        (nn.Sequential(torch.compile(model.layers[0], backend="eager")), "_orig_mod"),
    ):
        with pytest.raises(InvalidTypeError, match=f"wrapped.*{cure}"):
            rt.RMTPruner(wrapped, optimizer)
    with pytest.raises(InvalidTypeError, match=r"expected a torch\.nn\.Module"):
        rt.RMTPruner([model], optimizer)


def test_a_model_that_is_itself_a_layer():
    for layer in (nn.Linear(40, 30), nn.Conv2d(32, 48, 3, groups=2), nn.Embedding(90, 40)):
        with pytest.raises(InvalidValueError, match=r"itself a layer .* torch\.nn\.Sequential"):
            rt.RMTPruner(layer, sgd(layer))
    layer = nn.Linear(40, 30)
    rt.RMTPruner(layer, sgd(layer), every=1, mode="truncate").step()
    inside = nn.Sequential(layer)
    pruner_of(inside, sgd(inside), ranks={"0": 5}).step()
    assert type(inside[0]) is rt.SplitLinear


def test_a_model_without_matrices():
    model = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(InvalidValueError, match="No weight matrix of this Sequential is left"):
        rt.RMTPruner(model, sgd(model))


# ------------------------------------------------------------------------------ training continues


@pytest.fixture(scope="module")
def clusters():
    return Clusters()


def trained_through_splits(clusters, make, split_after=4, epochs=8, **options):
    """Return losses, accuracies by epoch and the model."""
    model = network([64, 128, 64, 10])
    optimizer = make(model.parameters())
    ranks = {"layers.0": 24, "layers.1": 24}
    pruner = pruner_of(model, optimizer, every=[split_after], ranks=ranks, **options)
    losses, accuracies = [], []
    for epoch in range(epochs):
        losses.append(clusters.epoch(model, optimizer, epoch))
        accuracies.append(clusters.accuracy(model))
        pruner.step(losses[-1])
    return losses, accuracies, model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_goes_on_where_it_was(clusters, optimizer):
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
    }[optimizer]
    matched, after, model = trained_through_splits(clusters, make)
    plain, unmatched, _ = trained_through_splits(clusters, make, match_step=False)
    assert matched[:4] == plain[:4]
    assert (model.layers[0].rank, model.layers[1].rank) == (24, 24)
    # Truncation costs little; steps that are too long cost more, in loss and accuracy.
    assert after[4] >= after[3] - 0.01
    assert after[-1] >= after[3] - 0.02
    assert matched[4] < plain[4]
    assert unmatched[4] < after[4] - (0.03 if optimizer == "sgd" else 0.0)


def test_low_precision_and_a_gradient_scaler(clusters):
    model = network([64, 128, 64, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = pruner_of(model, optimizer, every=[2], ranks={"layers.0": 24, "layers.1": 24})
    losses = []
    for epoch in range(4):
        for points, labels in clusters.batches(epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(points), labels)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
        losses.append(float(loss.detach()))
        pruner.step(losses[-1])
    assert model.layers[0].inner.weight.dtype == torch.float32
    assert losses[3] < losses[0]
    assert clusters.accuracy(model) > 0.8
