"""Metrics of a model, against the weights that it had before training, and what to train."""

import pytest
import torch
from safetensors.torch import save_file

import rmtspec
from rmtspec.adapters import torch as rt


@pytest.fixture
def model():
    torch.manual_seed(0)
    return rt.MLP([40, 60, 30])


def test_distance_to_the_weights_of_a_file_or_of_a_model(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "init.safetensors")
    before = {name: m().copy() for name, m in rt.weight_matrices(model) if not m.reason}
    with torch.no_grad():
        model.layers[0].weight += 0.25
    for init in (tmp_path / "init.safetensors", before, model_with(before)):
        rows = rt.analyze(model, metrics=True, init=init).rows
        distances = [row["distance_to_init"] for row in rows]
        assert distances == pytest.approx([0.25 * (40 * 60) ** 0.5, 0], rel=1e-5)


def model_with(weights):
    """Return the matrices of another model that holds these weights."""
    other = rt.MLP([40, 60, 30])
    for name, matrix in rt.weight_matrices(other):
        if name in weights:
            matrix.write(weights[name])
    return dict(rt.weight_matrices(other))


def test_what_to_train_names_parameters(model):
    report = rt.analyze(model)
    keys = {name: m.key for name, m in rt.weight_matrices(model)}
    unfrozen = rmtspec.unfreeze(report, 1.0, keys=keys)
    names = {name for name, _ in model.named_parameters() if name.endswith("weight")}
    assert unfrozen.patterns == [f"^{name}$" for name in sorted(names)]
