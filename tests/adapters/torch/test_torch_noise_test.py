"""noise_test: what it measures on planted nets, and that it leaves a model as it was."""

import copy

import numpy as np
import pytest
import torch
from small_training import conv1d_of_transformers
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError, OptionError
from rmtspec.terms import Why


def put(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(parameter.shape))


def planted(rows, columns, strengths=(), seed=0):
    return rmtspec.ensembles.spiked(rows, columns, strengths, rng=seed) / np.sqrt(
        max(rows, columns)
    )


class Planted(nn.Module):
    """A layer that computes with three strong components, and one that computes with its bulk."""

    def __init__(self):
        super().__init__()
        self.signal, self.bulk = nn.Linear(80, 120, bias=False), nn.Linear(60, 90, bias=False)
        put(self.signal.weight, planted(120, 80, [40, 60, 90], seed=2))
        put(self.bulk.weight, planted(90, 60, seed=1))
        draws = torch.Generator().manual_seed(0)
        right = torch.linalg.svd(self.signal.weight.detach(), full_matrices=False)[2][:3]
        self.register_buffer("x", torch.randn(200, 3, generator=draws) @ right)
        self.register_buffer("z", torch.randn(200, 60, generator=draws))

    def forward(self):
        return torch.cat([self.signal(self.x) / 30, self.bulk(self.z)], dim=1)


@torch.no_grad()
def outputs(model, *inputs):
    return model(*inputs).detach().clone().double()


def likeness(model, *inputs):
    """Return evaluate: one less the relative error of the model's outputs."""
    before = outputs(model, *inputs)

    def evaluate(model):
        return 1.0 - float((outputs(model, *inputs) - before).norm() / before.norm())

    return evaluate


def state_of(model):
    """Return all that a test must leave: values, objects, flags, gradients, random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {n: t.detach().clone() for n, t in tensors.items()},
        "objects": {n: (id(t), t.data_ptr()) for n, t in tensors.items()},
        "modes": [m.training for m in model.modules()],
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.clone())
            for n, p in model.named_parameters()
        },
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_untouched(model, before):
    after = state_of(model)
    for key, value in before["values"].items():
        assert torch.equal(value, after["values"][key]), key
        bits = [t.contiguous().view(torch.uint8) for t in (value, after["values"][key]) if t.ndim]
        assert all(torch.equal(bits[0], other) for other in bits), key
    for key in ("objects", "modes", "hooks"):
        assert before[key] == after[key], key
    for key, value in before["gradients"].items():
        now = after["gradients"][key]
        assert (value is None) == (now is None), key
        assert value is None or (value[0] == now[0] and torch.equal(value[1], now[1])), key
    assert torch.equal(before["random"], after["random"])


def test_a_bulk_that_computes_is_needed_and_one_that_does_not_is_not():
    model = Planted()
    before = state_of(model)
    report = rt.noise_test(model, likeness(model), tolerance=0.05)
    signal, bulk = report.row("signal"), report.row("bulk")
    assert (signal["n_components"], bulk["n_components"]) == (3, 0)
    assert (signal["verdict"], bulk["verdict"]) == ("does without the bulk", "needs the bulk")
    assert -0.05 < signal["low"] <= signal["change"] <= signal["high"] <= 0.0
    assert bulk["high"] < -0.3
    assert report.together["change"] < bulk["change"] + 0.01
    assert report.together["n_components"] == 3
    assert report.baseline == 1.0
    assert report.baseline_values == [1.0, 1.0]
    assert len(bulk["values"]) == 10
    assert_untouched(model, before)


def test_rows_do_not_depend_on_each_other_and_repeat():
    model = Planted()
    whole = rt.noise_test(model, likeness(model), draws=3)
    again = rt.noise_test(model, likeness(model), draws=3)
    assert whole.to_dict() == again.to_dict()
    alone = rt.noise_test(model, likeness(model), draws=3, include="bulk", together=False)
    assert alone.rows == [whole.row("bulk")]
    assert alone.together is None
    assert {"name": "signal", "reason": "not in `include`"} in alone.skipped
    only = rt.noise_test(model, likeness(model), draws=3, together="only")
    assert (only.rows, only.together) == ([], whole.together)
    other = rt.noise_test(model, likeness(model), draws=3, rng=1)
    assert other.row("bulk")["values"] != whole.row("bulk")["values"]


def test_given_components():
    model = Planted()
    evaluate = likeness(model)
    report = rt.noise_test(model, evaluate, draws=2, ranks={"signal": 0, "bulk.weight": 60})
    assert report.row("signal")["high"] < -0.3  # nothing stays
    assert {"name": "bulk", "reason": "no bulk beyond 60 components"} in report.skipped
    assert report.row("signal")["bulk_share"] == 1.0
    refused = (
        ({"signal": 81}, r"`ranks\['signal'\]` is 81; expected a whole number from 0 to 80"),
        ({"signal": -1}, "is -1"),
        ({"signals": 1}, "names 'signals', which is not among .* Did you mean 'signal'"),
        ({"x": 1}, "names 'x'"),
        ([3], "`ranks` is a list; expected a mapping"),
    )
    for ranks, message in refused:
        with pytest.raises(OptionError, match=message):
            rt.noise_test(model, evaluate, ranks=ranks)


class Parts(nn.Module):
    """Groups, a transposed layer, attention, a table tied to the head, a layer used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 64, 3, groups=2)
        self.wide = conv1d_of_transformers(48, 64)
        self.attn = nn.MultiheadAttention(48, 2)
        self.table, self.head = nn.Embedding(70, 48), nn.Linear(48, 70, bias=False)
        self.head.weight = self.table.weight
        self.again = nn.Linear(48, 48)
        self.shared = self.again
        self.experts = nn.Module()
        self.experts.weight = nn.Parameter(torch.randn(2, 48, 48) / 7)
        self.norm = nn.BatchNorm1d(48)

    def forward(self, x, tokens):
        y = self.wide(self.conv(x).mean((2, 3))) + self.table(tokens)
        y = y + self.attn(y, y, y, need_weights=False)[0]
        y = self.norm(self.shared(torch.relu(self.again(y))))
        return self.head(y @ self.experts.weight[0] + y @ self.experts.weight[1])


def inputs(count=12):
    draws = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 8, 5, 5, generator=draws),
        torch.randint(70, (count,), generator=draws),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_part_of_a_model_is_flipped_alone_and_restored(dtype):
    model = Parts().eval()
    x, tokens = inputs()
    model, x = model.to(dtype), x.to(dtype)
    before = state_of(model)
    seen = []

    def evaluate(model):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return float(outputs(model, x, tokens).abs().mean())

    ranks = {name: 3 for name, m in rt.weight_matrices(model) if m.kind and not m.reason}
    report = rt.noise_test(model, evaluate, draws=2, ranks=ranks)
    names = [row["name"] for row in report.rows]
    assert names[:3] == ["conv[0]", "conv[1]", "wide"]
    assert {"attn[q]", "attn[k]", "attn[v]", "table", "again", "experts[0]", "experts[1]"} < {
        *names
    }
    assert_untouched(model, before)
    keys = {m.name: (m.key, m) for _, m in rt.weight_matrices(model)}
    for place, name in enumerate(names):
        flipped, (key, matrix) = seen[2 + 2 * place], keys[name]
        changed = {n for n, value in flipped.items() if not torch.equal(value, before["values"][n])}
        assert changed == {key}
        W = matrix().astype(float)
        now = (flipped[key] if matrix.part is None else flipped[key][matrix.part]).flatten(1)
        now = (now.mT if matrix.transposed else now).double().numpy()
        same = now == W
        assert 0.4 < same.mean() < 0.6
        left, values, right = np.linalg.svd(W, full_matrices=False)
        turned = 2 * (left[:, :3] * values[:3]) @ right[:3] - W
        tolerance = 2 * torch.finfo(dtype).eps * np.abs(turned).max()
        np.testing.assert_allclose(now[~same], turned[~same], atol=tolerance)
        if matrix.part is not None:  # the other parts of the weight are as they were
            rest = flipped[key].clone()
            rest[matrix.part] = before["values"][key][matrix.part]
            assert torch.equal(rest, before["values"][key])
    together = seen[-1]
    changed = {n for n, value in together.items() if not torch.equal(value, before["values"][n])}
    assert changed == {key for key, m in keys.values() if m.kind and not m.reason}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("no data"), SystemExit])
@pytest.mark.parametrize("call", [1, 3, 12])
def test_errors_pass_through_and_the_model_is_restored(error, call):
    model = Planted().train()
    model.bulk.eval()
    (model() ** 2).sum().backward()
    before, calls = state_of(model), []

    def evaluate(model):
        calls.append(model)
        torch.randn(3)
        model.eval()
        (model() ** 2).sum().backward()
        if len(calls) == call:
            raise error
        return 0.5

    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as caught:
        rt.noise_test(model, evaluate, draws=4)
    assert caught.value is error or isinstance(error, type)
    assert len(calls) == call
    assert_untouched(model, before)


def test_every_call_finds_the_same_model_and_random_state():
    """In training mode, batch statistics and dropout change at each call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.BatchNorm1d(60), nn.Dropout(), nn.Linear(60, 50))
    model.train()
    x = torch.randn(30, 40)
    (model(x) ** 2).sum().backward()
    before, figures = state_of(model), []

    def evaluate(model):
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(model[1].running_mean, before["values"]["1.running_mean"])
        loss = (model(x) ** 2).mean()
        loss.backward()
        model.eval()
        figures.append(float(loss.detach()))
        return -loss

    report = rt.noise_test(model, evaluate, draws=2)
    assert figures[0] == figures[1] == -report.baseline
    assert len(figures) == 2 + 3 * 2
    assert_untouched(model, before)


def test_a_figure_that_varies_of_itself_is_measured_as_often_as_the_flips():
    model, noise = Planted(), np.random.default_rng(1)
    report = rt.noise_test(model, lambda _: 1.0 + 0.1 * noise.standard_normal(), draws=6)
    assert len(report.baseline_values) == 6
    for row in (*report.rows, report.together):
        spread = np.var(row["values"], ddof=1) + np.var(report.baseline_values, ddof=1)
        assert row["standard_error"] == pytest.approx(np.sqrt(spread / 6))
        assert row["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    "value", [torch.tensor(0.5), torch.tensor([[0.5]]), np.float32(0.5), np.array([0.5]), 1, 0.5,
              nn.Parameter(torch.tensor(0.5)), torch.tensor(3, dtype=torch.int64)],
)  # fmt: skip
def test_what_a_figure_may_be(value):
    report = rt.noise_test(Planted(), lambda _: value, draws=2, include="bulk")
    assert report.baseline == value.item() if hasattr(value, "item") else value
    assert report.row("bulk")["verdict"] == "does without the bulk"
    assert type(report.row("bulk")["values"][0]) is float


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (
            float("nan"),
            InvalidValueError,
            "returned nan for the unchanged model; expected a finite",
        ),
        (torch.tensor(float("inf")), InvalidValueError, "returned inf for the unchanged model"),
        (torch.ones(3), InvalidTypeError, r"returned a Tensor of shape \(3,\); expected one real"),
        (np.ones((2, 2)), InvalidTypeError, r"returned a ndarray of shape \(2, 2\)"),
        (None, InvalidTypeError, "returned a NoneType; expected one real number"),
        ("0.5", InvalidTypeError, "returned a str"),
        (True, InvalidTypeError, "returned a bool"),
        (torch.tensor(True), InvalidTypeError, "returned a bool"),
        (1j, InvalidTypeError, "returned a complex"),
        (torch.tensor(1j), InvalidTypeError, "returned a Tensor"),
        ({"accuracy": 0.5}, InvalidTypeError, "returned a dict"),
    ],
)
def test_what_a_figure_cannot_be(value, kind, message):
    model = Planted()
    before = state_of(model)
    with pytest.raises(kind, match=message):
        rt.noise_test(model, lambda _: value)
    assert_untouched(model, before)


def test_a_figure_that_a_flip_destroys_is_no_number():
    model, calls = Planted(), []

    def evaluate(_):
        calls.append(0)
        return 0.5 if len(calls) != 4 else float("nan")

    row = rt.noise_test(model, evaluate, draws=3).row("signal")
    assert (row["change"], row["verdict"]) == (None, "cannot tell")
    assert row["reason"] == "the figure is not finite in 1 of 3 draws"
    assert Why.of(row["reason"]) == (Why.NO_FIGURE,)


def test_what_cannot_be_tested_is_skipped_with_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 50), nn.Linear(50, 30), nn.Linear(30, 8))
    put(model[0].weight, planted(60, 10, seed=1) @ planted(10, 40, seed=2))
    with torch.no_grad():
        model[1].weight[3, 2] = float("nan")
    before = copy.deepcopy(model[1].weight.detach())
    report = rt.noise_test(model, lambda _: 0.5, draws=2)
    reasons = {entry["name"]: entry["reason"] for entry in report.skipped}
    assert reasons["0"] == "only rounding is left beyond rank 10"
    assert reasons["1"].startswith("`W` has 1 nan and 0 infinite entries, the first at [3, 2]")
    assert reasons["0.bias"] == "1 dimension: a vector has no spectrum"
    assert reasons["3"] == "smaller side 8 is below 16"
    assert [row["name"] for row in report.rows] == ["2"]
    for options in ({"include": "^3$"}, {"ranks": {"3": 2}}):
        row = rt.noise_test(model, lambda _: 0.5, draws=2, **options).row("3")
        assert Why.of(row["reason"]) == ((Why.UNRELIABLE,) if "include" in options else ())
    assert torch.equal(before.isnan(), model[1].weight.isnan())
    with pytest.raises(InvalidValueError, match=r"`ranks` gives .*\n  0: only rounding is left"):
        rt.noise_test(model, lambda _: 0.5, include="^0$")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, "`draws` is 1; expected a whole number at least 2. The interval"),
        ({"draws": 2.5}, r"`draws` is 2\.5"),
        ({"together": "all"}, "`together` is 'all'; expected True, False or 'only'"),
        ({"tolerance": -0.1}, r"`tolerance` is -0\.1"),
        ({"tolerance": float("nan")}, "`tolerance` is nan"),
        ({"tolerance": "a"}, "`tolerance` is 'a'"),
        ({"rng": -1}, "`rng` is -1"),
        ({"progress": 3}, "`progress` is 3"),
        ({"include": "("}, "is not a regular expression"),
    ],
)
def test_wrong_options_are_refused_before_any_call(options, message):
    calls = []
    with pytest.raises(OptionError, match=message):
        rt.noise_test(Planted(), calls.append, **options)
    assert calls == []


def test_wrong_models_and_evaluators():
    with pytest.raises(InvalidTypeError, match=r"`evaluate` is 0\.9; expected a function"):
        rt.noise_test(Planted(), 0.9)
    with pytest.raises(InvalidTypeError, match="`model` is a dict"):
        rt.noise_test({}, lambda _: 0.5)
    with pytest.raises(InvalidValueError, match="No weight matrix of this ReLU is left"):
        rt.noise_test(nn.ReLU(), lambda _: 0.5)
    with pytest.raises(InvalidOptionError, match=r"`ranks` names 'fc\.bias', which is not among"):
        rt.noise_test(nn.ModuleDict({"fc": nn.Linear(20, 30)}), lambda _: 0.5, ranks={"fc.bias": 1})


def test_progress():
    told = []
    rt.noise_test(Planted(), lambda _: 0.5, draws=2, progress=lambda *args: told.append(args))
    assert told == [(1, 3, "signal"), (2, 3, "bulk"), (3, 3, "all together")]


@pytest.mark.slow
def test_a_trained_net_loses_little_without_its_bulk(mnist_net, accuracy):
    """Measured with ten draws: .0021 +- .0004 of an accuracy of .9829."""
    before = state_of(mnist_net)
    report = rt.noise_test(mnist_net, lambda model: accuracy(model) / 100, draws=5)
    assert report.baseline == pytest.approx(0.9829, abs=0.0005)
    assert report.row("0")["n_components"] == pytest.approx(70, abs=7)
    assert report.row("0")["bulk_share"] > 0.3
    assert [row["name"] for row in report.rows] == ["0"]
    for row in (report.row("0"), report.together):
        assert -0.003 < row["change"] < 0.0
        assert row["verdict"] == "does without the bulk"
    strict = rt.noise_test(mnist_net, lambda m: accuracy(m) / 100, draws=5, tolerance=0.001)
    assert strict.row("0")["verdict"] in ("needs the bulk", "cannot tell")
    small = rt.noise_test(mnist_net, lambda m: accuracy(m) / 100, draws=2, ranks={"0": 0})
    assert small.row("0")["change"] < -0.8  # with its signal flipped, it guesses
    assert_untouched(mnist_net, before)
