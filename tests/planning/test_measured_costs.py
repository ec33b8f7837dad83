"""A table of measured costs decides which ranks pay, and what a budget of time buys."""

import json

import numpy as np
import pytest

from rmtspec.errors import FileError, InvalidOptionError, InvalidOptionTypeError, InvalidValueError
from rmtspec.planning.costs import Costs, measured_cost
from rmtspec.planning.options import PlanOptions
from rmtspec.terms import Form


def costs():
    big = measured_cost(10.0, [10, 50, 100], [2.0, 8.0, 20.0], [2.0, 6.0, 9.0])
    small = measured_cost(1.0, [5, 20], [2.0, 3.0], [1.5, 2.0])
    return Costs({(200, 100): big, (40, 20): small}, {"tokens": 1})


def test_ranks_pay_where_the_split_is_faster():
    table = costs()
    assert table.rank_that_pays((200, 100)) == 58  # 8 + 12 (k - 50) / 50 is 10 at 58.3
    assert table.rank_that_pays((200, 100), "pivoted") == 100
    assert table.rank_that_pays((40, 20)) == 0
    seconds = table.of((200, 100)).seconds(100, Form.PLAIN)
    assert seconds.shape == (100,)
    assert (np.diff(seconds) >= 0).all()
    assert seconds[9] == 2.0


def test_a_larger_rank_is_never_taken_to_be_faster():
    noisy = measured_cost(1.0, [1, 2, 3], [1.0, 0.5, 0.8], [0.1, 0.3, 0.2])
    assert noisy.plain == (1.0, 1.0, 1.0)
    assert noisy.pivoted == (0.1, 0.3, 0.3)


def test_saved_and_loaded(tmp_path):
    costs().save(tmp_path / "costs.json")
    loaded = Costs.load(tmp_path / "costs.json")
    assert loaded.to_dict() == costs().to_dict()
    assert "200 x 100" in repr(loaded)
    assert "splits pay up to rank 58 plain, 100 pivoted" in repr(loaded)


def test_what_is_no_table(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"schema": 1, "rows": [{"rows": 3}]}))
    with pytest.raises(FileError, match="holds no table of costs"):
        Costs.load(tmp_path / "other.json")
    with pytest.raises(InvalidValueError, match="`costs` has no layer of 3 x 4; it has 200 x 100"):
        costs().of((3, 4))


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        (
            {"size": "weight"},
            "`size` is 'weight'; expected one of parameters",
            None,
        ),
        ({"size": "latency", "budget": 0.5}, "`size` is 'latency' without `costs`", None),
        ({"costs": costs()}, "`size` is 'parameters', and there are `costs`", None),
        ({"costs": 3, "size": "latency"}, "`costs` is a int", InvalidOptionTypeError),
        ({"costs": costs(), "size": "latency"}, "`size` is 'latency' without `budget`", None),
    ],
    ids=["word", "no costs", "no latency", "number", "no budget"],
)
def test_wrong_sizes(options, message, kind):
    with pytest.raises(kind or InvalidOptionError, match=message):
        PlanOptions(**options)
