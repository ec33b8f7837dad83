"""What the headline of a report counts: savings of matrices that pass, and of no others."""

import html
import re

import numpy as np
import pytest

import rmtspec

RNG = np.random.default_rng(2)
PASSES, FAILS, SMALL = "passes", "orthogonal", "small"
MATRICES = {
    PASSES: rmtspec.ensembles.spiked(120, 90, [5, 20], rng=0),
    FAILS: np.linalg.qr(RNG.standard_normal((100, 60)))[0],
    SMALL: RNG.standard_normal((200, 12)),
}
SIZES = {name: W.size for name, W in MATRICES.items()}


def after(rank, rows, columns):
    return rank * (rows + columns)


@pytest.fixture(scope="module")
def report():
    return rmtspec.analyze_many(MATRICES, noise="auto", beta=0.01, bulk_keep=0.1)


def test_only_matrices_that_pass_are_counted(report):
    rows = {row["name"]: row for row in report.rows}
    assert [rows[name]["saves"] for name in MATRICES] == [True, True, True]
    assert [rows[name]["verdict"] for name in MATRICES] == [
        "noise-like bulk", "no noise-like bulk", "cannot tell"
    ]  # fmt: skip
    assert not rows[SMALL]["reliable"]
    kept = after(rows[PASSES]["rank"], 120, 90)
    total = sum(SIZES.values())
    assert report.parameters_before == total
    assert report.parameters_after == kept + SIZES[FAILS] + SIZES[SMALL]
    share = f"{report.parameters_after / total:.1%}"
    apart = SIZES[FAILS] - after(rows[FAILS]["rank"], 100, 60)  # not of the small one
    assert report.kept() == (
        f"{report.parameters_after:,} of {total:,} parameters kept ({share}); "
        f"1 matrix not known to have a noise-like bulk would save {apart:,} more"
    )
    assert report.kept() in repr(report)


def test_the_page_counts_the_same(report):
    words = " ".join(re.sub(r"<[^>]*>", " ", html.unescape(report.to_html())).split())
    saved = report.parameters_before - report.parameters_after
    total = sum(SIZES.values())
    assert (
        "1 of 3 matrices has a noise-like bulk, 1 shows something else than noise and "
        "1 cannot be judged. "
        f"Splits at the noise edge would save {saved:,} of {total:,} parameters "
        f"({saved / total:.1%}), counted over the one matrix that passes."
    ) in words
    held = (SIZES[FAILS] + SIZES[SMALL]) / total
    assert f"What the other 2, {held:.1%} of the parameters, can lose is not told by" in words


def test_with_the_papers_gamma_the_fit_decides():
    gamma = rmtspec.analyze_many(MATRICES, beta=0.01, bulk_keep=0.1, cutoff=0.1)
    rows = {row["name"]: row for row in gamma.rows}
    assert rows[PASSES]["accepted"]
    assert not rows[FAILS]["accepted"]
    assert gamma.parameters_after == (
        after(rows[PASSES]["rank"], 120, 90) + SIZES[FAILS] + SIZES[SMALL]
    )
    assert re.search(r"; 1 matrix whose fit is rejected would save [\d,]+ more$", gamma.kept())


def test_where_all_fail_nothing_is_saved():
    report = rmtspec.analyze_many({n: MATRICES[n] for n in (FAILS, SMALL)}, noise="auto")
    assert report.parameters_after == report.parameters_before
    assert "(100.0%)" in report.kept()


def test_counts_that_are_not_safe_are_said_with_the_way_to_count(report):
    heavy = {f"heavy {i}": np.random.default_rng(i).standard_t(3, (120, 90)) for i in range(2)}
    low = np.outer(np.arange(1.0, 41.0), np.arange(1.0, 31.0))  # has no count
    scan = rmtspec.analyze_many({**MATRICES, **heavy, "low": low})
    assert {r["name"] for r in scan.rows if r["count_is_safe"] is False} == {*heavy, "low"}
    words = "2 counts of spikes are not safe (see the verdict): count with noise='auto'"
    assert scan.unsafe() == words
    assert f"\n  {words}\n" in repr(scan)
    assert f"{words}." in html.unescape(scan.to_html())
    one = rmtspec.analyze_many({"heavy": heavy["heavy 0"]})
    assert one.unsafe() == "1 count of spikes is" + words.removeprefix("2 counts of spikes are")
    assert report.unsafe() == rmtspec.analyze_many(heavy, noise="auto").unsafe() == ""
    assert "not safe" not in report.to_html() + repr(report)
    bare = {"bare": rmtspec.Spectrum(np.linspace(0.1, 2, 40), n=60)}  # no other way to count it
    assert rmtspec.analyze_many(bare, noise="auto").unsafe() == ""
