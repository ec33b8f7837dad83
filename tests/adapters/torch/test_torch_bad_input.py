"""Bad input: an error of ours that says what to do, and an unchanged model."""

import re
from contextlib import contextmanager

import accelerate
import numpy as np
import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecError


class Mixed(nn.Module):
    """Two Linear layers in use, one that is not, a grouped convolution, a table and attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(40, 64, 3, groups=2)
        self.first = nn.Linear(64, 90)
        self.norm = nn.BatchNorm1d(90)
        self.second = nn.Linear(90, 40)
        self.never = nn.Linear(40, 30)
        self.table = nn.Embedding(50, 40)
        self.attn = nn.MultiheadAttention(32, 2)

    def forward(self, x, scale=None):
        x = self.conv(x).mean(2)
        x = self.second(torch.relu(self.norm(self.first(x))))
        return x if scale is None else x * scale


@pytest.fixture
def model():
    model = Mixed()
    model.norm.eval()  # which a restored flag must not lose
    return model


def batch(count=8, seed=1):
    return torch.randn(count, 40, 5, generator=torch.Generator().manual_seed(seed))


IN_USE = r"^(conv|first|second)\b"


@contextmanager
def untouched(model):
    """The model has the same modules, flags, hooks, parameters and values afterwards."""

    def look():
        modules = {n: (id(m), type(m), m.training) for n, m in model.named_modules()}
        hooks = {
            (name, key): list(value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if "hooks" in key
        }
        return modules, hooks, {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}

    before = look()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    yield
    assert look() == before
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), values[key].nan_to_num(7.0)), key
    assert not any(p.grad is not None for p in model.parameters())


@contextmanager
def refused(model, message, kind=InvalidValueError):
    """The block raises an error of ours with that message, and the model is untouched."""
    assert issubclass(kind, RmtspecError)
    with untouched(model), pytest.raises(kind, match=message) as caught:
        yield caught


def refuse(model, message, kind=InvalidValueError, **options):
    """`prune` refuses, in a copy and in place, and `plan` too, where it can, in the same words."""
    for inplace in (False, True):
        with refused(model, message, kind) as caught:
            rt.prune(model, inplace=inplace, **options)
    if "calibration" not in options or "budget" in options:
        with refused(model, message, kind):
            rt.plan(model, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------- no matrices


def test_no_matrices_at_all():
    for empty in (nn.Sequential(nn.ReLU()), nn.Sequential(), nn.ReLU()):
        words = "No weight matrix of this (Sequential|ReLU) is left to analyse: it has no param"
        refuse(empty, words)
        with refused(empty, words):
            rt.analyze(empty)


def test_only_what_is_no_matrix():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Conv2d(8, 8, 3, groups=8, bias=False))
    words = refuse(model, "No weight matrix of this Sequential is left")
    assert "2 (0.weight, 0.bias): 1 dimension: a vector has no spectrum" in words
    assert "1 (1): depthwise" in words


def test_everything_filtered_out(model):
    words = refuse(model, "no name matches include='fisrt'", include="fisrt")
    assert "not in `include`" in words
    assert "Names are those of model.named_modules()" in words
    words = refuse(model, r"no name matches include='nowhere', exclude='\^x'",
                   include=["nowhere"], exclude=["^x"])  # fmt: skip
    assert "in `exclude`" in refuse(model, "is left to analyse", exclude=".")
    assert "matches" not in refuse(model, "is left to analyse", include="first", exclude="first")


def test_a_pattern_that_meets_nothing_is_reported_where_others_do(model):
    _, report = rt.prune(model, include=["first", "sceond"])
    assert {"name": "include='sceond'", "reason": "this pattern meets no matrix"} in report.skipped
    assert [row["name"] for row in report.rows] == ["first"]


# ---------------------------------------------------------------------------- nan


def test_a_layer_with_nan_is_skipped_and_the_rest_is_done(model):
    with torch.no_grad():
        model.first.weight[3, 4] = float("nan")
    with untouched(model):
        smaller, report = rt.prune(model, ranks={"second": 5})
    skipped = {entry["name"]: entry["reason"] for entry in report.skipped}
    assert "1 nan and 0 infinite entries, the first at [3, 4]" in skipped["first"]
    assert type(smaller.first) is nn.Linear
    assert type(smaller.second) is rt.SplitLinear
    refuse(model, "`ranks` names 'first', which was skipped: `W` has 1 nan", ranks={"first": 5})


def test_nan_everywhere(model):
    with torch.no_grad():
        model.first.weight.fill_(float("inf"))
    words = refuse(model, "No weight matrix of this Mixed could be analysed", include="first")
    assert "1 (first): `W` has 0 nan and 5760 infinite" in words
    with refused(model, "could be analysed"):
        rt.analyze(model, include="first")


def test_one_group_with_nan_keeps_the_convolution_whole(model):
    with torch.no_grad():
        model.conv.weight[40, 0, 0] = float("nan")
    with untouched(model):
        smaller, report = rt.prune(model, include="conv")
    assert type(smaller.conv) is nn.Conv1d
    assert [row["name"] for row in report.rows] == ["conv[0]"]
    assert report.row("conv[0]")["action"] == "keep"
    assert report.row("conv[0]")["reason"] == "conv[1] of the same layer was skipped"
    refuse(model, r"`ranks` names 'conv\[0\]', which stays as it is: conv\[1\] of the same",
           ranks={"conv[0]": 3})  # fmt: skip
    refuse(model, "`ranks` names 'conv', which was skipped", ranks={"conv": 3})


# ---------------------------------------------------------------------------- part of a weight


def test_one_group_alone_is_not_split(model):
    with untouched(model):
        smaller, report = rt.prune(model, include=r"conv\[0\]")
    assert type(smaller.conv) is nn.Conv1d
    assert [(row["name"], row["action"]) for row in report.rows] == [("conv[0]", "keep")]
    assert report.row("conv[0]")["reason"] == "conv[1] of the same layer is not in `include`"
    _, report = rt.prune(model, exclude=r"conv\[1\]")
    assert report.row("conv[0]")["reason"] == "conv[1] of the same layer is in `exclude`"
    # its values alone can be truncated, and a bias left out is not part of the weight
    smaller, report = rt.prune(model, include=r"conv\[0\]", mode="truncate", ranks={"conv[0]": 2})
    assert np.linalg.matrix_rank(smaller.conv.weight[:32].detach().flatten(1).numpy()) == 2
    assert torch.equal(smaller.conv.weight[32:], model.conv.weight[32:])
    smaller, _ = rt.prune(model, exclude="bias", ranks={"first": 5})
    assert type(smaller.first) is rt.SplitLinear


@pytest.mark.parametrize("delete", [True, False])
def test_a_plan_that_splits_one_group_alone(model, delete):
    plan = rt.plan(model, ranks={"conv": 3})
    if delete:
        plan.rows.remove(plan.row("conv[1]"))
    else:
        plan.row("conv[1]")["action"] = "keep"
    for inplace in (False, True):
        with refused(model, r"splits 'conv\[0\]' but not 'conv\[1\]'.*split together"):
            rt.apply_plan(model, plan, inplace=inplace)


# ---------------------------------------------------------------------------- wrapped models


def test_wrapped_models(model):
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    plan = rt.plan(model)
    for wrapped, words in ((compiled, r"Pass model\._orig_mod"), (parallel, r"model\.module")):
        for call in (rt.analyze, rt.plan, rt.prune, rt.merge, lambda m: rt.apply_plan(m, plan)):
            with refused(model, words, InvalidTypeError):
                call(wrapped)


def test_distributed_data_parallel_is_named(model, tmp_path):
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(InvalidTypeError, match=r"in DistributedDataParallel.*model\.module"):
            rt.prune(wrapped)
    finally:
        distributed.destroy_process_group()


# ---------------------------------------------------------------------------- calibration


def cut(model, message, calibration, kind=InvalidValueError, include=IN_USE, **options):
    """`calibration` is refused, both with ranks chosen by a rule and with a budget."""
    options = {"gate": None, **options}  # every layer is cut, whatever its spectrum
    refuse(model, message, kind, include=include, calibration=calibration, **options)
    if not callable(calibration):  # an iterator that is used up is another matter
        refuse(model, message, kind, include=include, calibration=calibration, budget=0.5)


def test_calibration_that_is_empty(model):
    cut(model, "`calibration` is empty; expected at least one batch.*pass a list", [])
    spent = iter([batch()])
    next(spent)
    cut(model, "`calibration` is empty", spent)
    plan = rt.plan(model, include=IN_USE)
    with refused(model, "`calibration` is empty"):
        rt.apply_plan(model, plan, calibration=[])


def test_calibration_that_never_reaches_a_layer(model):
    words = "never reaches 1 of 4 layers: 'never'.*leave these layers out with `exclude`"
    refuse(model, words, calibration=[batch()], exclude="attn|table", gate=None)
    cut(model, "never reaches 3 of 3 layers: 'conv', 'first', 'second'", lambda model: None)


def test_calibration_reaches_no_layer_without_rows(model):
    cut(model, "never reaches 3 of 3 layers", [batch(0)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_that_yields_nan(model, value):
    bad = batch()
    bad[3] = value
    cut(model, "yields nan or inf at the inputs of 'conv'.*Check the batches", [batch(), bad])


def test_calibration_of_nothing_but_zeros(model):
    with torch.no_grad():
        model.first.bias.fill_(-1e9)  # a dead layer: the inputs of the next one are 0
    cut(model, "only zeros at the inputs of 'second'", [batch()])


def test_calibration_of_pairs_with_labels(model):
    pairs = [(batch(), torch.zeros(8), "path")]
    words = r"batch 0 is a tuple of 3, and the model cannot be called.*\(inputs for inputs, _ in"
    cut(model, words, pairs, InvalidTypeError)
    cut(model, r"batch 1 is a list of 3", [batch(), list(pairs[0])], InvalidTypeError)


@pytest.mark.parametrize(
    ("wrong", "words", "kind"),
    [
        (batch()[:, :7], r"batch 1 is a Tensor of shape \(8, 7, 5\)", InvalidValueError),
        (np.zeros((8, 40, 5)), "batch 1 is a ndarray", RmtspecError),
        (None, "batch 1 is a NoneType", RmtspecError),
        ({"y": batch()}, "batch 1 is a dict of 1", InvalidTypeError),
        ([], "batch 1 is a list of 0", InvalidTypeError),
    ],
    ids=["shape", "numpy", "None", "keyword", "no argument"],
)
def test_calibration_that_the_model_cannot_take(model, wrong, words, kind):
    for inplace in (False, True):
        with untouched(model), pytest.raises(kind, match=words):
            rt.prune(model, include=IN_USE, calibration=[batch(), wrong], inplace=inplace)


def test_one_batch_in_place_of_a_list(model):
    words = "`calibration` is a single (Tensor|dict); .*Pass a list that contains it"
    for single in (batch(), {"x": batch()}):
        cut(model, words, single, InvalidTypeError)


@pytest.mark.parametrize("calibration", [3, "images", b"images", 2.5])
def test_calibration_of_another_type(model, calibration):
    words = "`calibration` is a (int|str|bytes|float); expected an iterable of model inputs"
    cut(model, words, calibration, InvalidTypeError)


def test_an_error_in_the_users_own_function_comes_through(model):
    def broken(model):
        model(batch())
        raise KeyError("theirs")

    with untouched(model), pytest.raises(KeyError, match="theirs"):
        rt.prune(model, include=IN_USE, calibration=broken, inplace=True)


def test_an_error_in_the_users_iterator_comes_through(model):
    def batches():
        yield batch()
        raise OSError("their disk")

    with untouched(model), pytest.raises(OSError, match="their disk"):
        rt.prune(model, include=IN_USE, calibration=batches(), inplace=True)


def test_good_calibration_leaves_flags_and_hooks_too(model):
    with untouched(model):
        rt.prune(model, include=IN_USE, calibration=[batch(), (batch(),), {"x": batch()},
                 [batch(), torch.ones(1)]])  # fmt: skip


def test_tuples_within_a_batch_stay_tuples():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.LSTM(20, 20)
            self.fc = nn.Linear(20, 30)

        def forward(self, x, state):
            assert isinstance(state, tuple)
            return self.fc(self.rnn(x, state)[0])

    state = (torch.zeros(1, 2, 20), torch.zeros(1, 2, 20))
    smaller, _ = rt.prune(Net(), ranks={"fc": 3}, calibration=[(torch.ones(4, 2, 20), state)])
    assert type(smaller.fc) is rt.SplitLinear


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("other", [{"rule": "bema"}, {"bulk_keep": 0.2}, {"keep": 0.2}])
def test_budget_together_with_a_rule(model, other):
    (name,) = other
    refuse(model, f"`budget` and `{name}` are both given", budget=0.5, **other)


def test_budget_too_small(model):
    refuse(model, r"`budget` is 0\.001, 5 of .* rank 1 everywhere needs \d+.*Raise it",
           budget=0.001, include="^first$")  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "kind", "words"),
    [
        (0, InvalidValueError, "`budget` is 0; expected a share above 0"),
        (0.0, InvalidValueError, "`budget` is 0"),
        (1.5, InvalidValueError, r"`budget` is 1\.5; expected a number in \[0, 1\]"),
        (-0.1, InvalidValueError, r"`budget` is -0\.1"),
        (float("nan"), InvalidValueError, "`budget` is nan"),
        ("half", InvalidTypeError, "`budget` is 'half'"),
        (True, InvalidTypeError, "`budget` is True"),
    ],
)
def test_budget_outside(model, budget, kind, words):
    refuse(model, words, kind, budget=budget)


def test_budget_when_truncating(model):
    refuse(model, "and mode='truncate' saves none", budget=0.5, mode="truncate")


def test_a_budget_of_everything_keeps_everything(model):
    _, report = rt.prune(model, budget=1.0, include=IN_USE)
    assert {row["action"] for row in report.rows} == {"keep"}


@pytest.mark.parametrize(
    ("ranks", "kind", "words"),
    [
        ({"frist": 3}, InvalidValueError, "`ranks` names 'frist', which is not among.*'first'"),
        ({"first": 0}, InvalidValueError, r"`ranks\['first'\]` is 0; .* from 1 to 64"),
        ({"first": 65}, InvalidValueError, r"`ranks\['first'\]` is 65; .* from 1 to 64"),
        ({"first": -1}, InvalidValueError, r"is -1"),
        ({"first": 2.5}, InvalidTypeError, r"is 2\.5 \(float\)"),
        ({"first": True}, InvalidTypeError, "is True"),
        ({"first": "3"}, InvalidTypeError, "is '3'"),
        ({"conv": 33}, InvalidValueError, r"`ranks\['conv'\]` is 33; .* from 1 to 32"),
        ({3: 3}, InvalidValueError, "names 3, which is not among"),
        ([("first", 3)], InvalidTypeError, r"`ranks` is a list; expected a mapping"),
        (5, InvalidTypeError, "`ranks` is a int"),
        ({"attn": 3}, InvalidValueError, "stays as it is: MultiheadAttention reads"),
        ({"attn[q]": 3}, InvalidValueError, r"'attn\[q\]', which stays as it is: Multihead"),
        ({"attn.out_proj": 3}, InvalidValueError, "stays as it is: MultiheadAttention reads"),
    ],
)
def test_ranks_that_cannot_be(model, ranks, kind, words):
    refuse(model, words, kind, ranks=ranks)


def test_a_rank_for_a_tied_weight():
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(50, 40), "head": nn.Linear(40, 50, bias=False)})
    model["head"].weight = model["table"].weight
    refuse(model, "`ranks` names 'table', which stays as it is: tied to head.weight",
           ranks={"table": 3})  # fmt: skip
    refuse(model, "`ranks` names 'head', which was skipped: tied to table.weight",
           ranks={"head": 3})  # fmt: skip
    refuse(model, "which stays as it is: tied", ranks={"table": 3}, mode="truncate")
    _, report = rt.prune(model, include="table")
    assert report.row("table")["reason"] == "tied to head.weight"


def test_a_rank_for_what_is_left_out(model):
    refuse(model, "`ranks` names 'second', which is not among the 1 chosen",
           ranks={"second": 3}, include="^first$")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"bulkkeep": 0.3}, InvalidTypeError, "`bulkkeep` is not an option of the analysis"),
        ({"cutoff": 0.1}, InvalidTypeError, "`cutoff` is called `gate` here"),
        ({"rule": "magic"}, InvalidValueError, "`rule` is 'magic'"),
        ({"mode": "cut"}, InvalidValueError, "`mode` is 'cut'; expected one of split, truncate"),
        ({"mode": "cut", "budget": 0.5}, InvalidValueError, "`mode` is 'cut'"),
        ({"rule": "energy"}, InvalidValueError, "`rule` is 'energy' and `keep` is not given"),
        ({"keep": 0.9}, InvalidValueError, "`keep` belongs to the rules 'energy' and 'fraction'"),
        ({"rule": "energy", "keep": 90}, InvalidValueError, "`keep` is 90; expected a number"),
        ({"rule": "fraction", "keep": 0.0}, InvalidValueError, "`keep` is 0; expected a share"),
        (
            {"rule": "fraction", "keep": 0.5, "bulk_keep": 0.0},
            InvalidValueError,
            "`bulk_keep` belongs to the rules 'bema' and 'noise'",
        ),
        ({"bulk_keep": 1.5}, InvalidValueError, r"`bulk_keep` is 1\.5"),
        ({"bulk_keep": "all"}, InvalidTypeError, "`bulk_keep` is 'all'"),
        ({"min_saving": 1.5}, InvalidValueError, r"`min_saving` is 1\.5"),
        ({"min_saving": "a bit"}, InvalidTypeError, "`min_saving` is 'a bit'"),
        ({"fit_cutoff": -1.0}, InvalidValueError, r"`fit_cutoff` is -1\.0"),
        ({"gate": -1.0}, InvalidValueError, r"`gate` is -1\.0; expected 'noise', None, or a num"),
        ({"gate": "mp"}, InvalidValueError, "`gate` is 'mp'; expected 'noise', None, or a num"),
        ({"gate": 0.1, "fit_cutoff": 0.1}, InvalidValueError, r"`gate` is 0\.1 and `fit_cutoff`"),
        ({"gate": None, "fit_cutoff": None}, InvalidValueError, "two spellings of the same"),
        ({"alpha": 0.7}, InvalidValueError, r"`alpha` is 0\.7"),
        ({"n_jobs": 0}, InvalidValueError, "`n_jobs` is 0"),
        ({"progress": "bar"}, InvalidTypeError, "`progress` is 'bar'"),
        ({"device": "cuda:99"}, InvalidValueError, "`device` 'cuda:99' cannot be used"),
        ({"device": "gpu"}, InvalidValueError, "`device` 'gpu' cannot be used"),
        ({"include": "("}, InvalidValueError, r"`include` '\(' is not a regular expression"),
        ({"exclude": ["first", "["]}, InvalidValueError, r"`exclude` '\[' is not a regular"),
        ({"include": nn.Linear}, InvalidTypeError, r"lambda name, module: isinstance\(module, Lin"),
        ({"include": 3}, InvalidTypeError, r"`include` is 3 \(int\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options(model, options, kind, words):
    refuse(model, words, kind, **options)


def test_unusable_device_and_options_of_analyze(model):
    with refused(model, "'gpu' cannot be used in float64"):
        rt.analyze(model, device="gpu")
    with refused(model, "`bulkkeep` is not an option", InvalidTypeError):
        rt.analyze(model, bulkkeep=1)
    with refused(model, "not a regular expression"):
        rt.analyze(model, include="*")


def test_the_gate_on_the_fit(model):
    _, report = rt.prune(model, include=IN_USE, fit_cutoff=1e-9, bulk_keep=0.2)
    for row in report.rows:
        assert row["action"] == "keep"
        assert re.fullmatch(r"fit rejected: statistic 0\.\d+ above 1e-09", row["reason"])
    statistics = sorted(row["fit_statistic"] for row in report.rows)
    _, some = rt.prune(model, include=IN_USE, fit_cutoff=statistics[1], bulk_keep=0.2)
    for row in some.rows:
        rejected = row["fit_statistic"] > statistics[1]
        assert row["reason"].startswith("fit rejected") is rejected
    # a forced rank goes past the gate
    smaller, _ = rt.prune(model, fit_cutoff=1e-9, ranks={"first": 3})
    assert type(smaller.first) is rt.SplitLinear


def test_min_saving(model):
    ranks = {"bulk_keep": 0.2, "include": "^first$"}
    _, report = rt.prune(model, **ranks)
    row = report.row("first")
    assert row["action"] == "split"
    saving = 1 - row["parameters_after"] / row["parameters_before"]
    assert rt.prune(model, min_saving=saving - 1e-9, **ranks)[1].row("first")["action"] == "split"
    row = rt.prune(model, min_saving=saving + 1e-3, **ranks)[1].row("first")
    assert row["action"] == "keep"
    assert row["reason"].startswith(f"saves {saving:.1%}, less than min_saving")


def test_include_by_predicate_and_by_several(model):
    def seen(include, exclude=None):
        return [row["name"] for row in rt.analyze(model, include=include, exclude=exclude).rows]

    assert seen(lambda name, module: isinstance(module, nn.Linear)) == [
        "first", "second", "never", "attn.out_proj",
    ]  # fmt: skip
    assert seen(lambda name, module: name == "first.weight") == ["first"]
    assert seen(["^first$", re.compile("NEVER", re.I)]) == ["first", "never"]
    assert seen(["first", lambda name, module: isinstance(module, nn.Embedding)]) == [
        "first", "table",
    ]  # fmt: skip
    assert seen("conv", exclude=r"\[1\]") == ["conv[0]"]
    assert seen(None, exclude=lambda name, module: module is not model.table) == ["table"]
    # a predicate names what it accepts: an embedding is then cut
    smaller, _ = rt.prune(
        model, include=lambda name, module: module is model.table, bulk_keep=0.2
    )  # fmt: skip
    assert type(smaller.table) is rt.SplitEmbedding


def test_an_error_in_the_users_predicate_comes_through(model):
    with untouched(model), pytest.raises(ZeroDivisionError):
        rt.prune(model, include=lambda name, module: 1 / 0, inplace=True)


# ---------------------------------------------------------------------------- copies


def test_in_place_on_a_model_that_is_one_layer():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with refused(layer, "`model` is itself the layer to replace.*inplace=False"):
        rt.prune(layer, ranks={"(model)": 3}, inplace=True)
    smaller, _ = rt.prune(layer, ranks={"(model)": 3})
    assert type(smaller) is rt.SplitLinear
    with refused(smaller, "`model` is itself the layer to replace"):
        rt.merge(smaller, inplace=True)
    # nothing to replace, or nothing that replaces: no obstacle
    assert rt.prune(layer, include="(model)", min_saving=1.0, inplace=True)[0] is layer
    truncated, _ = rt.prune(layer, ranks={"(model)": 3}, inplace=True, mode="truncate")
    assert truncated is layer
    assert np.linalg.matrix_rank(layer.weight.detach().numpy()) == 3


def test_a_model_that_cannot_be_copied(model):
    model.cache = torch.ones(3, requires_grad=True) * 2  # not a leaf
    with refused(model, r"`model` cannot be copied: .*Pass inplace=True"):
        rt.prune(model, ranks={"first": 3})
    same, _ = rt.prune(model, ranks={"first": 3}, inplace=True)
    assert same is model
    assert type(model.first) is rt.SplitLinear
    with refused(model, r"`model` cannot be copied: .*Pass inplace=True"):
        rt.merge(model)
    assert type(rt.merge(model, inplace=True).first) is nn.Linear


def test_offloaded_layers_are_told_apart(tmp_path):
    model = nn.Sequential(nn.Linear(60, 80), nn.Linear(80, 50))
    accelerate.disk_offload(model, tmp_path)
    with pytest.raises(InvalidValueError, match=r"offloaded by accelerate: load the model whole"):
        rt.analyze(model)


def test_a_dot_in_the_name_of_a_child():
    model = nn.Sequential(nn.Linear(60, 80))
    model._modules["a.b"] = nn.Linear(80, 50)
    with pytest.raises(InvalidValueError, match=r"a child named 'a\.b'; expected names without"):
        rt.prune(model)
