"""What `compare` says of a change: its rank, its kind, what it turns and touches."""

import json

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.matrix.subspaces import leading_vectors, lies_within, principal_angles


def low_rank(rank, strength, seed=0, shape=(600, 400)):
    """A matrix with `rank` equal singular values: strength times the detection limit of noise 1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    return strength * (shape[0] * shape[1]) ** 0.25 * left @ right.T


def base(shape=(600, 400), seed=7):
    return rmtspec.ensembles.spiked(*shape, [3, 5, 8], variance=0.01, rng=seed)


def test_a_planted_change_under_noise_has_its_rank_in_its_interval():
    """At 1.5 times the limit, where components are just separable; false alarms at 0.1."""
    inside = []
    for seed in range(10):
        noise = np.random.default_rng(100 + seed).standard_normal((600, 400))
        change = 1e-3 * (low_rank(16, 1.5, seed) + noise)
        before = base().astype("float32")
        row = rmtspec.compare(before, (before + change).astype("float32")).rows[0]
        assert row["change"] == "low rank and noise"
        assert abs(row["rank"] - 16) <= 2
        assert not row["rank_is_exact"]
        inside.append(row["rank_low"] <= 16 <= row["rank_high"])
    assert sum(inside) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(512, 512), (1000, 784), (1500, 600)])
def test_the_same_at_other_sizes(shape):
    inside = []
    for seed in range(10):
        noise = np.random.default_rng(100 + seed).standard_normal(shape)
        before = base(shape)
        after = before + 1e-3 * (low_rank(16, 1.5, seed, shape) + noise)
        row = rmtspec.compare(before, after).rows[0]
        inside.append(row["rank_low"] <= 16 <= row["rank_high"])
    assert sum(inside) >= 9


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rank", [1, 6, 32])
def test_an_exact_change_has_its_exact_rank(dtype, rank):
    """Only the rounding of the sum is beside it, as after an adapter was merged."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    strength = 0.05 if kind.itemsize == 2 else 1e-3
    before = base((300, 200)).astype(kind)
    after = (before.astype(float) + strength * low_rank(rank, 1.0, shape=(300, 200))).astype(kind)
    row = rmtspec.compare(before, after).rows[0]
    assert (row["change"], row["rank"], row["rank_is_exact"]) == ("low rank", rank, True)
    assert (row["rank_low"], row["rank_high"]) == (rank, rank)
    assert row["bulk_is_rounding"]


@pytest.mark.parametrize("scale", [3.0, 10.0, 100.0])
def test_a_little_noise_is_not_taken_for_a_rank(scale):
    """Square noise reaches down to 0, so that some of it is always below the rounding."""
    before = base((256, 256)).astype("float16")
    ulp = 2.0**-11 * np.abs(before.astype(float)).mean()
    noise = np.random.default_rng(1).standard_normal((256, 256))
    row = rmtspec.compare(before.astype(float), before.astype(float) + scale * ulp * noise).rows[0]
    assert (row["change"], row["rank"]) == ("noise", 0)
    row = rmtspec.compare(before, (before.astype(float) + scale * ulp * noise).astype("f2")).rows[0]
    assert row["rank"] <= 1
    assert row["change"] in ("noise", "rounding", "low rank and noise")


def test_noise_beside_a_strong_change_is_not_rounding():
    before = base((300, 200)).astype("float32")
    rng = np.random.default_rng(5)
    step = float(np.abs(np.spacing(before)).mean()) / 12**0.5
    noise = 20 * step * rng.standard_normal((300, 200))
    after = (before + low_rank(3, 0.1, shape=(300, 200)) + noise).astype("float32")
    row = rmtspec.compare(before, after).rows[0]
    assert row["change"] == "low rank and noise"
    assert row["rank_low"] <= 3 <= row["rank_high"]
    assert not row["bulk_is_rounding"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_rounding_is_told_from_a_change(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    before = base((200, 150)).astype("float32")
    for pair in ((before, before.astype(kind)), (before.astype(kind), before)):
        row = rmtspec.compare(*pair).rows[0]
        assert (row["change"], row["rank"], row["spikes_touched"]) == (
            "rounding", 0, 0,
        )  # fmt: skip
    change = 0.3 * low_rank(4, 1.0, shape=(200, 150))
    row = rmtspec.compare(before, (before + change).astype(kind)).rows[0]
    assert row["change"] in ("low rank", "low rank and noise")
    assert row["rank"] == 4


def test_a_cast_with_errors_of_low_rank_is_rounding():
    """The difference is of rank 1 then, but no change: its spectrum alone would not tell."""
    before = np.full((60, 40), 0.1, dtype="float32")  # all errors are the same
    row = rmtspec.compare(before, before.astype("float16")).rows[0]
    assert (row["change"], row["rank"]) == ("rounding", 0)


def test_two_formats_of_the_same_numbers():
    values = base((200, 150)).astype("float32")
    row = rmtspec.compare(values.astype("float16"), values.astype(ml_dtypes.bfloat16)).rows[0]
    assert (row["change"], row["dtype_before"], row["dtype_after"]) == (
        "rounding", "float16", "bfloat16",
    )  # fmt: skip


def test_noise_and_structure():
    before = base((300, 200))
    noise = np.random.default_rng(3).standard_normal((300, 200))
    row = rmtspec.compare(before, before + 0.01 * noise).rows[0]
    assert (row["change"], row["verdict"]) == ("noise", "noise-like bulk")
    assert row["rank_low"] == 0
    walk = np.cumsum(np.cumsum(noise, axis=0), axis=1)  # neighbours are alike
    row = rmtspec.compare(before, before + 0.01 * walk).rows[0]
    assert row["change"] == "structured"


def test_norms_and_spectra_are_those_of_the_matrices():
    before, after = base((120, 90)), base((120, 90), seed=8)
    row = rmtspec.compare(before, after).rows[0]
    change = np.linalg.norm(after - before)
    assert_allclose(row["relative_change"], change / np.linalg.norm(before), rtol=1e-10)
    assert_allclose(row["norm_of_change"], change, rtol=1e-10)
    assert_allclose(row["norm_after"], np.linalg.norm(after), rtol=1e-10)
    s = np.linalg.svd(after - before, compute_uv=False)
    assert_allclose(row["stable_rank"], (change / s[0]) ** 2, rtol=1e-8)
    shares = s / s.sum()
    assert_allclose(row["effective_rank"], np.exp(-(shares * np.log(shares)).sum()), rtol=1e-8)
    for part, matrix in (("before", before), ("after", after)):
        report = rmtspec.analyze(matrix)
        assert row[f"n_spikes_{part}"] == report.fit.n_spikes
        assert row[f"bulk_edge_{part}"] == report.fit.bulk_edge
        assert row[f"variance_{part}"] == report.fit.variance


def test_subspaces_by_principal_angles():
    before = base((300, 200))
    row = rmtspec.compare(before, before + 1e-4 * np.eye(300, 200)).rows[0]
    assert row["components"] == 3  # no more than there are spikes
    assert min(row["left_overlap"], row["right_overlap"]) > 0.999
    left, right = leading_vectors(before, 3)
    turned = before - 2 * np.outer(left[:, 0], left[:, 0]) @ before  # the same, with a sign
    assert rmtspec.compare(before, turned).rows[0]["left_angle"] < 1e-3
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    row = rmtspec.compare(before, rotation @ before, components=2).rows[0]
    assert row["components"] == 2
    assert row["right_overlap"] > 0.999
    assert row["left_overlap"] < 0.1  # 2 / 300 by chance
    assert row["left_angle"] > 60
    assert right.shape == (200, 3)


def test_angles_between_planes():
    turned = np.zeros((5, 2))
    for column, angle in enumerate(np.radians([60.0, 10.0])):
        turned[column, column], turned[column + 2, column] = np.cos(angle), np.sin(angle)
    assert_allclose(principal_angles(np.eye(5)[:, :2], turned), [10.0, 60.0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (400, 300)])
def test_leading_vectors_are_those_of_the_svd(shape):
    W = rmtspec.ensembles.spiked(*shape, [9, 7, 5], rng=1)
    left, right = leading_vectors(W, 3)
    u, _, vt = np.linalg.svd(W, full_matrices=False)
    assert_allclose(np.abs(np.sum(left * u[:, :3], axis=0)), 1.0, rtol=1e-9)
    assert_allclose(np.abs(np.sum(right * vt[:3].T, axis=0)), 1.0, rtol=1e-9)
    assert_allclose(principal_angles(left, u[:, :3]), 0.0, atol=1e-4)


def test_spikes_that_a_change_touches():
    before = base((300, 200))
    left, right = leading_vectors(before, 3)
    change = 0.5 * np.outer(left[:, 1], right[:, 1])
    made = rmtspec.compare(before, before + change).matrices["W"]
    assert (made.touched, made.tried) == ((1,), 3)
    # A direction at random touches none: 0.01 for all together.
    rng = np.random.default_rng(0)
    span = np.linalg.qr(rng.standard_normal((300, 16)))[0]
    alarms = [
        lies_within(np.linalg.qr(rng.standard_normal((300, 8)))[0], span).any() for _ in range(500)
    ]
    assert sum(alarms) <= 12  # 5 expected


def test_nothing_changed():
    done = rmtspec.compare({"a": base((40, 30)), "b": np.eye(20)}, {"a": base((40, 30)),
                                                                    "b": np.eye(20)})  # fmt: skip
    assert done.counts == {"unchanged": 2}
    assert done.summary() == "2 matrices compared: 2 unchanged"
    row = done.row("a")
    assert (row["relative_change"], row["rank"], row["reason"]) == (0.0, 0, "")


def test_what_cannot_be_compared_is_listed():
    nan = base((40, 30)).copy()
    nan[2, 3] = np.nan
    before = {"same": base((40, 30)), "shape": np.ones((3, 4)), "old": np.eye(3), "nan": nan,
              "vector": np.ones(3)}  # fmt: skip
    after = {"same": base((40, 30)), "shape": np.ones((4, 3)), "new": np.eye(3),
             "nan": base((40, 30)), "vector": np.ones(3)}  # fmt: skip
    done = rmtspec.compare(before, after)
    assert [row["name"] for row in done] == ["same"]
    reasons = {entry["name"]: entry["reason"] for entry in done.skipped}
    assert reasons["shape"] == "its shape was (3, 4) and is (4, 3)"
    assert reasons["old"] == "only in a"
    assert reasons["new"] == "only in b"
    assert reasons["nan"].startswith("in a: `W` has 1 nan")
    assert "2 dimensions" in reasons["vector"]
    with pytest.raises(InvalidValueError, match=r"Nothing in a and b could be compared\.\n  1 \(x"):
        rmtspec.compare({"x": np.eye(3)}, {"y": np.eye(4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "gamma"}, "`noise` is 'gamma'; expected one of screened, auto, mp"),
        ({"components": 0}, "`components` is 0; expected a whole number at least 1"),
        ({"beta": 1.5}, r"`beta` is 1\.5; expected a number in \(0, 1\)"),
        ({"n_jobs": 0}, "`n_jobs` is 0"),
        ({"include": "("}, "is not a regular expression"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        rmtspec.compare(np.eye(4), np.eye(4), **options)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (None, np.eye(3), "`a` is None; expected a path"),
        ({1: np.eye(3)}, {1: np.eye(3)}, r"`a` names a matrix 1 \(int\); expected text"),
        (b"m.safetensors", np.eye(3), "expected a path"),
        (np.eye(3, dtype=complex), np.eye(3), "`a` is complex"),
    ],
)
def test_wrong_sides(a, b, message):
    with pytest.raises(InvalidTypeError, match=message):
        rmtspec.compare(a, b)
    with pytest.raises(InvalidValueError, match="`a` is empty"):
        rmtspec.compare({}, {})


def test_the_same_in_several_processes():
    before = {str(i): base((60, 40), seed=i) for i in range(3)}
    after = {name: matrix + low_rank(2, 0.1, shape=(60, 40)) for name, matrix in before.items()}
    seen = []
    one = rmtspec.compare(before, after, progress=lambda *step: seen.append(step))
    two = rmtspec.compare(before, after, n_jobs=2)
    rows = [[{**row, "seconds": 0} for row in done] for done in (one, two)]
    assert rows[0] == rows[1]
    assert seen == [(1, 3, "0"), (2, 3, "1"), (3, 3, "2")]


def test_files_of_a_comparison(tmp_path):
    hostile = "<script>alert(1)</script>"
    before = {hostile: base((60, 40)), "=b": base((60, 40), seed=1)}
    after = {hostile: base((60, 40)) + low_rank(2, 0.1, shape=(60, 40)), "=b": before["=b"]}
    done = rmtspec.compare({**before, "\u202egone": np.eye(3)}, after)
    for suffix in (".json", ".csv", ".html"):
        done.save(tmp_path / f"c{suffix}")
    content = json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert content["schema"] == 1
    assert content["rows"][0]["name"] == hostile
    assert [entry["name"] for entry in content["skipped"]] == ["\u202egone"]
    table = (tmp_path / "c.csv").read_text().splitlines()
    assert table[0].startswith("name,kind,rows,columns,")
    assert table[2].startswith("'=b,")
    page = (tmp_path / "c.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert "prefers-color-scheme" in page
    assert hostile not in done._repr_html_()
    assert "low rank" in done._repr_html_()
    frame = done.to_pandas()
    assert list(frame["rank"]) == [2, 0]
    with pytest.raises(InvalidValueError, match=r"suffix '\.txt'"):
        done.save(tmp_path / "c.txt")
    with pytest.raises(InvalidValueError, match="No row is named 'x'"):
        done.row("x")


def test_the_table_for_people():
    before = {"fc": base((60, 40))}
    done = rmtspec.compare(before, {"fc": before["fc"] + low_rank(2, 0.1, shape=(60, 40))})
    lines = repr(done).splitlines()
    assert lines[0] == "Comparison: 1 matrix compared: 1 low rank"
    assert lines[1].split()[:5] == ["name", "size", "change", "relative", "rank"]
    assert "60 x 40" in lines[2]
    assert len(done) == 1
