"""Options of an analysis and of a plan: each wrong one raises before any work."""

import dataclasses
import inspect
import json

import numpy as np
import pytest

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.planning.options import BULK_KEEP, PlanOptions
from rmtspec.report.many import analyze_many
from rmtspec.report.options import AnalysisOptions
from rmtspec.report.report import Report

REPORT = Report([], [], {}, {}, {})


def eigenvalues(tall, *rest):
    return np.linalg.eigvalsh(tall.T @ tall)


# Of an analysis.


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("kind", 3, InvalidTypeError),
        ("method", "fast", InvalidValueError),
        ("precision", "float16", InvalidValueError),
        ("eigensolver", "mine", InvalidTypeError),
        ("alpha", 0.5, InvalidValueError),
        ("alpha", 0.0, InvalidValueError),
        ("alpha", "0.2", InvalidTypeError),
        ("beta", 1.0, InvalidValueError),
        ("beta", None, InvalidTypeError),
        ("quantiles", "median", InvalidValueError),
        ("cutoff", "0.1", InvalidTypeError),
        ("cutoff", -0.1, InvalidValueError),
        ("level", 0.0, InvalidValueError),
        ("level", True, InvalidTypeError),
        ("rule", "best", InvalidValueError),
        ("bulk_keep", 1.1, InvalidValueError),
        ("bulk_keep", float("nan"), InvalidValueError),
        ("bulk_keep", None, InvalidTypeError),
        ("keep", 0.5, InvalidValueError),
        ("min_rank", -1, InvalidValueError),
        ("min_rank", 1.5, InvalidTypeError),
    ],
)
def test_a_wrong_option_of_the_analysis(name, value, error):
    with pytest.raises(error, match=f"`{name}`"):
        AnalysisOptions(**{name: value})
    with pytest.raises(error, match=f"`{name}`"):
        AnalysisOptions.of({name: value})
    with pytest.raises(error, match=f"`{name}`"):
        analyze_many({}, **{name: value})  # before the source is looked at


@pytest.mark.parametrize("rule", ["energy", "fraction"])
def test_a_share_belongs_to_its_rule(rule):
    assert AnalysisOptions(rule=rule, keep=1.0).keep == 1.0
    for keep in (0.0, 1.1):
        with pytest.raises(InvalidValueError, match="`keep` is"):
            AnalysisOptions(rule=rule, keep=keep)
    with pytest.raises(InvalidValueError, match="`keep` is not given"):
        AnalysisOptions(rule=rule)
    with pytest.raises(
        InvalidValueError, match="`bulk_keep` belongs to the rules 'bema' and 'noise'"
    ):
        AnalysisOptions(rule=rule, keep=0.5, bulk_keep=0.1)


def test_an_option_that_the_analysis_does_not_have():
    with pytest.raises(InvalidTypeError, match=r"`betta` is .*option.*alpha, beta, bulk_keep"):
        AnalysisOptions.of({"betta": 0.1})
    assert AnalysisOptions.of({}) == AnalysisOptions()
    assert AnalysisOptions.of({"beta": 0.3}) == AnalysisOptions(beta=0.3)


def test_settings_of_an_analysis_are_what_a_report_holds():
    options = AnalysisOptions(beta=np.float64(0.05), eigensolver=eigenvalues)
    settings = options.settings
    assert json.loads(json.dumps(settings)) == settings
    assert (settings["beta"], settings["eigensolver"]) == (0.05, "eigenvalues")
    assert "kind" not in settings
    assert AnalysisOptions(kind="linear").settings["kind"] == "linear"
    names = {field.name for field in dataclasses.fields(AnalysisOptions)} - {
        "kind",
        "metrics",
        "init",
    }
    assert settings.keys() == names
    assert analyze_many([np.eye(20)], beta=0.05).settings == AnalysisOptions(beta=0.05).settings


def test_defaults_are_those_of_analyze():
    parameters = inspect.signature(rmtspec.analyze).parameters
    for field in dataclasses.fields(AnalysisOptions):
        if field.name == "noise":  # the exact count for one matrix, the fast one for many
            assert (parameters["noise"].default, field.default) == ("auto", "mp")
        elif field.name != "kind":
            assert parameters[field.name].default == field.default, field.name


# Of a plan.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "cut"}, InvalidValueError, "`mode` is 'cut'; expected one of split, truncate"),
        ({"mode": "keep"}, InvalidValueError, "`mode`"),
        ({"mode": None}, InvalidValueError, "`mode`"),
        ({"min_saving": 1.5}, InvalidValueError, "`min_saving` is 1.5.* share of the parameters"),
        ({"min_saving": -0.1}, InvalidValueError, "`min_saving`"),
        ({"min_saving": "0.1"}, InvalidTypeError, "`min_saving`"),
        ({"fit_cutoff": 0.0}, InvalidValueError, "`fit_cutoff` is 0.0"),
        ({"fit_cutoff": -1}, InvalidValueError, "`fit_cutoff` is -1"),
        ({"fit_cutoff": "0.1"}, InvalidTypeError, "`fit_cutoff`"),
        ({"cutoff": 0.1}, InvalidTypeError, "`cutoff` is called `gate`"),
        ({"budget": 0.0}, InvalidValueError, "`budget` is 0; expected a share above 0"),
        ({"budget": 1.5}, InvalidValueError, "`budget` is 1.5.*share of parameters to keep"),
        ({"budget": "half"}, InvalidTypeError, "`budget`"),
        ({"budget": True}, InvalidTypeError, "`budget`"),
        ({"ranks": 3}, InvalidTypeError, "`ranks` is a int; expected a mapping"),
        ({"ranks": [("a", 3)]}, InvalidTypeError, "`ranks` is a list"),
        ({"n_jobs": 0}, InvalidValueError, "`n_jobs` is 0"),
        ({"n_jobs": 1.5}, InvalidTypeError, "`n_jobs`"),
        ({"progress": 3}, InvalidTypeError, "`progress` is 3"),
        ({"include": "("}, InvalidValueError, r"`include` '\('"),
        ({"exclude": 3}, InvalidTypeError, "`exclude` is 3"),
        ({"include": ["a", int]}, InvalidTypeError, "`include` is the class int"),
        ({"rule": "best"}, InvalidValueError, "`rule` is 'best'"),
        ({"rule": "energy"}, InvalidValueError, "`keep` is not given"),
        ({"bulk_keep": 2}, InvalidValueError, "`bulk_keep` is 2"),
        ({"beta": 2}, InvalidValueError, "`beta` is 2"),
        ({"bulk_kept": 0.5}, InvalidTypeError, "`bulk_kept` is .*expected one of"),
        ({"plan": REPORT}, InvalidTypeError, "`plan` is .*expected one of"),
        ({"more": {"beta": 0.1}}, InvalidTypeError, "`more` is .*expected one of"),
    ],
)
def test_a_wrong_option_of_a_plan(options, error, message):
    with pytest.raises(error, match=message):
        PlanOptions.of(options)


@pytest.mark.parametrize("bulk_keep", [0.0, 0.3])
@pytest.mark.parametrize("rule", ["energy", "fraction"])
def test_a_share_of_the_bulk_belongs_to_one_rule(rule, bulk_keep):
    with pytest.raises(
        InvalidValueError, match="`bulk_keep` belongs to the rules 'bema' and 'noise'"
    ):
        PlanOptions(rule=rule, bulk_keep=bulk_keep, more={"keep": 0.9})


@pytest.mark.parametrize("other", [{"rule": "bema"}, {"bulk_keep": 0.0}, {"keep": 0.5}])
def test_a_budget_takes_the_place_of_what_else_decides_ranks(other):
    (name,) = other
    with pytest.raises(InvalidValueError, match=f"`budget` and `{name}` are both given"):
        PlanOptions.of({"budget": 0.5, **other})


def test_a_budget_is_for_splitting():
    with pytest.raises(InvalidValueError, match="mode='truncate' saves none"):
        PlanOptions(budget=0.5, mode="truncate")


@pytest.mark.parametrize(
    "other",
    [
        {"rule": "bema"},
        {"bulk_keep": 0.0},
        {"fit_cutoff": 0.1},
        {"include": "a"},
        {"exclude": "a"},
        {"min_saving": 0.1},
        {"budget": 0.5},
        {"ranks": {"a": 3}},
        {"more": {"beta": 0.2}},
    ],
)
def test_a_plan_decides_alone(other):
    name = next(iter(other.get("more", other)))
    with pytest.raises(InvalidValueError, match=f"`plan` and `{name}` are both given"):
        PlanOptions(plan=REPORT, **other)


def test_beside_a_plan_there_may_be_how_to_work():
    options = PlanOptions(plan=REPORT, mode="truncate", n_jobs=2, progress=print, ranks={})
    assert options.plan is REPORT


def test_the_analysis_that_a_plan_needs():
    assert PlanOptions().analysis == AnalysisOptions(noise="auto", bulk_keep=BULK_KEEP)
    assert PlanOptions(gate=None).analysis == AnalysisOptions(bulk_keep=BULK_KEEP)
    counted = PlanOptions(gate=None, rule="noise").analysis
    assert counted == AnalysisOptions(noise="auto", rule="noise", bulk_keep=BULK_KEEP)
    own = PlanOptions(gate=0.2, more={"noise": "signflip", "rng": 3}).analysis
    assert (own.noise, own.rng, own.rule, own.cutoff) == ("signflip", 3, "noise", 0.2)
    given = PlanOptions(fit_cutoff=0.1, bulk_keep=0.2, more={"beta": 0.3, "min_rank": 2})
    assert given.analysis == AnalysisOptions(cutoff=0.1, bulk_keep=0.2, beta=0.3, min_rank=2)
    energy = PlanOptions(rule="energy", gate=None, more={"keep": 0.9})
    assert energy.analysis == AnalysisOptions(rule="energy", keep=0.9)


def test_the_gate_is_settled_from_its_two_spellings():
    assert PlanOptions().gate == "noise"
    assert PlanOptions(gate=0.1).gate == PlanOptions(fit_cutoff=0.1).gate == 0.1
    assert PlanOptions(gate=None).gate is PlanOptions(fit_cutoff=None).gate is None
    for decided in ({"plan": REPORT}, {"calibrated": True, "budget": 0.5}):
        assert PlanOptions(**decided).gate is None
    for open_still in ({"calibrated": True}, {"budget": 0.5}, {"ranks": {"a": 3}}):
        assert PlanOptions(**open_still).gate == "noise"
    assert PlanOptions(calibrated=True, budget=0.5, gate="noise").gate == "noise"


@pytest.mark.parametrize(
    "gate", ["nose", 0, 1, 1.5, -0.1, float("nan"), True, b"noise", [0.1], np.ones(2)]
)
def test_a_wrong_gate(gate):
    with pytest.raises(
        (InvalidValueError, InvalidTypeError),
        match=r"`gate` is .*expected 'noise', None, or a number",
    ):
        PlanOptions(gate=gate)


@pytest.mark.parametrize("gate", ["noise", None, 0.2])
@pytest.mark.parametrize("cutoff", [None, 0.2])
def test_both_spellings_of_the_gate_are_an_error(gate, cutoff):
    with pytest.raises(InvalidValueError, match="two spellings of the same option"):
        PlanOptions(gate=gate, fit_cutoff=cutoff)


def test_options_by_name_are_sorted_out():
    given = {"bulk_keep": 0.2, "beta": 0.3, "mode": "truncate", "ranks": {"a": 3}}
    options = PlanOptions.of(given)
    same = PlanOptions(bulk_keep=0.2, mode="truncate", ranks={"a": 3}, more={"beta": 0.3})
    assert options == same
    assert PlanOptions.of({}) == PlanOptions()
    assert given.keys() == {"bulk_keep", "beta", "mode", "ranks"}


@pytest.mark.parametrize("options", [AnalysisOptions(), PlanOptions()])
def test_options_are_frozen_and_keyword_only(options):
    name = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, "bema")
    with pytest.raises((AttributeError, TypeError)):
        options.nothing = 1
    with pytest.raises(TypeError):
        type(options)("bema")
    with pytest.raises(InvalidValueError):
        dataclasses.replace(options, **{"rule": "best"})


def test_each_selection_remembers_on_its_own_what_was_met():
    options = PlanOptions(include="fc", exclude="head")
    first, second = options.selection(), options.selection()
    assert first.refusal(["fc"]) == ""
    assert first.unmet == ["exclude='head'"]
    assert second.unmet == ["include='fc'", "exclude='head'"]


def test_rank_is_a_mapping_of_ranks_here():
    with pytest.raises(InvalidTypeError, match=r"`rank` is given; expected `ranks`"):
        PlanOptions.of({"rank": 5})
