"""The plan of a model is carried out on a file of its weights, and the reverse."""

import contextlib
import warnings

import pytest
import safetensors.torch
import torch
import transformers
from cifar_resnet import ResNet
from torch import nn

from rmtspec import prune_checkpoint
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import InvalidValueError
from rmtspec.report import Report

TOKENS = torch.arange(12).reshape(2, 6)


def mlp():
    return rt.MLP([64, 100, 50, 10])


def resnet():
    return ResNet(8)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=64, n_embd=48, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2Model(config)


def inputs(build):
    return {mlp: torch.ones(2, 64), resnet: torch.ones(2, 3, 16, 16), gpt2: TOKENS}[build]


def outputs(model, x):
    with torch.no_grad():
        output = model.eval()(x)
    return output if isinstance(output, torch.Tensor) else output[0]


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers about itself
        yield


@pytest.fixture(params=[mlp, resnet, gpt2])
def case(request, tmp_path):
    """A model, how it is built, its file, and which matrices of the file are to be cut."""
    build = request.param
    torch.manual_seed(0)
    with quiet():
        model = build().eval()
        if build is gpt2:
            model.save_pretrained(tmp_path / "model")  # with the config, which tells of q, k, v
        else:
            (tmp_path / "model").mkdir()
            safetensors.torch.save_file(
                model.state_dict(), tmp_path / "model" / "model.safetensors"
            )
        yield model, build, tmp_path / "model"


def cut(report):
    rows = [row for row in report.rows if row["action"] != "keep"]
    return {row["name"].removesuffix(".weight"): row["rank"] for row in rows}


def test_a_plan_of_the_model_fits_the_file(case, tmp_path):
    model, build, folder = case
    plan = rt.plan(model, bulk_keep=0.2)
    smaller, report = rt.apply_plan(model, plan)
    done = prune_checkpoint(folder, tmp_path / "out", plan=plan)
    assert cut(done) == cut(report) != {}
    loaded = rt.load(build, tmp_path / "out")
    x = inputs(build)
    torch.testing.assert_close(outputs(loaded, x), outputs(smaller, x), rtol=1e-4, atol=1e-5)
    assert cut(prune_checkpoint(matrices_in(folder), None, plan=plan, dry_run=True)) == cut(done)
    stored = matrices_in(folder, parts=False).matrices
    for row in done.rows:
        assert (row["rows"], row["columns"]) == stored[row["name"]].sides
        assert done.matrices[row["name"]].spectrum.p == row["p"]
        expected = report.row(row["name"].removesuffix(".weight"))["weight_error"]
        assert row["weight_error"] == (expected and pytest.approx(expected, rel=1e-4))


def test_a_plan_of_the_file_fits_the_model(case, tmp_path):
    model, build, folder = case
    everything = {"include": "conv|linear"} if build is resnet else {}
    plan = prune_checkpoint(folder, None, bulk_keep=0.2, dry_run=True, **everything)
    plan.to_json(tmp_path / "plan.json")
    smaller, report = rt.apply_plan(model, Report.from_json(tmp_path / "plan.json"))
    assert cut(report) == cut(plan) != {}
    done = prune_checkpoint(folder, tmp_path / "out", plan=plan)
    assert cut(done) == cut(plan)
    x = inputs(build)
    loaded = outputs(rt.load(build, tmp_path / "out"), x)
    torch.testing.assert_close(outputs(smaller, x), loaded, rtol=1e-4, atol=1e-5)
    sides = {name: matrix.shape for name, matrix in rt.weight_matrices(model)}
    assert all((row["rows"], row["columns"]) == sides[row["name"]] for row in report.rows)


def test_a_conv1d_of_the_file_has_rows_and_columns_exchanged(tmp_path):
    with quiet():
        torch.manual_seed(0)
        model = gpt2()
        model.save_pretrained(tmp_path / "model")
    name = "h.0.mlp.c_fc"
    plan = rt.plan(model, ranks={name: 7}, include=name)
    assert (plan.row(name)["rows"], plan.row(name)["columns"]) == (192, 48)
    done = prune_checkpoint(tmp_path / "model", None, plan=plan, dry_run=True)
    row = done.row(f"{name}.weight")
    assert (row["rows"], row["columns"], row["rank"], row["kind"]) == (48, 192, 7, "matrix")
    assert row["parameters_after"] == 7 * (48 + 192)
    back = rt.apply_plan(model, done)[1].row(name)
    assert (back["rows"], back["columns"], back["kind"]) == (192, 48, "transposed linear")
    # A matrix of another layer is another matrix.
    model = nn.Sequential(nn.Linear(48, 100))
    plan = rt.plan(model, ranks={"0": 7})
    plan.row("0").update(rows=48, columns=100)
    with pytest.raises(InvalidValueError, match="as 48 x 100; in this Sequential it is 100 x 48"):
        rt.apply_plan(model, plan)


def test_other_sets_of_matrices_are_refused(tmp_path):
    """The groups of a convolution are not in the file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2))
    file = tmp_path / "m.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    plan = rt.plan(model, ranks={"0": 5})
    with pytest.raises(
        InvalidValueError, match=r"names '0\[0\]', which is not a matrix of .*m\.safe"
    ):
        prune_checkpoint(file, tmp_path / "out", plan=plan)
    plan = prune_checkpoint(file, None, ranks={"0": 5}, dry_run=True)
    message = r"names '0\.weight', which is not a matrix of .* Did you mean '0\[0\]', '0\[1\]'\?"
    with pytest.raises(InvalidValueError, match=message):
        rt.apply_plan(model, plan)
    model = nn.Sequential(nn.Linear(40, 50))
    twice = rt.plan(model, ranks={"0": 5})
    twice.rows.append({**twice.rows[0], "name": "0.weight"})
    with pytest.raises(InvalidValueError, match="two rows named '0'"):
        rt.apply_plan(model, twice)
