"""Which weights to train: the choice, and the file as YAML and axolotl read it."""

import re

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
)
from rmtspec.report import Report
from rmtspec.report.unfreeze import kind_of


def row(name, energy=0.5, entries=100):
    return {
        "name": name, "energy_share": energy, "parameters_before": entries, "reason": "no bulk",
        "verdict_reason": "",
    }  # fmt: skip


def report(*rows, versions=()):
    return Report(list(rows), [], {}, versions=dict(versions), matrices={})


def axolotl(pattern, name):
    """As axolotl matches: `LayerNamePattern` of its utils/freeze.py, its range left out."""
    assert re.match(r"^(.+)\[([0-9]*)(?::([0-9]*))?\]$", pattern) is None  # a range of rows
    return re.compile(re.sub(r"\.(?!\+)", "\\.", pattern)).match(name) is not None


LAYERS = [
    row(f"model.layers.{k}.{kind}.weight", energy)
    for kind in ("mlp.down_proj", "self_attn.q_proj")
    for k, energy in enumerate((0.1, 0.4, 0.3, 0.2, 0.25))
]


def test_the_top_share_of_each_kind():
    found = rmtspec.unfreeze(report(*LAYERS, row("lm_head.weight", 0.9)), 0.5)
    assert found.to_yaml() == (
        "# Unfrozen by rmtspec: the top 50% of each kind by share of energy beyond the noise\n"
        "unfrozen_parameters:\n"
        "# mlp.down_proj layers\n"
        "- ^model.layers.1.mlp.down_proj.weight$\n"
        "- ^model.layers.2.mlp.down_proj.weight$\n"
        "# self_attn.q_proj layers\n"
        "- ^model.layers.1.self_attn.q_proj.weight$\n"
        "- ^model.layers.2.self_attn.q_proj.weight$\n"
        "# lm_head layers\n"
        "# - ^lm_head.weight$\n"
    )
    assert found.frozen["lm_head"] == ["lm_head.weight"]
    assert len(found) == 4
    assert len(rmtspec.unfreeze(report(*LAYERS), 1)) == 10
    many = report(*(row(f"h.{k}.w") for k in range(100)))
    assert len(rmtspec.unfreeze(many, 0.29)) == 29  # 0.29 * 100 is below that by rounding
    assert "mlp.down_proj     2 of 5" in repr(found)
    assert found.to_dict()["share"] == 0.5


def test_nothing_chosen_is_an_empty_list():
    found = rmtspec.unfreeze(report(*LAYERS), 0.1)
    assert yaml.safe_load(found.to_yaml()) == {"unfrozen_parameters": []}


NAMES = [
    "model.layers.0.mlp.down_proj.weight", "model.layers.10.mlp.down_proj.weight",
    "blocks/0/kernel:0", "a b", "x: y", "x #1", "'q' \"d\"", "back\\slash", "(group)", "a+b.+c",
    "null", "weiß.größe", "مرحبا", "emoji 🎉", "line\nbreak", "nel\x85", "ls\u2028",
    "bell\x07", "del\x7f", "bom\ufeff", "surrogate\udc80", "<script>alert(1)</script>", "n" * 300,
    "trailing ", "$dollar$", "^caret", "{brace}", "x|y", "a-b", "-", "~", "tab\there", "star*",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_axolotl_read_every_name(name):
    found = rmtspec.unfreeze(report(row(name), row("other.9.weight")), 1.0)
    patterns = yaml.safe_load(found.to_yaml())["unfrozen_parameters"]
    assert patterns == found.patterns
    matching = [p for p in patterns if axolotl(p, name)]
    assert len(matching) == 1
    assert re.match(matching[0], name)
    assert not any(axolotl(matching[0], other) for other in NAMES if other != name)
    frozen = rmtspec.unfreeze(report(row(name)), 0.5)  # in a comment, on one line
    assert yaml.safe_load(frozen.to_yaml()) == {"unfrozen_parameters": []}


def test_the_parts_of_a_tensor_go_together():
    found = rmtspec.unfreeze(
        report(
            row("h.0.attn.qkv.weight[q]", 0.9, 100), row("h.0.attn.qkv.weight[k]", 0.0, 300),
            row("h.1.attn.qkv.weight[q]", 0.3, 100), row("h.1.attn.qkv.weight[k]", 0.3, 300),
        ),
        0.5,
    )  # fmt: skip
    assert found.chosen == {"attn.qkv": ["h.1.attn.qkv.weight"]}  # 0.3 against 0.225


def test_kinds():
    names = {
        "model.layers.3.mlp.down_proj.weight": "mlp.down_proj",
        "model.layers.3.mlp.experts.17.w1.weight": "mlp.experts.*.w1",
        "transformer.h.11.attn.c_attn.weight": "attn.c_attn",
        "model.embed_tokens.weight": "model.embed_tokens",
        "layers.0.weight": "layers.*", "0.weight": "*", "A_log": "A_log",
    }  # fmt: skip
    assert {name: kind_of(name) for name in names} == names


def test_what_has_no_energy_is_left_out():
    found = rmtspec.unfreeze(report(row("a.weight"), row("b.weight", None)), 1.0)
    assert found.left_out == [{"name": "b.weight", "reason": "no bulk"}]
    with pytest.raises(InvalidValueError, match="No row of `report` has an energy_share"):
        rmtspec.unfreeze(report(row("b.weight", None)), 1.0)


def test_names_of_layers_need_keys():
    of_layers = report(row("layers.0"), row("layers.1", 0.6), versions={"torch": "2"})
    with pytest.raises(InvalidValueError, match="expected `keys` with the names"):
        rmtspec.unfreeze(of_layers, 0.5)
    keys = {f"layers.{k}": f"layers.{k}.weight" for k in range(2)}
    assert rmtspec.unfreeze(of_layers, 0.5, keys=keys).patterns == ["^layers.1.weight$"]
    with pytest.raises(InvalidValueError, match=r"`keys` has no 'layers\.0'"):
        rmtspec.unfreeze(of_layers, 0.5, keys={})


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_wrong_shares(share):
    with pytest.raises(InvalidOptionError, match="`share` is"):
        rmtspec.unfreeze(report(*LAYERS), share)


def test_wrong_types():
    with pytest.raises(InvalidOptionTypeError, match="`share` is 'half'"):
        rmtspec.unfreeze(report(*LAYERS), "half")
    with pytest.raises(InvalidTypeError, match="expected a Report"):
        rmtspec.unfreeze({"a": np.eye(3)}, 0.5)


def test_the_command(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from rmtspec import cli

    monkeypatch.chdir(tmp_path)
    layers = {
        f"model.layers.{k}.mlp.up_proj.weight": ensembles.spiked(60, 40, [5 + 5 * k], rng=k)
        for k in range(3)
    }
    save_file(layers, "m.safetensors")
    words = ["analyze", "m.safetensors", "--unfreeze", ".4", "--out", "u.yaml"]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.endswith("1 of 3 weights to train, listed in u.yaml\n")
    read = yaml.safe_load((tmp_path / "u.yaml").read_text())
    assert read == {"unfrozen_parameters": ["^model.layers.2.mlp.up_proj.weight$"]}
    assert CliRunner().invoke(cli.main, words).exit_code == 0  # it is ours to replace
    (tmp_path / "u.yaml").write_text("base_model: mine\n")
    refused = CliRunner().invoke(cli.main, words)
    assert (refused.exit_code, (tmp_path / "u.yaml").read_text()) == (2, "base_model: mine\n")
    assert CliRunner().invoke(cli.main, [*words, "--force"]).exit_code == 0
