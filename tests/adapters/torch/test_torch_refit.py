"""Refit: the factors move towards the original's outputs, and nothing else moves."""

import copy
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import (
    FileError,
    InvalidOptionError,
    InvalidTypeError,
    InvalidValueError,
    RmtspecWarning,
)


class Net(nn.Module):
    def __init__(self, end=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(48, 64), nn.LayerNorm(64)
        self.last, self.end = nn.Linear(64, 20), end

    def forward(self, x):
        y = self.last(self.norm(torch.tanh(self.first(x))))
        return y if self.end is None else self.end(y)


def batches(count=6, rows=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 48, generator=generator) for _ in range(count)]


@pytest.fixture(params=["plain", "pivoted"])
def pair(request):
    model = Net()
    smaller, _ = rt.prune(model, ranks={"first": 12, "last": 8}, gate=None, form=request.param)
    return model, smaller


def states(*models):
    return [{k: v.clone() for k, v in model.state_dict().items()} for model in models]


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_it_comes_nearer_to_the_teacher(pair):
    model, smaller = pair
    before = states(model, smaller)
    better, curve = rt.refit(smaller, model, batches(), steps=40, learning_rate=3e-3)
    assert same(model, before[0])
    assert same(smaller, before[1])
    assert curve.held_out_after < 0.8 * curve.held_out_before
    x = torch.cat(batches(seed=1))
    with torch.no_grad():
        wanted = model(x).log_softmax(-1)
        gaps = [float((wanted.exp() * (wanted - m(x).log_softmax(-1))).sum(-1).mean())
                for m in (smaller, better)]  # fmt: skip
    assert gaps[1] < 0.8 * gaps[0]
    assert len(curve.losses) == len(curve.learning_rates) == 40
    assert curve.learning_rates[0] == pytest.approx(3e-3 / 4)
    assert max(curve.learning_rates) > 2.9e-3
    assert curve.learning_rates[-1] < 1e-4
    assert curve.tokens == 40 * 80
    factors = [better.first.inner, better.first.outer, better.last.inner, better.last.outer]
    weights = [p for f in factors for n, p in f.named_parameters() if "bias" not in n]
    assert curve.trained == sum(p.numel() for p in weights)


def test_the_first_loss_is_the_divergence(pair):
    model, smaller = pair
    x = batches(1)[0]
    with torch.no_grad():
        wanted, found = (m(x).log_softmax(-1) for m in (model, smaller))
        divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    _, curve = rt.refit(smaller, model, [x], steps=1)
    assert curve.losses[0] == pytest.approx(divergence, rel=1e-4)
    assert math.isnan(curve.held_out_after)


def test_norms_and_biases_only_on_request_and_never_the_teachers(pair):
    model, smaller = pair
    before = states(model)[0]
    for inplace in (False, True):
        given = copy.copy(smaller) if not inplace else smaller
        plain, _ = rt.refit(given, model, batches(), steps=3, inplace=inplace)
        assert torch.equal(plain.norm.weight, model.norm.weight)
        assert torch.equal(plain.first.bias, model.first.bias)
        both, _ = rt.refit(given, model, batches(), steps=3, norms=True, biases=True,
                           inplace=inplace)  # fmt: skip
        assert not torch.equal(both.norm.weight, model.norm.weight)
        assert not torch.equal(both.first.bias, model.first.bias)
        assert same(model, before)
        assert (both is given) == inplace


def test_outputs_without_logits_are_matched_by_their_distance():
    model = Net(lambda y: {"embedding": y.relu(), "more": (y.sin(),)})
    smaller, _ = rt.prune(model, ranks={"first": 12}, gate=None)
    x = batches(1)[0]
    with torch.no_grad():
        a, b = model(x), smaller(x)
        lost = sum(float((p - q).square().sum()) for p, q in
                   ((a["embedding"], b["embedding"]), (a["more"][0], b["more"][0])))  # fmt: skip
        whole = float(a["embedding"].square().sum() + a["more"][0].square().sum())
    _, curve = rt.refit(smaller, model, [x], steps=2)
    assert curve.losses[0] == pytest.approx(lost / whole, rel=1e-4)


def test_hidden_positions_do_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(32, 32), nn.Linear(32, 20)

        def forward(self, x, attention_mask=None):
            return {"logits": self.head(torch.tanh(self.layer(x)))}

    model = Masked()
    smaller, _ = rt.prune(model, ranks={"layer": 8}, gate=None)
    x, mask = torch.randn(3, 10, 32), torch.ones(3, 10)
    mask[:, 6:] = 0
    other = x.clone()
    other[:, 6:] = 100.0
    curves = [
        rt.refit(smaller, model, [{"x": given, "attention_mask": mask}], steps=3)[1]
        for given in (x, other)
    ]
    assert curves[0].losses == pytest.approx(curves[1].losses, rel=1e-5)
    assert curves[0].tokens == 3 * 18


def test_it_takes_a_loss_an_optimizer_and_half_precision(pair):
    model, smaller = pair

    def loss(student, teacher, batch):
        return (student(batch) - teacher(batch).detach()).square().mean()

    made = []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, 0.1, momentum=0.9))
        return made[0]

    _, curve = rt.refit(smaller, model, batches(), steps=30, loss=loss, optimizer=optimizer)
    assert curve.held_out_after < curve.held_out_before
    better, curve = rt.refit(smaller, model, batches(), steps=30, precision="bfloat16")
    assert curve.held_out_after < curve.held_out_before
    assert {p.dtype for p in better.parameters()} == {torch.float32}


def test_stopped_and_resumed_it_ends_the_same(pair, tmp_path):
    model, smaller = pair
    whole, curve = rt.refit(smaller, model, batches(), steps=20)
    file = tmp_path / "refit.pt"

    def stop(done, of, words):
        if done == 13:
            raise KeyboardInterrupt

    options = {"steps": 20, "state": file, "save_every": 4}
    with pytest.raises(KeyboardInterrupt):
        rt.refit(smaller, model, batches(), progress=stop, **options)
    told = []
    resumed, again = rt.refit(
        smaller, model, batches(), progress=lambda *state: told.append(state[0]), **options
    )
    assert told == list(range(13, 21))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert again.losses == curve.losses
    assert again.held_out_before == curve.held_out_before
    assert again.tokens == curve.tokens
    done, _ = rt.refit(smaller, model, batches(), **options)  # nothing is left to do
    assert same(done, whole.state_dict())


def test_a_state_of_another_refit_is_refused(pair, tmp_path):
    model, smaller = pair
    file = tmp_path / "refit.pt"
    rt.refit(smaller, model, batches(), steps=3, state=file)
    with pytest.raises(InvalidValueError, match=r"another refit: its options is .*'steps': 3"):
        rt.refit(smaller, model, batches(), steps=4, state=file)
    other, _ = rt.prune(model, ranks={"first": 10, "last": 8}, gate=None)
    with pytest.raises(InvalidValueError, match="another refit: its model"):
        rt.refit(other, model, batches(), steps=3, state=file)
    file.write_bytes(b"nothing")
    with pytest.raises(FileError, match="cannot be read"):
        rt.refit(smaller, model, batches(), steps=3, state=file)


@pytest.mark.parametrize("inplace", [False, True])
def test_all_is_as_before_if_it_fails(pair, inplace):
    model, smaller = pair
    smaller.train()
    smaller.last.outer.requires_grad_(False)
    before, flags = states(model, smaller), [p.requires_grad for p in smaller.parameters()]
    random = torch.get_rng_state()
    calls = []

    def loss(student, teacher, batch):
        calls.append(batch)
        value = student(batch).square().mean()
        return value * (float("nan") if len(calls) > 8 else 1.0)

    with pytest.raises(InvalidValueError, match="The loss is nan at step 8; expected a finite"):
        rt.refit(smaller, model, batches(), steps=20, loss=loss, inplace=inplace)
    assert same(model, before[0])
    assert same(smaller, before[1])
    assert smaller.training
    assert [p.requires_grad for p in smaller.parameters()] == flags
    assert all(p.grad is None for p in (*smaller.parameters(), *model.parameters()))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_curve_can_be_drawn_and_kept(pair, tmp_path):
    model, smaller = pair
    _, curve = rt.refit(smaller, model, batches(), steps=5)
    ax = curve.plot(Figure().subplots())
    assert [line.get_label() for line in ax.lines] == ["each step", "held out"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve.losses)
    text = curve.to_json(tmp_path / "curve.json")
    assert '"held_out_after"' in text
    assert repr(curve).startswith("Refit\n  steps")


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        ({"steps": 0}, "`steps` is 0", InvalidOptionError),
        ({"learning_rate": -1.0}, "`learning_rate` is -1", InvalidOptionError),
        ({"max_norm": 0.0}, "`max_norm` is 0", InvalidOptionError),
        ({"precision": "half"}, "`precision` is 'half'", InvalidOptionError),
        ({"holdout": 1.0}, "`holdout` is 1", InvalidOptionError),
        ({"optimizer": 3}, "`optimizer` is a int", InvalidTypeError),
        ({"loss": lambda *_: 1.0}, "`loss` returned a float for batch", InvalidTypeError),
        ({"batches": []}, "`batches` is empty", InvalidValueError),
        ({"batches": [torch.ones(3, 5)]}, "`batches` batch 0 is a Tensor", InvalidValueError),
        ({"batches": print}, "`batches` is a function", InvalidTypeError),
        ({"teacher": 3}, "`teacher` is a int", InvalidTypeError),
        (
            {"teacher": nn.Linear(48, 7)},
            r"the teacher .*expected the same shapes",
            InvalidValueError,
        ),
    ],
)
def test_wrong_options(pair, options, message, kind):
    model, smaller = pair
    given = {"teacher": model, "batches": batches(), "steps": 3, **options}
    with pytest.raises(kind, match=message):
        rt.refit(smaller, **given)


def test_a_model_that_is_not_split():
    with pytest.raises(InvalidValueError, match="This Net has no split layer"):
        rt.refit(Net(), Net(), batches())


def test_factors_that_are_stored_as_codes(pair):
    model, smaller = pair
    thin = rt.quantize_factors(smaller, "int8")
    with pytest.raises(InvalidValueError, match="stored as codes, which cannot be trained"):
        rt.refit(thin, model, batches())


def test_a_refit_that_makes_it_worse_says_so(pair):
    model, smaller = pair
    with pytest.warns(RmtspecWarning, match=r"made the model worse.*Lower `learning_rate`"):
        rt.refit(smaller, model, batches(), steps=3, learning_rate=3.0)
