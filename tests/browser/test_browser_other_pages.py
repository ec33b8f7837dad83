"""The pages of comparisons and trade-offs in a browser: nothing cut, nothing asked, axe content."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

import rmtspec
from rmtspec.report.trade_off import TradeOff

pytestmark = pytest.mark.browser

NAMES = ["model.layers.0.up_proj.weight", "x" * 300, "</script><b>", "שלום.weight"]


def comparison(place):
    rng = np.random.default_rng(0)
    before = {name: rmtspec.ensembles.spiked(80, 50, [4, 9], rng=i) for i, name in enumerate(NAMES)}
    after = {name: W + 0.05 * rng.standard_normal(W.shape) for name, W in before.items()}
    return rmtspec.compare({**before, "only here": np.ones((30, 20))}, after).save(place)


def trade_off(place):
    row = {
        "budget": None, "kept": 1.0, "parameters": 100, "bytes": 400, "n_split": 0,
        "predicted_loss": None, "measured": 18.7, "change": None, "seconds": 1.0, "latency": None,
    }  # fmt: skip
    smaller = row | {
        "budget": 0.8,
        "kept": 0.8,
        "n_split": 3,
        "predicted_loss": 0.1,
        "measured": 22.0,
    }
    TradeOff(row, [smaller | {"change": 3.3}]).to_html(place)
    return place


@pytest.mark.parametrize("make", [comparison, trade_off])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_read_by_everyone(visit, tmp_path, make, scheme, width):
    page = visit(make(tmp_path / "page.html"), width=width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_names_stay_text(visit, tmp_path):
    page = visit(comparison(tmp_path / "page.html"))
    assert page.locator("main b, body > b, table b").count() == 0
    assert "</script><b>" in page.locator("body").inner_text()
