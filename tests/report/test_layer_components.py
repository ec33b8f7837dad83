"""The components of a matrix read as images, tokens and examples; the result for people."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import rmtspec
from rmtspec.errors import InvalidValueError
from rmtspec.report.layer_components import LayerComponents
from rmtspec.report.options import AnalysisOptions
from rmtspec.report.read_layer import Reading, TokenTable, read_layer

OPTIONS = AnalysisOptions(noise="mp", kind="linear")
W = rmtspec.ensembles.spiked(100, 64, [3, 6], rng=0)


def read(matrix=W, name="fc", **options):
    return read_layer(matrix, name, Reading(**{"k": 4, **options}), OPTIONS)


def test_strengths_are_those_of_the_report():
    found = read()
    spec = found.report.spectrum
    assert_allclose([d.singular_value for d in found], spec.singular_values[::-1][:4])
    assert_allclose([d.eigenvalue for d in found], spec.eigenvalues[::-1][:4])
    assert [d.beyond for d in found] == [True, True, False, False]
    assert found.report.noise.n_components == 2
    assert_allclose(found[1].strength, 3, rtol=0.2)
    assert math.isnan(found[2].strength)
    assert found[0].right_overlap > 0.95
    for direction in found:
        s = np.linalg.norm(W @ direction.right)
        assert_allclose(s, direction.singular_value, rtol=1e-10)
        assert_allclose(W @ direction.right, s * direction.left, atol=1e-8)


def test_the_random_direction_is_of_the_seed_and_acts_as_an_average_one():
    one, same, other = read(rng=1), read(rng=1), read(rng=2)
    assert_allclose(one.random.right, same.random.right)
    assert abs(one.random.right @ other.random.right) < 0.5
    assert_allclose(np.linalg.norm(one.random.right), 1.0)
    typical = np.linalg.norm(W) / math.sqrt(64)
    assert 0.5 < one.random.singular_value / typical < 2.0
    assert one.random.label == "random"
    assert one.random.beyond is None


def test_not_known_is_neither_yes_nor_no():
    rng = np.random.default_rng(0)
    found = read(rng.standard_normal((60, 3)) @ rng.standard_normal((3, 40)), k=3)
    assert "only rounding is left beyond rank 3" in repr(found)
    assert [d.beyond for d in found] == [None] * 3
    assert "not known" in repr(found)
    assert "unknown how many beyond the noise" in repr(found)
    assert found.to_dict()["components"][0]["beyond"] is None


def test_more_components_than_the_rank_are_refused():
    rng = np.random.default_rng(0)
    low = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 40))
    with pytest.raises(InvalidValueError, match=r"`k` is 6; expected .* 1 to 5\..*has rank 5"):
        read(low, k=6)
    assert len(read(low, k=5)) == 5


def test_images_of_the_three_layouts():
    vector = read()[0].right
    assert_allclose(read(image_shape=(8, 8))[0].image, vector.reshape(8, 8))
    assert read(image_shape=(4, 4, 4))[0].image.shape == (4, 4, 4)
    assert read(image_shape=(1, 8, 8))[0].image.shape == (8, 8)
    last = read(image_shape=(4, 16, 1), channels_last=True)[0].image
    assert_allclose(last, vector.reshape(4, 16))
    last = read(image_shape=(8, 2, 4), channels_last=True)[0].image
    assert_allclose(last[3], vector.reshape(8, 2, 4)[:, :, 3])


def tables(side, rows, **more):
    return [TokenTable(side=side, text=lambda i: f"<t{i}>", blocks=lambda: [rows], **more)]


def test_a_planted_token_is_found_on_its_side():
    rng = np.random.default_rng(0)
    plain = read()
    rows = rng.standard_normal((500, 64))
    rows[123], rows[45] = plain[0].right * 7, -plain[1].right
    found = read(tables=tables("in", rows))
    first, second = found[0].tokens["in"], found[1].tokens["in"]
    assert first.towards[0][:2] == ("<t123>", 123)
    assert second.against[0][:2] == ("<t45>", 45)
    assert_allclose([first.nearness, second.nearness], 1.0)
    assert first.pvalue == second.pvalue == 0.01
    assert found[2].tokens["in"].pvalue > 0.01
    assert math.isnan(found.random.tokens["in"].pvalue)
    assert found.random_nearness["in"].shape == (99,)
    out = read(tables=tables("out", np.vstack([plain[0].left, np.eye(100)])))
    assert out[0].tokens["out"].towards[0].number == 0


def test_no_token_of_a_random_table_is_nearer_than_chance():
    # The p-values of 8 components at level .05: 2 or more below it have probability .06.
    rows = np.random.default_rng(5).standard_normal((400, 64))
    found = read(k=8, tables=tables("in", rows))
    assert sum(d.tokens["in"].pvalue <= 0.05 for d in found) < 2


def test_directions_are_seen_through_what_the_table_says():
    plain = read()
    scale = np.linspace(1, 3, 64)
    rows = np.vstack([np.eye(64), plain[0].right * scale])
    found = read(tables=tables("in", rows, seen=lambda d: d * scale[:, None]))
    assert found[0].tokens["in"].towards[0].number == 64
    assert_allclose(found[0].tokens["in"].nearness, 1.0)


def test_examples_that_drive_a_component_most():
    plain = read()
    rng = np.random.default_rng(2)
    inputs = [0.1 * rng.standard_normal((3, 64)) for _ in range(20)]
    inputs[7][2] = 5 * plain[0].right
    inputs[11][0] = -4 * plain[0].right
    found = read(inputs=inputs, most=3)
    first = found[0].examples
    assert first.indices[:2].tolist() == [7, 11]
    assert first.positions[:2].tolist() == [2, 0]
    assert_allclose(first.activations[:2], [5, -4])
    every = np.vstack(inputs)
    assert_allclose(first.rms, np.sqrt(np.mean((every @ plain[0].right) ** 2)))
    assert_allclose(found.random_rms, np.linalg.norm(every) / math.sqrt(60 * 64))
    assert "7 at 2 (+5), 11 at 0 (-4)" in repr(found)
    with pytest.raises(InvalidValueError, match="read nan or inf"):
        read(inputs=[np.full((1, 64), np.nan)])


def everything():
    rows = np.random.default_rng(0).standard_normal((50, 64))
    return read(
        image_shape=(8, 8), tables=tables("in", rows), inputs=list(rows[:, None]), notes=["a note"]
    )


def test_the_table_is_aligned_and_says_what_was_done():
    lines = repr(everything()).splitlines()
    assert lines[0].startswith("LayerComponents fc: linear, 100 x 64; 4 of 64 components shown, 2")
    assert "  a note" in lines
    start = next(i for i, line in enumerate(lines) if "singular value" in line)
    place = lines[start].index("beyond the noise")
    assert [line[place:].split()[0] for line in lines[start + 1 : start + 5]] == [
        "yes", "yes", "no", "no",
    ]  # fmt: skip
    assert lines[start + 5].split()[0] == "random"
    assert max(map(len, lines)) < 160


def test_the_page_of_a_notebook_is_safe_and_needs_nothing():
    hostile = "<script>alert(1)</script>"
    table = TokenTable(
        side="in", text=lambda i: f"{hostile}\x1b[31m{i}", blocks=lambda: [np.eye(64)]
    )
    found = read(name=hostile, image_shape=(8, 8), tables=[table], notes=[hostile])
    page = found._repr_html_()
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page
    assert "in the noise</figcaption>" in page
    assert "\x1b" not in page + repr(found)


def test_json_holds_everything_but_the_vectors():
    found = everything()
    values = json.loads(found.to_json())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == values
    assert (values["schema"], values["rows"], values["columns"]) == (1, 100, 64)
    first = values["components"][0]
    assert np.shape(first["image"]) == (8, 8)
    assert set(first["tokens"]["in"]["towards"][0]) == {"text", "number", "cosine"}
    assert len(first["examples"]["indices"]) == 5
    assert values["random"]["tokens"]["in"]["pvalue"] is None
    assert "left" not in first
    assert values["settings"]["draws"] == 99


def test_it_is_a_sequence_of_directions():
    found = everything()
    assert isinstance(found, LayerComponents)
    assert len(found) == 4
    assert [d.label for d in found] == ["1", "2", "3", "4"]
    assert found[-1] is found.directions[3]


def test_the_plot_shows_what_there_is():
    ax = everything().plot(Figure().subplots())
    assert len(ax.images) == 5
    assert [text.get_text() for text in ax.texts][2:] == [
        f"3: s = {everything()[2].singular_value:.3g}\nin the noise",
        f"4: s = {everything()[3].singular_value:.3g}\nin the noise",
        "random",
    ]
    rows = np.random.default_rng(0).standard_normal((50, 64))
    near = read(tables=tables("in", rows)).plot(Figure().subplots())
    assert "cosine" in near.get_ylabel()
    assert len(near.lines[-1].get_xdata()) == 4
    driven = read(inputs=list(rows[:, None])).plot(Figure().subplots())
    assert "activation" in driven.get_ylabel()
    assert "singular value" in read().plot(Figure().subplots()).get_ylabel()


def test_where_no_bulk_is_noise_nothing_is_called_noise():
    columns = np.exp(np.random.default_rng(0).normal(0, 1.5, 64))
    found = read(W * columns, k=40, image_shape=(8, 8))
    assert found.report.noise.verdict != "noise-like bulk"
    ax = found.plot(Figure().subplots())
    assert not any("in the noise" in text.get_text() for text in ax.texts)
