"""The paper's figures: the numbers measured at N = 1000, default_rng(0), and the files."""

import json

import numpy as np
import pytest
from matplotlib import pyplot

from rmtspec import reproduce as module
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.reproduce import FIGURES, reproduce_figure

PUBLISHED, DEFAULTS = "as published", "library defaults"


def numbers(paths):
    assert [path.suffix for path in paths] == [".png", ".svg", ".json"]
    return json.loads(paths[2].read_text())


def test_figure_2_has_the_measured_numbers(tmp_path, monkeypatch):
    drawn = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda *args: drawn.append(args[2]) or write(*args))
    record = numbers(reproduce_figure("fig-2", out=tmp_path))
    fit = record["fits"][PUBLISHED]["1000"]["first"]
    assert round(fit["variance"], 3) == 1.021
    assert round(fit["bulk_edge"], 3) == 4.083
    assert fit["bulk_edge"] == pytest.approx(4 * fit["variance"], rel=1e-12)  # the law at ratio 1
    assert fit["n_spikes"] == 10
    assert (fit["quantiles"], fit["refinement"]) == ("paper", "plain")
    assert max(fit["spikes"]) == pytest.approx(3.35e8, rel=2e-3)  # three digits are stated
    default = record["fits"][DEFAULTS]["1000"]["first"]
    assert (default["quantiles"], default["refinement"]) == ("midpoint", "refined")
    assert 10 <= default["n_spikes"] <= 12
    assert len(record["eigenvalues"]) == 1000
    (ax,) = drawn[0].axes
    assert ax.get_xlim() == (0.0, 8.0)
    assert any("of 10 spikes beyond 8" in text.get_text() for text in ax.texts)
    law = next(line for line in ax.get_lines() if line.get_label().startswith("Marchenko"))
    assert law.get_color() == "#c2371a"


def test_figure_3a_has_the_measured_numbers(tmp_path):
    record = numbers(reproduce_figure("fig-3a", out=tmp_path))
    assert (record["moving"], record["fixed"]) == ("alpha", {"beta": 0.5})
    assert (record["values"][0], record["values"][-1]) == (0.05, 0.45)
    published = record["lambda_plus"][PUBLISHED]["1000"]["mean"]
    assert [round(published[i], 3) for i in (0, -1)] == [4.067, 4.035]
    assert min(record["lambda_plus"][DEFAULTS]["1000"]["mean"]) > 3.935
    assert max(record["lambda_plus"][DEFAULTS]["1000"]["mean"]) < 3.955


def test_figure_3b_has_the_measured_numbers(tmp_path):
    record = numbers(reproduce_figure("fig-3b", out=tmp_path))
    assert (record["moving"], record["fixed"]) == ("beta", {"alpha": 0.25})
    for name, ends in ((PUBLISHED, [4.109, 4.002]), (DEFAULTS, [4.015, 3.892])):
        curve = record["lambda_plus"][name]["1000"]["mean"]
        assert [round(curve[i], 3) for i in (0, -1)] == ends
        assert (np.diff(curve) < 0).all()


@pytest.mark.parametrize("figure", FIGURES)
def test_writes_three_files_with_their_conditions(tmp_path, figure):
    before = pyplot.get_fignums()
    paths = reproduce_figure(figure, n=60, out=tmp_path / "new", seed=3)
    assert [path.name for path in paths] == [f"{figure}.{end}" for end in ("png", "svg", "json")]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(paths)  # nothing half-written left
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()
    record = numbers(paths)
    assert (record["schema"], record["figure"]) == (1, figure)
    assert (record["n"], record["seed"], record["seeds"], record["sizes"]) == (60, 3, [3], [60])
    assert record["settings"][PUBLISHED] == {"quantiles": "paper", "refine": False}
    assert {"rmtspec", "numpy", "scipy", "numba", "matplotlib", "python"} <= set(record["versions"])
    assert pyplot.get_fignums() == before


def test_same_input_same_bytes(tmp_path):
    first, second = (reproduce_figure("fig-3b", n=40, out=tmp_path / name) for name in "ab")
    for here, there in zip(first, second, strict=True):
        assert here.read_bytes() == there.read_bytes()


def test_seeds_give_mean_and_spread_at_several_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SIZES", (40, 60))
    record = numbers(reproduce_figure("fig-3b", n=50, out=tmp_path, seed=5, seeds=3))
    assert (record["seeds"], record["sizes"]) == ([5, 6, 7], [40, 50, 60])
    for by_size in record["lambda_plus"].values():
        assert sorted(by_size) == ["40", "50", "60"]
        for curve in by_size.values():
            each = np.array(curve["each_seed"])
            assert each.shape == (3, len(record["values"]))
            np.testing.assert_allclose(curve["mean"], each.mean(axis=0))
            np.testing.assert_allclose(curve["standard_deviation"], each.std(axis=0, ddof=1))
    record = numbers(reproduce_figure("example-3.3", n=50, out=tmp_path, seeds=2))
    spikes = record["fits"][PUBLISHED]["60"]["n_spikes"]
    assert len(spikes["each_seed"]) == 2
    assert spikes["mean"] == np.mean(spikes["each_seed"])


def test_one_seed_has_no_spread(tmp_path):
    record = numbers(reproduce_figure("fig-2", n=40, out=tmp_path))
    assert record["fits"][PUBLISHED]["40"]["variance"]["standard_deviation"] is None


def test_wrong_input_teaches(tmp_path):
    with pytest.raises(
        InvalidValueError, match=r"`figure` is 'fig-4'; expected one of example-3.3"
    ):
        reproduce_figure("fig-4", out=tmp_path)
    with pytest.raises(InvalidValueError, match=r"`n` is 5; expected a whole number at least 16"):
        reproduce_figure("fig-2", n=5, out=tmp_path)
    with pytest.raises(InvalidValueError, match=r"`seeds` is 1; .* A spread needs two"):
        reproduce_figure("fig-2", n=20, out=tmp_path, seeds=1)
    with pytest.raises(InvalidTypeError, match=r"3; expected text or a pathlib.Path"):
        reproduce_figure("fig-2", n=20, out=3)
    with pytest.raises(FileError, match=r"cannot be made: .* does not exist"):
        reproduce_figure("fig-2", n=20, out=tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"is a file; expected a folder"):
        reproduce_figure("fig-2", n=20, out=tmp_path / "file")
    (tmp_path / "taken" / "fig-2.png").mkdir(parents=True)
    with pytest.raises(FileError, match=r"is a folder; expected a file name"):
        reproduce_figure("fig-2", n=20, out=tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["fig-2.png"]
