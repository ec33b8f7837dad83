"""Models whose large matrices have estimated spectra."""

import pytest
import torch

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError
from rmtspec.report import estimated

METHOD = {"method": "stochastic"}


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(estimated, "FROM", 256)
    torch.manual_seed(0)
    made = rt.MLP([420, 300, 40, 10])
    planted = rmtspec.ensembles.spiked(300, 420, [4.0, 12.0], rng=0)
    with torch.no_grad():
        made.layers[0].weight.copy_(torch.from_numpy(planted))
    return made


def test_large_layers_are_estimated(model):
    report = rt.analyze(model, beta=0.01, **METHOD)
    assert [row["method"] for row in report.rows] == ["stochastic", "gram", "gram"]
    assert list(report.estimates) == ["layers.0"]
    assert report["layers.0"]["n_spikes"] == report["layers.0"]["rank"] == 2
    keys = {name: matrix.key for name, matrix in rt.weight_matrices(model)}
    assert rmtspec.unfreeze(report, 0.5, keys=keys)


def test_it_works_on_the_cpu_wherever_the_weights_are(model, monkeypatch):
    """A model on a GPU is not refused for a device that nobody asked for."""
    from rmtspec.adapters.torch._pruning import analysis

    monkeypatch.setattr(analysis, "usable_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(analysis, "DeviceEigensolver", lambda _: pytest.fail("on a device"))
    assert list(rt.analyze(model, **METHOD).estimates) == ["layers.0"]
    with pytest.raises(InvalidOptionError, match=r"`device` is 'cuda'.*works on the CPU"):
        rt.analyze(model, "cuda", **METHOD)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: rt.prune(model, **METHOD),
        lambda model: rt.plan(model, **METHOD),
        lambda model: rt.components(model, "layers.0", k=2, **METHOD),
        lambda model: rt.BulkPenalty(model, 0.1, **METHOD),
        lambda model: rt.RMTPruner(model, torch.optim.SGD(model.parameters(), 0.1), **METHOD),
    ],
    ids=["prune", "plan", "components", "penalty", "pruner"],
)
def test_what_needs_singular_values_refuses_it(model, call):
    with pytest.raises(
        InvalidOptionError, match=r"`method` is 'stochastic', and .* needs singular"
    ):
        call(model)
