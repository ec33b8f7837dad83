"""Pruning: the plan, what it does to real networks, data-aware splits, budgets, undo."""

import copy

import naive
import numpy as np
import pytest
import torch
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidValueError
from rmtspec.report import Report


def planted(rows, columns, strengths, seed, bias=True):
    """Return a Linear whose weight is noise with a signal of known rank."""
    layer = nn.Linear(columns, rows, bias=bias)
    W = rmtspec.ensembles.spiked(rows, columns, strengths, rng=seed) / np.sqrt(max(rows, columns))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
    return layer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        planted(200, 120, [4, 8, 20], 0),
        nn.ReLU(),
        planted(100, 200, [], 1),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def outputs(model, seed=0, columns=120):
    x = torch.randn(16, columns, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(x.to(next(model.parameters()).dtype))


# -- the plan


def test_plan_says_what_is_done_to_each_layer_and_why(model):
    planned = rt.plan(model, bulk_keep=0, beta=0.01)
    first, second, third = planned.rows
    assert (first["action"], first["rank"], first["n_spikes"]) == ("split", 3, 3)
    assert first["reason"] == ""
    assert (first["parameters_before"], first["parameters_after"]) == (24_000, 3 * 320)
    assert (first["bytes_before"], first["bytes_after"]) == (96_000, 4 * 3 * 320)
    assert (first["multiply_adds_before"], first["multiply_adds_after"]) == (24_000, 960)
    W = model[0].weight.detach().double().numpy()
    s = np.linalg.svd(W, compute_uv=False)
    assert first["weight_error"] == pytest.approx(np.sqrt((s[3:] ** 2).sum() / (s**2).sum()), 1e-6)
    assert (second["action"], second["rank"], second["reason"]) == ("keep", 0, "no signal found")
    assert third["action"] == "keep"
    assert third["reason"] == "smaller side 10 is below 16"
    assert planned.totals["parameters_after"] == 45_310 - 24_000 + 960
    assert "split" in repr(planned)
    assert "no signal found" in repr(planned)


def test_prune_by_energy_or_by_a_fraction(model):
    smaller, report = rt.prune(model, rule="energy", keep=0.5)
    for name in ("0", "2"):
        W = model.get_submodule(name).weight.detach().double().numpy()
        rank = naive.energy_rank(np.linalg.svd(W, compute_uv=False) ** 2, 0.5)
        row = report.row(name)
        assert (row["action"], row["rank"], row["rule"]) == ("split", rank, "energy")
        assert (row["keep"], row["weight_error"] <= 0.5**0.5) == (0.5, True)
        assert smaller.get_submodule(name).rank == rank
    settings = report.settings
    assert (settings["rule"], settings["keep"], settings["bulk_keep"]) == ("energy", 0.5, 0.0)
    planned = rt.plan(model, rule="fraction", keep=0.1)
    assert [row["rank"] for row in planned.rows] == [12, 10, 1]
    assert [row["action"] for row in planned.rows] == ["split", "split", "keep"]
    assert [row["rank"] for row in rt.analyze(model, rule="fraction", keep=0.1).rows] == [12, 10, 1]


def test_zeros_stay_whatever_the_rule():
    zeros = nn.Linear(40, 30)
    nn.init.zeros_(zeros.weight)
    for rule, rank in (("energy", 0), ("fraction", 15)):
        row = rt.plan(nn.Sequential(zeros), rule=rule, keep=0.5).row("0")
        assert (row["action"], row["rank"]) == ("keep", rank)
        assert row["reason"] == "all zeros: two factors of zeros would not train"


def test_plan_leaves_the_model_alone(model):
    before = copy.deepcopy(model.state_dict())
    rt.plan(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert type(model[0]) is nn.Linear


def test_plan_can_be_edited_saved_and_applied(model, tmp_path):
    planned = rt.plan(model, bulk_keep=0)
    planned.row("0")["rank"] = 7
    planned.row("2").update(action="truncate", rank=50)
    planned.to_json(tmp_path / "plan.json")
    read = Report.from_json(tmp_path / "plan.json")
    smaller, report = rt.apply_plan(model, read)
    assert smaller[0].rank == 7
    assert isinstance(smaller[2], nn.Linear)
    assert np.linalg.matrix_rank(smaller[2].weight.detach().numpy()) == 50
    assert report.row("0")["parameters_after"] == 7 * 320
    assert report.totals["parameters_after"] == rt.count_parameters(smaller)
    planned.row("0")["action"] = "keep"
    planned.row("2")["action"] = "keep"
    same, _ = rt.apply_plan(model, planned)
    assert type(same[0]) is nn.Linear
    assert torch.equal(outputs(same), outputs(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank of 0.*is 0"),
        ({"rank": 121}, "is 121"),
        ({"action": "cut"}, "'cut'; expected one of split, narrow, tr"),
        ({"name": "1"}, "names '1', which is not a matrix of this Sequential"),
        ({"rows": 199}, "199 x 120; in this Sequential it is 200 x 120"),
    ],
)
def test_impossible_plans_are_refused(model, change, message):
    planned = rt.plan(model, bulk_keep=0)
    planned.row("0").update(change)
    with pytest.raises(InvalidValueError, match=message):
        rt.apply_plan(model, planned)
    assert type(model[0]) is nn.Linear


def test_a_report_is_no_plan(model):
    with pytest.raises(InvalidValueError, match="has no 'action'"):
        rt.apply_plan(model, rt.analyze(model))
    with pytest.raises(TypeError, match="expected a plan"):
        rt.apply_plan(model, rt.plan(model).rows)


# -- what prune does


def test_not_in_place_leaves_the_model_and_shares_nothing(model):
    before = copy.deepcopy(model.state_dict())
    smaller, _ = rt.prune(model, bulk_keep=0, beta=0.01)
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_in_place_changes_the_model_itself(model):
    bias, last = model[0].bias, model[4].weight
    smaller, _ = rt.prune(model, bulk_keep=0, beta=0.01, inplace=True)
    assert smaller is model
    assert isinstance(model[0], rt.SplitLinear)
    assert model[0].bias is bias  # an optimizer that holds it still works
    assert model[4].weight is last


def test_both_ways_give_the_same(model):
    copied, report = rt.prune(model, bulk_keep=0.1)
    changed, in_place = rt.prune(model, bulk_keep=0.1, inplace=True)
    for (name, a), b in zip(
        copied.state_dict().items(), changed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in report.rows] == [
        {k: v for k, v in r.items() if k not in drop} for r in in_place.rows
    ]


def test_the_copy_does_not_copy_what_is_replaced():
    """The copy is built around the factors: a large weight is never in memory twice."""
    torch.manual_seed(0)
    big = nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 20))
    copied = []
    original = nn.Parameter.__deepcopy__

    def watched(self, memo):
        copied.append(tuple(self.shape))
        return original(self, memo)

    nn.Parameter.__deepcopy__ = watched
    try:
        rt.prune(big, ranks={"0": 5}, exclude="1")
    finally:
        nn.Parameter.__deepcopy__ = original
    assert (400, 400) not in copied
    assert (20, 400) in copied


def test_a_model_that_is_one_layer():
    layer = planted(200, 120, [4, 8], 0)
    thin, report = rt.prune(layer, bulk_keep=0, beta=0.01)
    assert isinstance(thin, rt.SplitLinear)
    assert report.rows[0]["name"] == "(model)"
    assert type(rt.merge(thin)) is nn.Linear


def test_plain_python_references_are_replaced_in_the_copy():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = planted(100, 80, [5, 9], 0)
            self.chain = [self.fc]

        def forward(self, x):
            return self.chain[0](x)

    smaller, _ = rt.prune(Net(), bulk_keep=0)
    assert smaller.chain[0] is smaller.fc
    assert isinstance(smaller.fc, rt.SplitLinear)


def test_truncate_keeps_shapes_and_saves_nothing(model):
    same, report = rt.prune(model, mode="truncate", bulk_keep=0, beta=0.01)
    assert type(same[0]) is nn.Linear
    assert np.linalg.matrix_rank(same[0].weight.detach().numpy(), tol=1e-5) == 3
    row = report.row("0")
    assert (row["action"], row["parameters_after"]) == ("truncate", 24_000)
    split_model, _ = rt.prune(model, bulk_keep=0, beta=0.01)
    torch.testing.assert_close(outputs(same), outputs(split_model), rtol=1e-4, atol=1e-5)


def test_truncate_cuts_what_cannot_be_split():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    lstm = nn.LSTM(24, 32)
    both = nn.ModuleDict({"attn": attention, "lstm": lstm})
    _, report = rt.prune(both, bulk_keep=0.3)
    assert {row["action"] for row in report.rows} == {"keep"}
    assert "own forward" in report.row("attn[q]")["reason"]
    cut, report = rt.prune(both, bulk_keep=0.3, mode="truncate", gate=None)
    for row in report.rows:
        assert row["action"] == "truncate", row
    rank = report.row("attn[k]")["rank"]
    keys = cut["attn"].in_proj_weight[32:64].detach().numpy()
    assert np.linalg.matrix_rank(keys, tol=1e-5) == rank == 9
    assert type(cut["attn"]) is nn.MultiheadAttention
    x = torch.ones(2, 3, 32)
    assert cut["attn"](x, x, x)[0].shape == (2, 3, 32)


def test_tied_weights_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(200, 40)
            self.head = nn.Linear(40, 200, bias=False)
            self.head.weight = self.table.weight
            self.body = planted(60, 40, [5], 0)

    torch.manual_seed(0)
    smaller, report = rt.prune(Tied(), ranks={"body": 4}, include=[""])
    assert smaller.head.weight is smaller.table.weight
    assert report.row("table")["reason"] == "tied to head.weight"
    assert {"name": "head", "reason": "tied to table.weight, analysed there"} in report.skipped
    with pytest.raises(InvalidValueError, match=r"stays as it is: tied to head\.weight"):
        rt.prune(Tied(), ranks={"table": 4})


def test_embeddings_are_split_on_request_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 40, padding_idx=0), nn.Linear(40, 40))
    _, report = rt.prune(model, bulk_keep=0.1)
    assert "an embedding" in report.row("0")["reason"]
    smaller, _ = rt.prune(model, bulk_keep=0.1, include="^0$")
    assert isinstance(smaller[0], rt.SplitEmbedding)
    assert smaller[0](torch.tensor([0])).abs().max() == 0.0  # padding stays zero


def test_groups_share_one_rank():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 96, 3, groups=2, padding=1)
    smaller, report = rt.prune(nn.Sequential(conv), bulk_keep=0.3)
    ranks = {row["rank"] for row in report.rows}
    assert [row["name"] for row in report.rows] == ["0[0]", "0[1]"]
    assert len(ranks) == 1
    assert smaller[0].inner.out_channels == 2 * ranks.pop()
    planned = rt.plan(nn.Sequential(conv), bulk_keep=0.3)
    planned.row("0[1]")["rank"] = 3
    with pytest.raises(InvalidValueError, match="split at the same rank"):
        rt.apply_plan(nn.Sequential(conv), planned)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_ranks(dtype):
    model = nn.Sequential(planted(100, 80, [5, 9], 0)).to(dtype)
    smaller, report = rt.prune(model, ranks={"0": 80})
    assert {p.dtype for p in smaller.parameters()} == {dtype}
    assert report.row("0")["bytes_before"] == 8000 * dtype.itemsize
    x = torch.randn(4, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = {8: 1e-12, 4: 1e-5}.get(dtype.itemsize, 4 * torch.finfo(dtype).eps)
    with torch.no_grad():
        a, b = model(x).double(), smaller(x).double()
        merged = rt.merge(smaller)[0].weight.double()
    assert (a - b).norm() <= tolerance * a.norm()
    W = model[0].weight.detach().double()
    assert (merged - W).norm() <= tolerance * W.norm()


def test_split_of_a_split_model_and_back(model):
    once, _ = rt.prune(model, ranks={"0": 60, "2": 70})
    twice, report = rt.prune(once, ranks={"0.inner": 20, "2.outer": 30})
    assert isinstance(twice[0].inner, rt.SplitLinear)
    assert report.totals["parameters_after"] == rt.count_parameters(twice)
    back = rt.merge(twice)
    assert list(back.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(outputs(back), outputs(twice), rtol=1e-5, atol=1e-5)


def test_merge_of_a_full_rank_split_is_the_original(model):
    smaller, _ = rt.prune(model, ranks={"0": 120, "2": 100})
    back = rt.merge(smaller)
    assert type(back[0]) is type(back[2]) is nn.Linear
    for name, value in model.state_dict().items():
        assert (back.state_dict()[name] - value).norm() <= 1e-5 * value.norm(), name
    assert isinstance(smaller[0], rt.SplitLinear)
    assert rt.merge(smaller, inplace=True) is smaller
    assert type(smaller[0]) is nn.Linear


def test_default_device_elsewhere_changes_nothing(model):
    torch.set_default_device("meta")
    try:
        smaller, _ = rt.prune(model, bulk_keep=0.1)
        back = rt.merge(smaller)
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in smaller.parameters()} == {"cpu"}
    assert {p.device.type for p in back.parameters()} == {"cpu"}
    assert outputs(smaller).isfinite().all()


# -- data


def test_calibration_minimises_the_error_of_the_output(model):
    torch.manual_seed(1)
    x = torch.randn(500, 10) @ torch.randn(10, 120)  # inputs take ten directions only
    _, free = rt.prune(model, ranks={"0": 12})
    smaller, report = rt.prune(model, ranks={"0": 12}, calibration=[x])
    row = report.row("0")
    assert row["output_error"] < 1e-2  # the ridge keeps it from zero
    assert row["weight_error"] > free.row("0")["weight_error"]
    with torch.no_grad():
        whole, thin = model[0](x), smaller[0](x)
        measured = (whole - thin).norm() / (whole - model[0].bias).norm()
    assert float(measured) == pytest.approx(row["output_error"], rel=1e-3)


def test_calibration_of_convolutions_sees_the_patches():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2, bias=False)
    x = torch.randn(8, 16, 9, 9)
    model = nn.Sequential(conv)
    smaller, report = rt.prune(model, ranks={"0": 6}, calibration=[x], include="")
    errors = [row["output_error"] for row in report.rows]
    with torch.no_grad():
        whole, gap = conv(x), conv(x) - smaller(x)
    for group, error in enumerate(errors):
        part = slice(12 * group, 12 * group + 12)
        assert float(gap[:, part].norm() / whole[:, part].norm()) == pytest.approx(error, rel=1e-4)
    free, _ = rt.prune(model, ranks={"0": 6}, include="")
    assert (conv(x) - free(x)).norm() > gap.norm()


def test_calibration_takes_tensors_tuples_mappings_and_callables(model):
    x = torch.randn(64, 120, generator=torch.Generator().manual_seed(0))
    ways = [[x], [(x,)], [{"input": x}], lambda m: m(x), iter([x])]
    weights = [rt.prune(model, ranks={"0": 9}, calibration=way)[0][0].weight for way in ways]
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0], rtol=1e-4, atol=1e-5)


def test_calibration_leaves_nothing_behind(model):
    model.train()
    model[1].eval()
    rt.prune(model, ranks={"0": 9}, calibration=[torch.ones(4, 120)])
    assert [m.training for m in model] == [True, False, True, True, True]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_budget_keeps_that_share_where_it_counts_most():
    strong = planted(200, 200, list(np.linspace(20, 40, 30)), 0)
    model = nn.Sequential(strong, planted(200, 200, [], 1))
    for budget in (0.05, 0.3, 0.6, 0.9):
        smaller, report = rt.prune(model, budget=budget)
        kept = sum(row["parameters_after"] for row in report.rows)
        assert budget - 0.011 < kept / 80_000 <= budget
        assert rt.count_parameters(smaller) == kept + 400
    tight = rt.plan(model, budget=0.16)
    assert tight.row("0")["rank"] > 5 * tight.row("1")["rank"]
    assert tight.row("0")["rule"] == "budget"
    assert tight.settings.keys().isdisjoint({"rule", "bulk_keep", "keep"})
    all_of_it = rt.plan(model, budget=1.0)
    assert {row["action"] for row in all_of_it.rows} == {"keep"}


def test_budget_goes_by_the_outputs_where_inputs_are_known(model):
    torch.manual_seed(1)
    few = torch.randn(400, 4) @ torch.randn(4, 120)
    free = rt.plan(model, budget=0.1)
    aware = rt.plan(model, budget=0.1, calibration=[few])
    lost = []
    for planned in (free, aware):
        _, report = rt.apply_plan(model, planned, calibration=[few])
        lost.append(sum(row["output_error"] ** 2 for row in report.rows if row["output_error"]))
    assert lost[1] < 0.9 * lost[0]


# -- the MNIST net


def test_mnist_split_at_the_bema_rank_keeps_the_accuracy(mnist_net, accuracy, tmp_path):
    assert accuracy(mnist_net) == pytest.approx(98.29, abs=0.005)
    smaller, report = rt.prune(mnist_net, bulk_keep=0)
    row = report.row("0")
    assert row["action"] == "split"
    assert row["accepted"]
    assert 57 <= row["rank"] <= 80
    assert abs(accuracy(smaller) - 98.29) <= 0.2
    paper, report = rt.prune(
        mnist_net, bulk_keep=0, alpha=0.25, quantiles="paper", refine=False, fit_cutoff=0.1
    )
    assert report.row("0")["rank"] == 57
    assert abs(accuracy(paper) - 98.29) <= 0.2


def test_mnist_accuracy_against_rank_as_in_figure_5(mnist_net, accuracy):
    for rank, expected in [(5, 51.05), (10, 76.36), (20, 92.96), (30, 97.55), (57, 98.19)]:
        smaller, _ = rt.prune(mnist_net, ranks={"0": rank})
        assert accuracy(smaller) == pytest.approx(expected, abs=0.1), rank


def test_mnist_data_aware_is_never_worse(mnist_net, mnist, accuracy):
    batches = mnist[0].split(1000)
    least = {5: 55.0, 10: 88.0, 20: 96.5, 30: 97.5}
    for rank, bound in least.items():
        free, _ = rt.prune(mnist_net, ranks={"0": rank})
        aware, _ = rt.prune(mnist_net, ranks={"0": rank}, calibration=batches)
        assert accuracy(aware) >= max(bound, accuracy(free)), rank


# -- ResNets


def test_resnet_every_convolution_is_analysed(resnet):
    report = rt.analyze(resnet)
    convolutions = [n for n, m in resnet.named_modules() if isinstance(m, nn.Conv2d)]
    assert [row["name"] for row in report.rows if row["kind"] == "conv2d"] == convolutions
    assert all(row["variance"] is not None for row in report.rows)


def test_resnet_full_rank_split_is_the_original(resnet):
    ranks = {row["name"]: min(row["rows"], row["columns"]) for row in rt.analyze(resnet).rows}
    full, report = rt.prune(resnet, ranks=ranks)
    assert {row["action"] for row in report.rows} == {"split"}
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = resnet(x), full(x)
        back = rt.merge(full)(x)
    assert (a - b).norm() <= 1e-4 * a.norm()
    assert (a - back).norm() <= 1e-4 * a.norm()


def test_resnet_smaller_one_runs_and_saves(resnet):
    smaller, report = rt.prune(resnet, budget=0.6, gate=None)
    before, after = report.totals["parameters_before"], report.totals["parameters_after"]
    assert after == rt.count_parameters(smaller)
    assert after < 0.65 * before
    assert smaller(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# -- sizes of networks


def test_layer_dims_and_counts_of_the_paper():
    torch.manual_seed(0)
    net = rt.MLP([784, 1500, 1500, 500, 500, 10])
    assert rt.count_parameters(net) == rt.count_parameters(net, bias="every") == 4_435_010
    ranks = {"layers.0": 354, "layers.1": 677, "layers.2": 228, "layers.3": 227}
    smaller, report = rt.prune(net, ranks=ranks)
    dims = [784, 354, 1500, 677, 1500, 228, 500, 227, 500, 10]
    assert rt.layer_dims(smaller) == dims
    assert rt.count_parameters(smaller, bias="every") == rt.count_parameters(dims)
    assert rt.count_parameters(smaller) == rt.count_parameters(dims) - 354 - 677 - 228 - 227
    assert report.totals["parameters_after"] == rt.count_parameters(smaller)
    with pytest.raises(InvalidValueError, match="chain"):
        rt.layer_dims(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)))


@pytest.mark.parametrize(
    ("dims", "count"),
    [
        ([784, 3000, 3000, 500, 10], 12_863_510),
        ([784, 1500, 1500, 500, 500, 10], 4_435_010),
        ([784, 2500, 2500, 2500, 2500, 500, 10], 21_975_510),
        ([784, 3000, 3000, 3000, 10], 20_391_010),
        (
            [784, 367, 176, 89, 54, 35, 3000, 143, 293, 627, 1366, 629, 294, 139, 3000, 71, 124,
             241, 500, 10],
            3_881_124,
        ),
        ([784, 354, 167, 1500, 309, 677, 309, 1500, 228, 500, 105, 227, 107, 500, 10], 2_554_157),
        (
            [784, 354, 164, 1500, 144, 309, 677, 309, 144, 1500, 107, 228, 500, 51, 107, 227, 107,
             53, 500, 10],
            1_943_563,
        ),
        (
            [784, 362, 2500, 518, 1134, 518, 2500, 518, 1134, 518, 2500, 518, 1134, 518, 2500, 234,
             500, 10],
            13_207_896,
        ),
        ([784, 361, 3000, 1359, 3000, 1359, 3000, 10], 17_716_113),
    ],
)  # fmt: skip
def test_parameter_counts_published_in_the_paper(dims, count):
    assert rt.count_parameters(dims) == count


def test_mlp_output_relu():
    torch.manual_seed(0)
    x = torch.randn(8, 20)
    plain, rectified = rt.MLP([20, 30, 5]), rt.MLP([20, 30, 5], output_relu=True)
    rectified.load_state_dict(plain.state_dict())
    assert torch.equal(rectified(x), torch.relu(plain(x)))
    assert plain(x).min() < 0
