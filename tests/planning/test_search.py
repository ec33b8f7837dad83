"""The smallest budget within a limit is found, whichever way the figure gets worse."""

import math

import pytest

from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError
from rmtspec.planning.search import check_target, smallest_budget


@pytest.mark.parametrize("truth", [0.1, 0.37, 0.5, 0.93])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["loss", "accuracy"])
def test_it_is_found_to_the_resolution(truth, sign):
    def figure(budget):
        return 5.0 + sign * (1.0 - budget)

    target = sign * (1.0 - truth)
    budget, tried = smallest_budget(figure, 5.0, target)
    assert truth <= budget <= truth + 0.01
    assert len(tried) == 7
    assert all(value == figure(share) for share, value in tried)


def test_budgets_that_are_not_possible_are_not_tried():
    budget, tried = smallest_budget(lambda b: 0.0, 0.0, 1.0, least=0.4)
    assert all(share > 0.4 for share, _ in tried)
    assert budget <= 0.41


def test_nothing_may_be_good_enough():
    assert smallest_budget(lambda b: 9.0, 0.0, 1.0)[0] == 1.0
    assert smallest_budget(lambda b: math.nan, 0.0, 1.0)[0] == 1.0
    assert smallest_budget(lambda b: math.nan, 0.0, -1.0)[0] == 1.0
    with pytest.raises(InvalidValueError, match="`evaluate` returns nan for the model as it is"):
        smallest_budget(lambda b: 0.0, math.nan, 1.0)


@pytest.mark.parametrize(
    ("given", "message", "kind"),
    [
        ((0.1, None, None), "`target` is given without `evaluate`", InvalidOptionError),
        ((None, len, None), "`evaluate` is given without `target`", InvalidOptionError),
        ((0.1, len, 0.5), "`budget` and `target` are both given", InvalidOptionError),
        ((0.1, 3, None), "`evaluate` is a int; expected a function", InvalidOptionTypeError),
        (("low", len, None), "`target` is 'low'; expected a number", InvalidOptionTypeError),
        ((True, len, None), "`target` is True; expected a number", InvalidOptionTypeError),
        (
            (0, len, None),
            "`target` is 0; expected a finite number other than 0",
            InvalidOptionError,
        ),
        ((math.inf, len, None), "`target` is inf", InvalidOptionError),
    ],
)
def test_what_is_no_target(given, message, kind):
    with pytest.raises(kind, match=message):
        check_target(*given)
