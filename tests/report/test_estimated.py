"""Reports on matrices whose spectra are estimated."""

import html
import json

import joblib
import numpy as np
import pytest
from checkpoints import write_safetensors

import rmtspec
from rmtspec.errors import FileError, InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.matrix import estimate_spectrum as _estimate
from rmtspec.report import Report, estimated
from rmtspec.terms import Verdict, Why

METHOD = {"method": "stochastic"}
EXTRA = ["variance_error", "bulk_edge_error", "n_spikes_low", "n_spikes_high"]


@pytest.fixture(autouse=True)
def _from_256(monkeypatch):
    monkeypatch.setattr(estimated, "FROM", 256)


def spiked(shape=(420, 300), strengths=(4.0, 12.0), seed=0, dtype=np.float32):
    return rmtspec.ensembles.spiked(*shape, list(strengths), rng=seed).astype(dtype)


@pytest.fixture(scope="module")
def source():
    return {"large": spiked(), "wide": spiked((300, 420), seed=1), "small": spiked((120, 90))}


def test_large_matrices_are_estimated_and_small_ones_are_not(source):
    report = rmtspec.analyze_many(source, beta=0.01, **METHOD)
    assert [row["method"] for row in report.rows] == ["stochastic", "stochastic", "gram"]
    assert list(report.estimates) == ["large", "wide"]
    assert list(report.matrices) == ["small"]
    exact = rmtspec.analyze_many(source, beta=0.01)
    for row, true in zip(report.rows[:2], exact.rows[:2], strict=True):
        assert row["n_spikes"] == 2
        assert row["n_spikes_low"] <= true["n_spikes"] <= row["n_spikes_high"]
        assert abs(row["variance"] - true["variance"]) < 4.0 * row["variance_error"]
        assert abs(row["bulk_edge"] - true["bulk_edge"]) < 4.0 * row["bulk_edge_error"]
        assert row["largest_eigenvalue"] == pytest.approx(true["largest_eigenvalue"], rel=1e-4)
        assert row["energy_share"] == pytest.approx(true["energy_share"], rel=1e-3)
        assert (row["rank"], row["saves"]) == (2, True)
        for key in ("n", "p", "ratio", "break_even", "dtype", "parameters_after"):
            assert row[key] == true[key]
    assert "variance_error" not in report["small"]


def test_an_estimate_is_never_accepted(source):
    for options in ({}, {"level": 1e-9}):
        report = rmtspec.analyze_many(source, **METHOD, **options)
        for row in report.rows[:2]:
            assert row["accepted"] is row["fit_pvalue"] is row["fit_statistic"] is None
            assert row["verdict"] == Verdict.CANNOT_TELL
            assert Why.of(row["verdict_reason"])[0] is Why.ESTIMATED
            assert not report.passes(row)
        assert report.parameters_after == report.parameters_before - (
            report["small"]["parameters_before"] - report["small"]["parameters_after"]
        ) * report.passes(report["small"])


def test_it_is_marked_in_every_output(source, tmp_path):
    report = rmtspec.analyze_many(source, **METHOD)
    words = "2 spectra are estimates (~), with errors stated and nothing tested"
    assert report.estimated() == words
    assert words in repr(report)
    assert "~2" in repr(report)
    assert "~2" in report.to_markdown()
    page = report.to_html()
    assert words in page
    assert "Estimated spectrum" in page
    assert "not tested" in page
    assert [key for key in report.columns() if key in EXTRA] == EXTRA
    head, first = report.to_csv().splitlines()[:2]
    assert dict(zip(head.split(","), first.split(","), strict=True))["method"] == "stochastic"
    report.to_json(tmp_path / "r.json")
    again = Report.from_json(tmp_path / "r.json")
    assert again.rows == report.rows
    assert again.estimated() == words
    assert rmtspec.analyze_many(source).estimated() == ""
    assert report.filter("small").estimates == {}
    assert list(report[:1].estimates) == ["large"]


def test_an_unsafe_count_is_told_whatever_the_noise_model():
    """An estimate counts by the law of one variance, so that noise="auto" alone is no help."""
    heavy = np.random.default_rng(0).standard_t(4, (600, 400))
    words = "1 count of spikes is not safe (see the verdict): count with noise='auto', "
    words += "without the method 'stochastic'"
    for noise in ("mp", "auto"):
        report = rmtspec.analyze_many({"W": heavy}, noise=noise, **METHOD)
        assert report.unsafe() == words
        assert words in repr(report)
        for line in (report.unsafe(), report.estimated()):
            assert html.escape(line) in report._repr_html_()


def test_a_bulk_that_is_no_noise_is_told():
    scaled = np.random.default_rng(0).standard_normal((900, 600)) @ np.diag(
        np.linspace(0.5, 2, 600)
    )
    (row,) = rmtspec.analyze_many({"W": scaled}, **METHOD).rows
    assert row["count_is_safe"] is False
    mixed = np.random.default_rng(0).standard_normal((700, 550)).astype(np.float32)
    low = mixed @ np.random.default_rng(1).standard_normal((550, 600)).astype(np.float32)
    (row,) = rmtspec.analyze_many({"W": low}, **METHOD).rows
    assert row["count_is_safe"] is False
    assert Why.of(row["verdict_reason"])[1] in (Why.TRACE_DIFFERS, Why.MANY_SPIKES)


@pytest.mark.parametrize("rank", [1, 100, 280])
def test_a_matrix_of_low_rank_has_no_noise_that_could_be_told(rank):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((700, rank)) @ rng.standard_normal((rank, 600))
    report = rmtspec.analyze_many({"W": W.astype(np.float32)}, **METHOD)
    (row,) = report.rows
    assert Why.of(row["verdict_reason"]) == (Why.ESTIMATED, Why.NOISE_UNKNOWN)
    assert row["n_spikes_low"] <= rank <= row["n_spikes_high"] == 600
    assert row["variance"] <= 2.0 * row["variance_error"]
    report.to_html()


def test_more_spikes_than_are_looked_for(tmp_path):
    report = rmtspec.analyze_many({"W": spiked((1400, 1200), np.linspace(5, 10, 420))}, **METHOD)
    (row,) = report.rows
    assert row["n_spikes_low"] <= 420 <= row["n_spikes_high"] < 500
    assert Why.of(row["verdict_reason"]) == (Why.ESTIMATED, Why.MANY_SPIKES)
    exact = rmtspec.analyze_many({"W": spiked((1400, 1200), np.linspace(5, 10, 420))})["W"]
    assert row["energy_share"] == pytest.approx(exact["energy_share"], rel=0.02)
    report.to_html(tmp_path / "r.html")


def test_a_journal_keeps_the_rounding(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    codes = gguf.quants.quantize(spiked((420, 320)), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    first = rmtspec.analyze_checkpoint(tmp_path / "a.gguf", journal=tmp_path / "j", **METHOD)
    again = rmtspec.analyze_checkpoint(tmp_path / "a.gguf", journal=tmp_path / "j", **METHOD)
    (row,) = first.rows
    assert (row["method"], row["quantised"]) == ("stochastic", "Q8_0")
    assert 0.0 < row["rounding_edge"] < row["bulk_edge"]
    assert again.rows == first.rows


class Quantised:
    """A matrix in whole steps, as a quantised file has it."""

    sides, step = (420, 300), 0.5

    def __call__(self):
        return np.round(spiked(self.sides) / self.step) * np.float32(self.step)

    def rounding(self):
        return "Q", np.full(self.sides, self.step)


def test_the_rounding_of_a_quantised_matrix():
    (row,) = rmtspec.analyze_many({"W": Quantised()}, **METHOD).rows
    (true,) = rmtspec.analyze_many({"W": Quantised()}).rows
    assert row["method"] == "stochastic"
    for key in ("quantised", "rounding_variance", "rounding_edge"):
        assert row[key] == true[key]
    assert abs(row["n_below_rounding"] - true["n_below_rounding"]) < 12


def test_a_device_is_refused():
    with pytest.raises(InvalidOptionError, match=r"`device` is 'cpu'.*works on the CPU.*Leave"):
        rmtspec.analyze_checkpoint("none.safetensors", device="cpu", **METHOD)


def test_heavy_tails_are_told():
    heavy = np.random.default_rng(0).standard_t(4, (600, 400))
    (row,) = rmtspec.analyze_many({"W": heavy}, **METHOD).rows
    assert row["count_is_safe"] is False
    assert Why.of(row["verdict_reason"]) == (Why.ESTIMATED, Why.HEAVY_TAILS)
    (row,) = rmtspec.analyze_many({"W": spiked()}, **METHOD).rows
    assert row["count_is_safe"] is True


def test_the_same_with_two_workers_and_another_with_another_seed(source):
    one = rmtspec.analyze_many(source, rng=3, **METHOD)
    with joblib.parallel_config("threading"):  # other processes estimate from 4096 on
        two = rmtspec.analyze_many(source, rng=3, n_jobs=2, **METHOD)
    other = rmtspec.analyze_many(source, rng=4, **METHOD)
    assert [{**row, "seconds": 0} for row in one.rows] == [
        {**row, "seconds": 0} for row in two.rows
    ]
    assert one["large"]["variance_error"] != other["large"]["variance_error"]


@pytest.mark.parametrize(
    "options",
    [{"precision": "float32"}, {"eigensolver": np.linalg.eigvalsh}, {"quantiles": "paper"},
     {"refine": False}, {"cutoff": 0.1}, {"noise": "equalized"}, {"rule": "exact"},
     {"rule": "energy", "keep": 0.9}, {"metrics": True}],
)  # fmt: skip
def test_what_an_estimate_cannot_honour_is_refused_first(options):
    (name, *_) = options
    with pytest.raises(InvalidOptionError, match=rf"`{name}`.*'stochastic'.*Leave out `{name}`"):
        rmtspec.analyze_many({"W": lambda: pytest.fail("read")}, **METHOD, **options)


def test_what_gives_a_spectrum_refuses_the_method():
    W = spiked()
    with pytest.raises(InvalidOptionError, match=r"rmtspec\.estimate_spectrum\(W\)"):
        rmtspec.spectrum(W, "stochastic")
    with pytest.raises(InvalidOptionError, match=r"rmtspec\.estimate_spectrum\(W\)"):
        rmtspec.analyze(W, method="stochastic")


@pytest.mark.parametrize("call", [rmtspec.choose_rank, rmtspec.fit_noise, rmtspec.analyze])
def test_an_estimate_is_no_matrix(call):
    with pytest.raises(InvalidTypeError, match="estimated spectrum has no singular values"):
        call(rmtspec.estimate_spectrum(spiked()))


def test_pruning_refuses_it(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a.weight": spiked()})
    with pytest.raises(InvalidOptionError, match=r"pruning needs singular values and vectors"):
        rmtspec.prune_checkpoint(tmp_path / "a.safetensors", tmp_path / "out", **METHOD)
    assert not (tmp_path / "out").exists()


def test_what_is_no_matrix_is_skipped_with_its_reason():
    source = {"ragged": [[1.0, 2.0], [3.0]], "text": "abc", "cube": np.zeros((300, 300, 3))}
    report = rmtspec.analyze_many({**source, "huge": spiked(dtype=float) * 1e150}, **METHOD)
    exact = rmtspec.analyze_many({**source, "huge": spiked(dtype=float) * 1e150})
    assert not report.rows
    assert report.skipped == exact.skipped


def test_what_cannot_be_estimated_is_skipped_or_computed():
    bad, padded = spiked(), np.zeros((420, 300), np.float32)
    bad[3, 4] = np.nan
    padded[:, :200] = spiked((420, 200))
    report = rmtspec.analyze_many(
        {"bad": bad, "padded": padded, "zero": np.zeros((300, 300)), "good": spiked()}, **METHOD
    )
    (entry,) = report.skipped
    assert entry["name"] == "bad"
    assert "1 nan" in entry["reason"]
    assert [row["method"] for row in report.rows] == ["gram", "gram", "stochastic"]
    exact = rmtspec.analyze_many({"padded": padded, "zero": np.zeros((300, 300))})
    for row in exact.rows:  # what is small without its zeros has all its eigenvalues
        assert {**report[row["name"]], "seconds": 0} == {**row, "seconds": 0}


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_other_dtypes(dtype):
    W = (100.0 * spiked()).astype(dtype)
    (row,) = rmtspec.analyze_many({"W": W}, beta=0.01, **METHOD).rows
    assert (row["method"], row["dtype"], row["n_spikes"]) == ("stochastic", dtype, 2)


def test_options_of_the_rank_hold(source):
    report = rmtspec.analyze_many(source, bulk_keep=0.5, min_rank=7, **METHOD)
    assert report["large"]["rank"] == 2 + (300 - 2) // 2
    report = rmtspec.analyze_many(source, min_rank=7, **METHOD)
    assert report["large"]["rank"] == 7


def test_a_journal_gives_the_same_report(tmp_path, source, monkeypatch):
    file, journal = tmp_path / "a.safetensors", tmp_path / "j"
    write_safetensors(file, source)
    first = rmtspec.analyze_checkpoint(file, journal=journal, **METHOD)
    monkeypatch.setattr(estimated, "estimate_spectrum", lambda *_, **__: pytest.fail("again"))
    again = rmtspec.analyze_checkpoint(file, journal=journal, **METHOD)
    assert again.rows == first.rows
    for name, one in first.estimates.items():
        other = again.estimates[name]
        for key in one.__slots__:
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    with pytest.raises(FileError, match="other options"):
        rmtspec.analyze_checkpoint(file, journal=journal)


@pytest.mark.parametrize(
    "damage",
    [lambda e: e["estimate"].pop("nodes"), lambda e: e["estimate"].update(p=0),
     lambda e: e["estimate"].update(variance=-1.0), lambda e: e["estimate"].update(steps=7),
     lambda e: e["estimate"].update(shape=[7, 300]), lambda e: e.update(estimate=None)],
)  # fmt: skip
def test_a_damaged_line_is_told(tmp_path, source, damage):
    from rmtspec.runs import analyze as _scan

    file, journal = tmp_path / "a.safetensors", tmp_path / "j"
    write_safetensors(file, source)
    rmtspec.analyze_checkpoint(file, journal=journal, **METHOD)
    header = {
        "command": "analyze", "checkpoint": _scan.fingerprint(_scan.matrices_in(file)),
        "settings": _scan.AnalysisOptions(**METHOD).settings
        | _scan.Selection(None, None).settings,
        "versions": _scan.versions(),
    }  # fmt: skip
    with _scan.open_journal(journal, header) as opened:
        entry = json.loads(json.dumps(next(e for e in opened.entries if "estimate" in e)))
        damage(entry)
        opened.add(entry)
    with pytest.raises(FileError, match=r"in the journal is damaged"):
        rmtspec.analyze_checkpoint(file, journal=journal, **METHOD)


def test_too_little_memory_names_the_way_out(monkeypatch):
    class Huge:
        sides = (2**17, 2**17)

        def __call__(self):
            pytest.fail("read")

    report = rmtspec.analyze_many({"W": Huge()}, noise="mp")
    (entry,) = report.skipped
    assert Why.of(entry["reason"]) == (Why.MEMORY,)
    assert "an estimate, by the method 'stochastic', takes" in entry["reason"]
    monkeypatch.setattr("rmtspec.checkpoint.memory.free_memory", lambda: 10**6)
    (entry,) = rmtspec.analyze_many({"W": Huge()}, **METHOD).skipped
    assert "an estimate" not in entry["reason"]


def test_memory_is_what_was_said(source):
    import tracemalloc

    W = spiked((3000, 1000))
    _estimate.estimate_spectrum(W)
    tracemalloc.start()
    _estimate.estimate_spectrum(W)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _estimate.memory_of_estimate(1000) + 2**25


def test_a_spectrum_is_taken_as_it_is():
    report = rmtspec.analyze_many({"W": rmtspec.spectrum(spiked())}, **METHOD)
    assert report["W"]["method"] == "gram"


def test_an_estimate_survives_its_dictionary():
    found = rmtspec.estimate_spectrum(spiked())
    again = rmtspec.SpectrumEstimate.from_dict(json.loads(json.dumps(found.to_dict())))
    for key in found.__slots__:
        np.testing.assert_array_equal(getattr(found, key), getattr(again, key))
    assert again.law == found.law


def test_the_density_integrates_to_one():
    found = rmtspec.estimate_spectrum(spiked())
    edges = np.linspace(0.0, 1.1 * found.largest[0], 500)
    heights, errors = found.density(edges)
    assert float(heights @ np.diff(edges)) == pytest.approx(1.0, abs=1e-12)
    assert errors.shape == heights.shape
    assert (errors >= 0.0).all()


def test_wrong_seeds_are_refused_before_work():
    with pytest.raises(InvalidValueError):
        rmtspec.analyze_many({"W": lambda: pytest.fail("read")}, rng=-1, **METHOD)
