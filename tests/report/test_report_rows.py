"""The schema of rows: what a file may hold, and where keys go that are not known."""

import copy
import csv
import io
import json
import re

import numpy as np
import pytest

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import FileError
from rmtspec.planning.costs import Costs
from rmtspec.planning.plan import Plan
from rmtspec.report import Report
from rmtspec.report.matrix_report import COLUMNS
from rmtspec.report.rows import _KNOWN, _NEEDED

SOURCE = {
    "noise": ensembles.wishart(80, 50, rng=1),
    "planted": ensembles.spiked(120, 90, [9], rng=0),
}


@pytest.fixture(scope="module")
def content():
    return rmtspec.analyze_many(SOURCE).to_dict()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "m.npz"
    np.savez(file, **{f"{name}.weight": array for name, array in SOURCE.items()})
    return rmtspec.prune_checkpoint(file, None, dry_run=True, gate=None).to_dict()


def cells_of(page):
    """Return all numbers of a page, as rows by heading."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    return [dict(zip(data["columns"], row["values"], strict=True)) for row in data["rows"]]


def test_keys_that_are_not_known_go_last(content):
    content = copy.deepcopy(content)
    second = content["rows"][1]
    content["rows"][1] = {"mine": "x", **second}
    report = Report.from_dict(content)
    known = [key for key in COLUMNS if key in second]
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert list(lines[0]) == [*known, "mine"]
    assert list(report.to_pandas().columns) == [*known, "mine"]
    cells = cells_of(report.to_html())
    assert list(cells[0]) == [*known, "mine"]
    for row, line, shown in zip(report.rows, lines, cells, strict=True):
        for key in ("n", "n_spikes", "rank"):
            assert line[key] == shown[key] == str(row[key])
    assert (cells[0]["mine"], cells[1]["mine"]) == ("", "x")


def test_a_row_with_fewer_keys(content):
    content = copy.deepcopy(content)
    del content["rows"][0]["method"]
    report = Report.from_dict(content)
    assert cells_of(report.to_html())[0]["n_spikes"] == str(report.rows[0]["n_spikes"])
    assert next(csv.DictReader(io.StringIO(report.to_csv())))["method"] == ""


WRONG = [[], {}, "x", -1, 2**80, 1.5, True, None, ["a"], {"a": 1}]


@pytest.mark.parametrize("kind", [Report, Plan])
def test_every_value_is_checked(content, plan, kind):
    """Whatever is accepted can be shown; whatever is not is named."""
    content = copy.deepcopy(content if kind is Report else plan)
    refused, named = 0, []
    for key in [*content["rows"][1], "n_spikes"]:
        before = content["rows"][1].get(key)
        for wrong in [*WRONG, "missing"]:
            content["rows"][1][key] = wrong
            if wrong == "missing":
                del content["rows"][1][key]
            try:
                report = kind.from_dict(content)
            except FileError as error:
                refused += 1
                named.append("in entry 2 of 'rows', " in str(error) and repr(key) in str(error))
            else:
                assert all([repr(report), report.to_csv(), report.to_html(), report.to_json()])
                report.to_pandas()
                assert report.parameters_before >= report.parameters_after - 2**64
            content["rows"][1][key] = before
    assert refused > 250
    assert all(named)
    kind.from_dict(content)


def test_a_number_of_another_kind_is_refused_in_every_column(content):
    for key in {**_NEEDED, **_KNOWN}:
        changed = copy.deepcopy(content)
        changed["rows"][0][key] = [1]
        with pytest.raises(FileError, match=f"{key!r} is \\[1\\]; expected "):
            Report.from_dict(changed)
    assert set(_NEEDED) <= set(COLUMNS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(rows={}), "'rows' is {}; expected a list"),
        (lambda c: c.pop("skipped"), "'skipped' is None; expected a list"),
        (lambda c: c.update(versions=[]), r"'versions' is \[\]; expected an object"),
        (lambda c: c.update(totals=3), "'totals' is 3; expected an object"),
        (lambda c: c.update(totals={"bytes_after": "x"}), "in 'totals' 'bytes_after' is 'x'"),
        (lambda c: c["rows"].append(7), "entry 3 of 'rows' is 7; expected an object"),
        (lambda c: c["skipped"].append({"name": "a"}), "'skipped', 'a', there is no 'reason'"),
        (lambda c: c["skipped"].append({"name": 1, "reason": ""}), "'name' is 1; expected text"),
        (lambda c: c["rows"][0].update(rank=-1), "'rank' is -1; expected a whole number from 0"),
    ],
)
def test_what_is_no_report(content, tmp_path, change, message):
    content = copy.deepcopy(content)
    change(content)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(
        FileError, match=f"r.json is not a report: .*{message}.*Correct it, or write"
    ):
        Report.from_json(tmp_path / "r.json")


def test_the_rank_of_a_plan_is_left_to_who_carries_it_out(plan):
    plan = copy.deepcopy(plan)
    plan["rows"][0]["rank"] = "seven"
    assert Report.from_dict(plan).rows[0]["rank"] == "seven"


def test_a_table_of_costs_with_other_settings(tmp_path):
    for settings in (3, "x", [1], None):
        content = {"schema": 1, "rows": [], "settings": settings}
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(FileError, match="holds no table of costs"):
            Costs.load(tmp_path / "c.json")
    row = '{"rows": Infinity, "columns": 1, "dense": 1, "ranks": [], "plain": [], "pivoted": []}'
    (tmp_path / "c.json").write_text(f'{{"schema": 1, "rows": [{row}], "settings": {{}}}}')
    with pytest.raises(FileError, match="holds no table of costs"):
        Costs.load(tmp_path / "c.json")
