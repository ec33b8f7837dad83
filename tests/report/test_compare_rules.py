"""Rules side by side: the table, what is skipped, the figure."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.rank import ALL_RULES

W = ensembles.spiked(120, 80, [2.0, 3.0, 6.0], rng=1)


def test_one_row_for_each_rule():
    table = rmtspec.compare_rules(W)
    assert [row["rule"] for row in table.rows] == [rule for rule in ALL_RULES if rule != "fixed"]
    assert table.skipped == []
    squares = np.linalg.svd(W, compute_uv=False) ** 2
    for row in table.rows:
        options = dict(row["options"])
        alone = rmtspec.choose_rank(W, rule=row["rule"], **options)
        assert row["rank"] == alone.rank == table.decisions[row["rule"]].rank
        assert row["energy"] == pytest.approx(squares[: alone.rank].sum() / squares.sum())
        assert row["saves"] == (1 <= alone.rank < 48)
        assert row["parameters"] == (200 * alone.rank if row["saves"] else 9600)
        assert row["reason"] == alone.reason
        assert row["assumes"]
        assert row["seconds"] >= 0.0
    assert table.rows[1]["rank"] == 3


def test_the_table_of_a_seed_is_the_same_each_time():
    first, second = rmtspec.compare_rules(W, rng=4).rows, rmtspec.compare_rules(W, rng=4).rows
    for row in (*first, *second):
        del row["seconds"]
    assert first == second
    weak = ensembles.spiked(30, 20, [2.0, 2.5], rng=2)
    ranks = [rmtspec.choose_rank(weak, rule="bcv", rng=seed).rank for seed in range(8)]
    assert len(set(ranks)) > 1
    tables = [rmtspec.compare_rules(weak, ["bcv"], rng=seed) for seed in range(8)]
    assert [table.rows[0]["rank"] for table in tables] == ranks


def test_rules_and_options_as_asked_for():
    table = rmtspec.compare_rules(W, {"fixed": {"rank": 9}, "energy": {"keep": 0.5}}, beta=0.01)
    assert table.rows[0]["rank"] == 9
    lines = repr(table).splitlines()
    assert lines[0] == "RuleComparison: 120 x 80, 9,600 parameters"
    assert lines[1].split() == [
        "rule", "rank", "energy", "parameters", "saves", "seconds", "assumes",
    ]  # fmt: skip
    assert lines[2].split()[:3] == ["fixed", "9", "9"]
    assert lines[3].startswith("  energy 0.5  ")
    assert len({line.index("nothing") for line in lines[2:]}) == 1
    assert table.settings == {"rows": 120, "columns": 80, "beta": 0.01, "rng": 0}
    one = rmtspec.compare_rules(W, ["energy"])
    assert one.rows[0]["options"] == {"keep": 0.9}


def test_the_level_is_that_of_the_rules_with_one():
    strict = rmtspec.compare_rules(W, ["bema"], beta=1e-6)
    assert strict.rows[0]["rank"] == rmtspec.choose_rank(W, beta=1e-6).rank
    assert rmtspec.compare_rules(W, ["bema"], beta=0.9).rows[0]["rank"] > strict.rows[0]["rank"]


def test_a_spectrum_leaves_out_the_rules_that_need_entries():
    table = rmtspec.compare_rules(rmtspec.spectrum(W))
    assert [entry["name"] for entry in table.skipped] == ["noise", "parallel", "bcv"]
    assert "needs the entries" in table.skipped[1]["reason"]
    assert "skipped 1 (bcv)" in repr(table)
    assert len(table.rows) == 6


def test_what_one_rule_cannot_decide_does_not_stop_the_others():
    table = rmtspec.compare_rules(np.ones((6, 1)), ["bcv", "exact"])
    assert [row["rank"] for row in table.rows] == [1]
    assert table.skipped[0]["name"] == "bcv"


def test_json_and_pandas():
    table = rmtspec.compare_rules(W, ["gavish-donoho", "exact", "bema"])
    content = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert [row["rule"] for row in content["rows"]] == ["gavish-donoho", "exact", "bema"]
    assert content["rows"][1]["threshold"] is None
    frame = table.to_pandas()
    assert list(frame["rank"]) == [row["rank"] for row in table.rows]
    assert np.isnan(frame["threshold"][1])


def test_the_figure_marks_every_rank():
    table = rmtspec.compare_rules(W)
    ax = table.plot(ax=Figure().subplots())
    words = [text.get_text() for text in ax.texts]
    assert words[::2] == [
        "bema", "noise", "gavish-donoho", "screenot", "parallel", "bcv", "energy 0.9",
        "fraction 0.25", "exact",
    ]  # fmt: skip
    assert words[1::2] == [str(row["rank"]) for row in table.rows]


def test_zeros():
    table = rmtspec.compare_rules(np.zeros((30, 20)))
    ranks = {row["rule"]: row["rank"] for row in table.rows}
    assert {rule for rule, rank in ranks.items() if rank} == {"fraction"}
    assert all(row["energy"] == 0.0 for row in table.rows)
    table.plot(ax=Figure().subplots()).figure.canvas.draw()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("bema", "`rules` is 'bema'; expected names of rules"),
        (3, "`rules` is 3; expected names"),
        (["magic"], "`rule` is 'magic'; expected one of bema"),
        (["fixed"], "`rank` is not given"),
        ({"energy": 0.9}, r"`rules\['energy'\]` is 0.9; expected a mapping"),
        ({"energy": {"share": 0.9}}, "`share` is not an option of a rule; expected one of beta"),
        ({"energy": {"keep": 9}}, "`keep` is 9"),
        ({"screenot": {"rank_bound": 99}}, "`rank_bound` is 99"),
    ],
)
def test_bad_rules(rules, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.compare_rules(W, rules)


def test_bad_matrices_and_levels():
    with pytest.raises(InvalidTypeError, match="`W` is 'W'"):
        rmtspec.compare_rules("W")
    with pytest.raises(rmtspec.RmtspecError, match="`beta` is 2"):
        rmtspec.compare_rules(W, ["exact"], beta=2)
