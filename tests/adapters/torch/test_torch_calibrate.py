"""Calibration gathers the right moments, whatever the model, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, unfold

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.passes import bytes_of
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError


def batches(count=4, rows=50, columns=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, columns)
    return [torch.randn(rows, columns, generator=generator) * scales for _ in range(count)]


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 20))


def second_moment(rows):
    rows = rows.detach().double().flatten(0, -2).numpy()
    return rows.T @ rows / len(rows)


class Attention(nn.Module):
    """A layer of a language model: q, k and v read the same tensor."""

    def __init__(self, width=32, words=50):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(words, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, words)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.mT / 32**0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        x = x + self.o(scores.softmax(-1) @ v)
        return {"logits": self.head(x)}


def sentences(count=3, size=4, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(50, (size, length), generator=generator)} for _ in range(count)
    ]


# What is gathered.


def test_moments_are_those_of_the_rows(mlp):
    data = batches()
    stats = rt.calibrate(mlp, data, holdout=0)
    x = torch.cat(data)
    np.testing.assert_allclose(stats.input_moments["0"][0], second_moment(x), rtol=1e-12)
    hidden = torch.tanh(mlp[0](x))
    # 1e-5: the hidden layer was computed in float32, batch by batch.
    np.testing.assert_allclose(stats.input_moments["2"][0], second_moment(hidden), rtol=1e-5)
    assert stats.input_moments["0"][0].dtype == np.float64
    assert stats.input_rows == {"0": 200, "2": 200}
    assert stats.held_out == {}
    assert stats.losses == 200


def test_batches_held_out_are_not_fitted(mlp):
    data = batches()
    stats = rt.calibrate(mlp, data)
    np.testing.assert_allclose(
        stats.input_moments["0"][0], second_moment(torch.cat(data[:3])), rtol=1e-12
    )
    held = second_moment(data[3])
    np.testing.assert_allclose(stats.held_out["0"][0], held, atol=1e-6 * held.max())  # float32
    assert stats.held_out_rows["0"] == 50
    assert stats.losses == 150  # no gradient of them either


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(1, 0.1, []), (2, 0.1, [1]), (9, 0.1, [8]), (20, 0.1, [9, 19]), (4, 0.5, [1, 3]), (5, 0, [])],
)
def test_which_batches_are_held_out(mlp, count, share, held):
    data = batches(count, rows=40)
    stats = rt.calibrate(mlp, data, holdout=share)
    kept = [i for i in range(count) if i not in held]
    assert stats.input_rows["0"] == 40 * len(kept)
    if held:
        both = torch.cat([data[i] for i in held])
        np.testing.assert_allclose(stats.held_out["0"][0], second_moment(both), atol=1e-4)


def test_gradients_of_a_given_loss_are_those_of_its_sum(mlp):
    generator = torch.Generator().manual_seed(1)
    pairs = [(x, torch.randint(20, (50,), generator=generator)) for x in batches()]

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1])

    squares = {"0": 0.0, "2": 0.0}
    for x, labels in pairs:
        first = mlp[0](x)
        last = mlp[2](torch.tanh(first))
        summed = cross_entropy(last, labels, reduction="sum")
        for name, g in zip(squares, torch.autograd.grad(summed, [first, last]), strict=True):
            squares[name] += g.double().square().sum(0).numpy()
    stats = rt.calibrate(mlp, pairs, loss=loss, holdout=0)
    assert stats.gradient == "the given loss"
    for name, total in squares.items():
        np.testing.assert_allclose(stats.output_weights[name][0], total / 200, rtol=1e-4)
    one = rt.calibrate(mlp, pairs, loss=loss, loss_count=1, holdout=0)
    np.testing.assert_allclose(
        one.output_weights["2"][0] * 4, squares["2"] / 2500, rtol=1e-4
    )  # 4 losses, each 1/50 of the sum
    counted = rt.calibrate(mlp, pairs, loss=loss, loss_count=lambda b: len(b[1]), holdout=0)
    np.testing.assert_array_equal(counted.output_weights["2"][0], stats.output_weights["2"][0])


def test_sampled_labels_give_the_fisher_information(mlp):
    x = torch.cat(batches(40, rows=500))
    stats = rt.calibrate(mlp, [x], gradient_tokens=20_000)
    shares = mlp(x).softmax(-1).detach().double()
    expected = (shares * (1 - shares)).mean(0).numpy()
    assert stats.gradient == "labels sampled from the model's own softmax"
    # 20,000 draws: 4 standard errors of the mean of a square below 1.
    tolerance = 4 * np.sqrt(expected / 20_000)
    assert (abs(stats.output_weights["2"][0] - expected) < tolerance).all()
    full = rt.calibrate(mlp, [x], gradient_tokens=20_000, output_moment="full")
    G = full.output_weights["2"][0]
    exact = (torch.diag(shares.sum(0)) - shares.T @ shares).numpy() / 20_000
    assert abs(G - exact).max() < 4 * np.sqrt(expected.max() / 20_000)
    np.testing.assert_allclose(np.diag(G), stats.output_weights["2"][0], rtol=1e-6)


def test_gradients_stop_after_enough_tokens(mlp):
    stats = rt.calibrate(mlp, batches(10), gradient_tokens=120)
    assert stats.losses == 150
    assert stats.input_rows["0"] == 450


def test_layers_that_read_the_same_input_share_its_moment():
    stats = rt.calibrate(Attention(), sentences(), exclude="head")
    assert stats.inputs == {"q": "q", "k": "q", "v": "q", "o": "o"}
    assert list(stats.input_moments) == ["q", "o"]
    assert set(stats.output_weights) == {"q", "k", "v", "o"}


def test_layers_that_read_the_same_input_only_at_first_do_not_share():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 20), nn.Linear(32, 20)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.a(x) + self.b(x if x[0, 0] > 0 else 2 * x)

    data = batches(2)
    data[0][0, 0], data[1][0, 0] = 1.0, -1.0
    stats = rt.calibrate(Sometimes(), data, holdout=0)
    assert stats.inputs == {"a": "a", "b": "b"}
    both = torch.cat([data[0], 2 * data[1]])
    np.testing.assert_allclose(stats.input_moments["b"][0], second_moment(both), rtol=1e-6)
    assert stats.input_rows == {"a": 100, "b": 100}


def test_a_tensor_changed_in_place_is_another_input():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 20), nn.Linear(32, 20)

        def forward(self, x):
            x = x.clone()
            first = self.a(x)
            return first + self.b(x.mul_(3.0))

    data = batches()
    stats = rt.calibrate(InPlace(), data, holdout=0, objective="outputs")
    a, b = stats.input_moments["a"][0], stats.input_moments["b"][0]
    np.testing.assert_allclose(b, 9 * a, rtol=1e-5)


@pytest.mark.parametrize("way", ["keyword", "positional"])
def test_hidden_positions_do_not_count(way):
    model = Attention()
    ids = sentences(1, size=6)[0]["input_ids"]
    mask = torch.ones(6, 12, dtype=torch.long)
    mask[0, 5:] = mask[3, :7] = 0
    batch = {"input_ids": ids, "attention_mask": mask} if way == "keyword" else (ids, mask)
    stats = rt.calibrate(model, [batch], exclude="head", output_moment="full")
    visible = model.embed(ids)[mask.bool()]
    np.testing.assert_allclose(stats.input_moments["q"][0], second_moment(visible), rtol=1e-10)
    assert stats.input_rows["q"] == stats.losses == int(mask.sum())
    # What stands at a hidden position does not matter at all.
    other = ids.clone()
    other[mask == 0] = 7
    batch = {"input_ids": other, "attention_mask": mask} if way == "keyword" else (other, mask)
    same = rt.calibrate(model, [batch], exclude="head", output_moment="full")
    for name, found in stats.input_moments.items():
        np.testing.assert_allclose(same.input_moments[name][0], found[0], rtol=1e-6, atol=1e-12)


def test_a_decoder_has_a_mask_of_its_own():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x, y, attention_mask=None, decoder_attention_mask=None):
            return self.decoder(y + self.encoder(x).mean(1, keepdim=True))

    x, y = (batch.reshape(5, 10, 32) for batch in batches(2))
    hidden, of_decoder = torch.ones(5, 10), torch.ones(5, 10)
    hidden[:, 7:], of_decoder[:, 4:] = 0, 0
    batch = (x, y, hidden, of_decoder)
    stats = rt.calibrate(Both(), [batch])
    assert stats.input_rows == {"encoder": 35, "decoder": 20}


def test_convolutions_have_the_moments_of_their_groups():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=2)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20))
    x = torch.randn(6, 8, 5, 7)
    stats = rt.calibrate(model, [x], include="0")
    assert [m.shape for m in stats.input_moments["0"]] == [(36, 36), (36, 36)]
    assert [w.shape for w in stats.output_weights["0"]] == [(6,), (6,)]
    patches = unfold(x, 3, padding=1).movedim(1, -1)
    np.testing.assert_allclose(
        stats.input_moments["0"][1], second_moment(patches[..., 36:]), rtol=1e-10
    )
    assert stats.losses == 6  # one for each image, however many patches it has
    smaller, report = rt.prune(model, calibration=stats, ranks={"0": 3}, include="0")
    assert type(smaller[0]) is rt.SplitConv2d
    assert all(row["predicted_loss"] > 0 for row in report.cut)


def test_clipped_inputs_have_at_most_that_multiple_of_the_median_norm(mlp):
    x = torch.randn(101, 32)
    x[17] *= 1000.0
    clipped = x.clone()
    norms = x.norm(dim=-1)
    clipped[17] *= 3.0 * norms.median() / norms[17]
    stats = rt.calibrate(mlp, [x], clip=3.0)
    np.testing.assert_allclose(stats.input_moments["0"][0], second_moment(clipped), rtol=1e-5)


# Where gradients come from.


class Ending(nn.Module):
    def __init__(self, end):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.end = nn.Linear(32, 40), nn.Linear(40, 20), end

    def forward(self, x):
        return self.end(self.last(torch.tanh(self.first(x))))


SAMPLED = "labels sampled from the model's own softmax"
PROBES = "random signs of the outputs"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda y: y, SAMPLED),
        (lambda y: (y, y.sum()), SAMPLED),
        (lambda y: {"logits": y * 2, "loss": y.sum()}, SAMPLED),
        (lambda y: {"start_logits": y[:, :9], "end_logits": y[:, 9:]}, SAMPLED),
        (lambda y: y.log_softmax(-1), SAMPLED),
        (lambda y: y.softmax(-1), SAMPLED),
        (lambda y: y.relu(), PROBES),
        (lambda y: {"embedding": y}, PROBES),
        (lambda y: [y[:, :9] * 2, (y[:, 9:].sin(),)], PROBES),
    ],
    ids=["plain", "pair", "logits", "two", "log", "shares", "relu", "named", "nested"],
)
def test_what_is_differentiated(end, words):
    model = Ending(end)
    stats = rt.calibrate(model, batches())
    assert stats.gradient == words
    assert set(stats.output_weights) == {"first", "last"}
    assert rt.prune(model, calibration=stats, budget=0.5)[1].settings["gradient"] == words


def test_an_output_like_the_input_has_no_labels():
    model = nn.Sequential(nn.Linear(32, 20), nn.Tanh(), nn.Linear(20, 32))
    assert rt.calibrate(model, batches()).gradient == PROBES
    assert rt.calibrate(model, batches(), labels="probes").gradient == PROBES


def test_the_labels_can_be_chosen(mlp):
    assert rt.calibrate(mlp, batches(), labels="probes").gradient == PROBES
    with pytest.raises(InvalidValueError, match="`labels` is 'sampled', and no logits were found"):
        rt.calibrate(Ending(torch.relu), batches(), labels="sampled")


def test_the_same_seed_gives_the_same_gradients(mlp):
    first, again, other = (rt.calibrate(mlp, batches(), rng=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.output_weights["2"][0], again.output_weights["2"][0])
    assert (first.output_weights["2"][0] != other.output_weights["2"][0]).any()


def test_without_a_gradient_outputs_are_preserved_and_it_is_said():
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 40)

        def forward(self, x):
            with torch.no_grad():
                return self.layer(x)

    stats = rt.calibrate(Closed(), batches())
    assert stats.objective == "outputs"
    assert stats.gradient == ""
    report = rt.prune(Closed(), calibration=batches(), budget=0.5)[1]
    assert report.settings["objective"] == "outputs"
    with pytest.raises(InvalidValueError, match=r"no loss can be differentiated.*Pass loss="):
        rt.calibrate(Closed(), batches(), objective="loss")


def test_layers_that_no_gradient_reaches_are_named():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.frozen, self.last = nn.Linear(32, 40), nn.Linear(40, 20)

        def forward(self, x):
            with torch.no_grad():
                x = self.frozen(x)
            return self.last(x)

    stats = rt.calibrate(Part(), batches())
    assert stats.without_gradient == {"frozen": "no gradient reaches it"}
    _, report = rt.prune(Part(), calibration=stats, budget=0.5)
    assert "no gradient of the loss reaches it: outputs only" in report.row("frozen")["note"]
    assert report.row("frozen")["predicted_loss"] is None
    assert report.row("last")["predicted_loss"] > 0
    # Each of the two kinds keeps its half.
    assert report.row("frozen")["parameters_after"] <= 0.5 * 32 * 40
    assert report.row("last")["parameters_after"] <= 0.5 * 40 * 20


def test_frozen_parameters_are_weighed_like_others(mlp):
    free = rt.calibrate(mlp, batches())
    frozen = rt.calibrate(mlp.requires_grad_(False), batches())
    np.testing.assert_array_equal(frozen.output_weights["0"][0], free.output_weights["0"][0])
    assert not any(p.requires_grad for p in mlp.parameters())


def test_a_function_that_runs_the_model_is_as_good_as_batches(mlp):
    seen = []

    def run(model):
        # An output without a gradient, as ever.
        seen.extend(model(batch).numpy() for batch in batches())

    by_function = rt.calibrate(mlp, run, holdout=0)
    by_batches = rt.calibrate(mlp, batches(), holdout=0)
    for of in ("input_moments", "output_weights"):
        for name, (found,) in getattr(by_batches, of).items():
            np.testing.assert_array_equal(getattr(by_function, of)[name][0], found)
    assert len(seen) == 4


def test_autocast_does_not_coarsen_the_moments(mlp):
    data = batches(2, rows=300)
    with torch.autocast("cpu", torch.bfloat16):
        stats = rt.calibrate(mlp, data, holdout=0)
    np.testing.assert_allclose(
        stats.input_moments["0"][0], second_moment(torch.cat(data)), rtol=1e-12
    )
    assert np.linalg.eigvalsh(stats.input_moments["2"][0])[0] > -1e-12


# What is left behind: nothing.


def state(model):
    return (
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, p.grad, p._backward_hooks) for p in model.parameters()],
    )


def stopping(model, batch):
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["good", "interrupt", "wrong batch"])
def test_the_model_and_the_generator_are_as_before(mlp, how):
    mlp[2].weight.requires_grad_(False)
    mlp.train()
    before, random = state(mlp), torch.get_rng_state()
    if how == "good":
        rt.calibrate(mlp, batches())
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            rt.calibrate(mlp, batches(), loss=stopping)
    else:
        with pytest.raises(InvalidValueError, match="batch 1 is a Tensor"):
            rt.calibrate(mlp, [batches()[0], torch.ones(3, 5)])
    assert state(mlp) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("calls", [1, 3])
def test_an_encoder_is_run_the_long_way_by_a_function_too(calls):
    # Its short cut has no gradient, and would run past the hooks of its layers.
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    given = [torch.randn(4, 10, 32) for _ in range(calls)]
    stats = rt.calibrate(model, lambda m: [m(x) for x in given], holdout=0.0)
    expected = rt.calibrate(model, given, holdout=0.0)
    assert stats.output_weights.keys() == expected.output_weights.keys() != set()
    for name, found in stats.output_weights.items():
        np.testing.assert_array_equal(found[0], expected.output_weights[name][0])

    def stops(m):
        m(given[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rt.calibrate(model, stops)
    with pytest.raises(AssertionError):  # in the middle of a call
        rt.calibrate(model, lambda m: m(torch.ones(3, 10, 7)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_counts_of_an_embedding_take_little_memory():
    options = CalibrationOptions()
    embedding = nn.Embedding(50_000, 64, device="meta")
    assert bytes_of(embedding, options) < 1_000_000
    assert bytes_of(nn.Linear(64, 10, device="meta"), options) == 64 * 64 * 12 + 80


def test_inference_mode_around_it_does_not_matter(mlp):
    with torch.inference_mode():
        inside = rt.calibrate(mlp, batches())
    np.testing.assert_array_equal(
        inside.output_weights["0"][0], rt.calibrate(mlp, batches()).output_weights["0"][0]
    )


# Kept, and used again.


def test_saved_and_loaded_it_prunes_the_same(mlp, tmp_path):
    stats = rt.calibrate(mlp, batches(), output_moment="full")
    stats.save(tmp_path / "stats.safetensors")
    loaded = rt.Calibration.load(tmp_path / "stats.safetensors")
    assert repr(loaded) == repr(stats)
    for by in (stats, loaded):
        for options in ({"budget": 0.5}, {"ranks": {"0": 5}}):
            _, report = rt.prune(mlp, calibration=by, gate=None, **options)
            _, direct = rt.prune(mlp, calibration=stats, gate=None, **options)
            for key in ("rank", "weight_error", "output_error", "predicted_loss"):
                assert [r[key] for r in report.rows] == [r[key] for r in direct.rows]


def test_passes_of_a_few_layers_each_see_the_same(mlp):
    whole = rt.calibrate(mlp, batches())
    for parts in (
        rt.calibrate(mlp, batches(), memory=1),
        rt.calibrate(mlp, iter(batches()), memory=1),
    ):
        assert parts.inputs == whole.inputs
        for of in ("input_moments", "held_out", "output_weights"):
            for name, (found,) in getattr(whole, of).items():
                np.testing.assert_array_equal(getattr(parts, of)[name][0], found)


def test_progress_is_told(mlp):
    told = []
    rt.calibrate(mlp, batches(), progress=lambda *state: told.append(state))
    assert told == [(i, 4, "calibrate") for i in (1, 2, 3, 4)]
    told.clear()
    rt.calibrate(mlp, batches(), memory=1, progress=lambda *state: told.append(state))
    assert told[-1] == (4, 4, "pass 2 of 2")


def test_few_rows_are_said(mlp):
    _, report = rt.prune(mlp, calibration=batches(2, rows=70), ranks={"0": 5, "2": 5})
    assert "70 rows for 32 columns: too few to trust the error" in report.row("0")["note"]
    _, report = rt.prune(mlp, calibration=batches(2, rows=200), ranks={"0": 5, "2": 5})
    assert "too few" not in report.row("0").get("note", "")


def test_errors_are_those_of_the_batches_held_out(mlp):
    data = batches(2, rows=20)  # fewer rows than columns: the fit is exact on them
    smaller, report = rt.prune(mlp, calibration=data, ranks={"0": 21}, objective="outputs")
    x = data[1].double()
    weight, product = (m[0].weight.detach().double() for m in (mlp, smaller))
    measured = (x @ (weight - product).T).norm() / (x @ weight.T).norm()
    assert report.row("0")["output_error"] == pytest.approx(float(measured), rel=1e-4)
    assert measured > 0.05


# What is cut.


class Twice(nn.Module):
    """Two equal layers side by side; what the second says hardly matters."""

    def __init__(self, share=1e-3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.load_state_dict(self.a.state_dict())
        self.head = nn.Linear(64, 20)
        self.share = share

    def forward(self, x):
        return self.head(torch.tanh(self.a(x) + self.share * self.b(x)))


@pytest.mark.parametrize("moment", ["diagonal", "full"])
def test_a_budget_cuts_what_the_loss_does_not_miss(moment):
    model = Twice()
    stats = rt.calibrate(model, batches(columns=64), output_moment=moment)
    planned = rt.plan(model, calibration=stats, budget=0.6, include="^[ab]$")
    assert planned.row("b")["rank"] < 10
    assert planned.row("a")["action"] == "keep"
    even = rt.plan(model, calibration=stats, budget=0.6, include="^[ab]$", objective="outputs")
    assert even.row("a")["rank"] == even.row("b")["rank"]
    assert planned.settings["objective"] == "loss"
    assert even.settings["objective"] == "outputs"


def test_predicted_losses_are_about_those_that_come():
    """To second order: a cut that changes little costs about what is predicted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 20))
    x = torch.randn(4000, 64)
    stats = rt.calibrate(model, [x], gradient_tokens=4000, output_moment="full")
    before = model(x).log_softmax(-1).detach()
    for rank in (60, 50, 40):
        smaller, report = rt.prune(model, calibration=stats, ranks={"0": rank}, include="0")
        after = smaller(x).log_softmax(-1).detach()
        lost = float((before.exp() * (before - after)).sum(-1).mean())  # KL: Fisher's loss
        assert report.row("0")["predicted_loss"] == pytest.approx(lost, rel=0.15)


def test_ranks_are_multiples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 280), nn.Tanh(), nn.Linear(280, 100))
    stats = rt.calibrate(model, [torch.randn(100, 300)])
    for options in ({"budget": 0.5}, {"rule": "fraction", "keep": 0.2}):
        report = rt.plan(model, calibration=stats, rank_multiple="auto", gate=None, **options)
        assert report.row("0")["rank"] % 16 == 0
        assert report.row("2")["rank"] % 8 == 0
        assert report.settings["rank_multiple"] == "auto"
    kept = report.row("0")["rank"]
    assert kept == 64  # 56 of 280, rounded up
    forced = rt.plan(model, rank_multiple=16, ranks={"0": 17, "2": 5}, gate=None)
    assert [row["rank"] for row in forced.rows] == [17, 5]
    spent = rt.plan(model, calibration=stats, rank_multiple=16, budget=0.5)
    assert spent.parameters_after <= 0.5 * spent.parameters_before


# Wrong input.


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        ({"objective": "speed"}, "`objective` is 'speed'; expected one of loss, outputs", None),
        ({"labels": "mine"}, "`labels` is 'mine'", None),
        ({"output_moment": "none"}, "`output_moment` is 'none'", None),
        ({"holdout": 1.0}, "`holdout` is 1; expected a share below 1", None),
        ({"holdout": -0.1}, "`holdout` is -0.1", None),
        ({"gradient_tokens": 0}, "`gradient_tokens` is 0; expected a whole number", None),
        ({"clip": 0.5}, "`clip` is 0.5; expected a number of at least 1", None),
        ({"memory": 0}, "`memory` is 0", None),
        ({"rng": -1}, "`rng` is -1", None),
        ({"loss": 3}, "`loss` is a int; expected a function", InvalidTypeError),
        ({"loss_count": 3}, "`loss_count` is given without `loss`", None),
        ({"loss": stopping, "objective": "outputs"}, "`loss` is given, and `objective`", None),
        ({"loss": lambda m, b: 1.0}, "`loss` returned a float for batch 0", InvalidTypeError),
        ({"loss": lambda m, b: m(b)}, r"a Tensor of shape \(50, 20\)", InvalidTypeError),
        ({"loss": lambda m, b: m(b).sum().detach()}, "without gradient", None),
        ({"loss": lambda m, b: m(b).sum() * float("nan")}, "the loss of batch 0 is nan", None),
        (
            {"loss": lambda m, b: cross_entropy(m(b), torch.zeros(3, dtype=torch.long))},
            "`loss` failed for batch 0: .*batch_size",
            None,
        ),
        ({"include": "nothing"}, "No weight matrix of this Sequential is left", None),
    ],
)
def test_wrong_options(mlp, options, message, kind):
    before = state(mlp)
    with pytest.raises(kind or InvalidValueError, match=message):
        rt.calibrate(mlp, batches(), **options)
    assert state(mlp) == before


def test_gradients_that_are_nan_name_the_layer():
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    model = Ending(lambda y: y)
    with pytest.raises(
        InvalidValueError, match="gradients that are nan or infinite at the outputs of 'first'"
    ):
        rt.calibrate(model, batches(), loss=lambda m, b: m.last(Root.apply(m.first(b))).sum())


def test_what_does_not_go_together(mlp):
    stats = rt.calibrate(mlp, batches(), objective="outputs")
    with pytest.raises(InvalidOptionError, match="`objective` is 'loss', and `calibration` holds"):
        rt.prune(mlp, calibration=stats, objective="loss", budget=0.5)
    with pytest.raises(InvalidOptionError, match="`loss` is given, and `calibration` holds"):
        rt.prune(mlp, calibration=stats, loss=stopping, budget=0.5)
    with pytest.raises(InvalidOptionError, match="`objective` is given without `calibration`"):
        rt.prune(mlp, objective="loss")
    with pytest.raises(InvalidTypeError, match="`loss` is given, and `calibration` is a function"):
        rt.calibrate(mlp, lambda m: m(batches()[0]), loss=stopping)


def test_a_calibration_of_something_else(mlp):
    stats = rt.calibrate(mlp, batches(), include="0")
    with pytest.raises(InvalidValueError, match="says nothing about 1 of 2 layers: '2'"):
        rt.prune(mlp, calibration=stats, budget=0.5)
    other = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 20))
    with pytest.raises(
        InvalidValueError, match="has '0' with 32 inputs and 48 outputs; here it is"
    ):
        rt.prune(other, calibration=stats, include="0", ranks={"0": 5})


def test_a_model_of_nothing_to_calibrate():
    with pytest.raises(InvalidValueError, match="No layer of this Embedding can be calibrated"):
        rt.calibrate(nn.Embedding(50, 20), [torch.zeros(3, dtype=torch.long)])


def test_the_report_shows_what_is_predicted(mlp):
    _, report = rt.prune(mlp, calibration=batches(), ranks={"0": 9}, include="0")
    header, cells = report.cells()
    shown = cells[0][header.index("predicted loss")]
    assert float(shown) == pytest.approx(report.row("0")["predicted_loss"], rel=0.06)
    assert "predicted loss" in repr(report)
    plain = rt.prune(mlp, ranks={"0": 9})[1]
    assert "predicted loss" not in repr(plain)


def test_an_embedding_that_is_named_is_weighed_by_its_use():
    model = Attention()
    generator = torch.Generator().manual_seed(0)
    often = [{"input_ids": torch.randint(25, (8, 12), generator=generator)} for _ in range(6)]
    stats = rt.calibrate(model, often, include="embed", holdout=0)
    (shares,) = stats.output_weights["embed"]
    ids = torch.cat([batch["input_ids"] for batch in often]).flatten()
    np.testing.assert_allclose(shares, np.bincount(ids, minlength=50) / len(ids))
    assert stats.input_moments["embed"][0].shape == (32, 32)
    smaller, report = rt.prune(model, calibration=stats, ranks={"embed": 12}, include="embed")
    gaps = (smaller.embed.weight - model.embed.weight).detach().norm(dim=1)
    assert gaps[:25].mean() < 0.5 * gaps[25:].mean()
    row = report.row("embed")
    assert row["predicted_loss"] > 0
    assert row["output_error"] is None  # there is no moment of indices
    assert "embed" not in rt.calibrate(model, often, exclude="head")
    with pytest.raises(InvalidValueError, match="says nothing about"):
        rt.prune(model, calibration=stats, budget=0.5)


def test_an_output_head_is_cut_only_if_it_is_named():
    class Model(Attention):
        def get_output_embeddings(self):
            return self.head

    reason = "the output head: cut only where `include` or `ranks` names it"
    planned = rt.plan(Model(), calibration=sentences(), budget=0.7)
    assert planned.row("head")["reason"] == reason
    named = rt.plan(Model(), calibration=sentences(), budget=0.7, include="head|q")
    assert named.row("head")["reason"] != reason
