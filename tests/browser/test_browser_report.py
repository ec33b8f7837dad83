"""The page of a report in a browser: what its buttons do, at every width, and who can read it."""

import io
import re
import time

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from pypdf import PdfReader

import rmtspec
from rmtspec.report import Report

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&amp;"
NAMES = [
    *(f"model.layers.{i}.{part}.weight" for i in range(11)
      for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")),
    "model.embed_tokens.weight", "lm_head.weight", HOSTILE, "שלום.weight", "🙂.weight",
    "x" * 300, "with space and | pipe",
]  # fmt: skip


def planted(name, seed):
    if seed % 7 == 3:  # no noise
        return np.linalg.qr(np.random.default_rng(seed).standard_normal((70, 50)))[0]
    return rmtspec.ensembles.spiked(80, 50, [4.0, 9.0, 300.0][: seed % 4], rng=seed)


@pytest.fixture(scope="module")
def report():
    matrices = {name: planted(name, seed) for seed, name in enumerate(NAMES)}
    return rmtspec.analyze_many({**matrices, "bias": np.ones(3)}, beta=0.01)


@pytest.fixture(scope="module")
def file(report, tmp_path_factory):
    return report.save(tmp_path_factory.mktemp("page") / "report.html")


def names(page):
    return page.locator("#table tbody tr:not(.detail):visible .name").all_text_contents()


def test_sorting(visit, file, report):
    page = visit(file)
    assert names(page) == NAMES
    spikes = page.get_by_role("button", name="spikes", exact=True)
    heading = page.locator("th", has=spikes)
    for order, wanted in (("ascending", 1), ("descending", -1)):
        spikes.click()
        assert heading.get_attribute("aria-sort") == order
        found = [report.row(name)["n_spikes"] for name in names(page)]
        assert [wanted * n for n in found] == sorted(wanted * n for n in found)
    assert page.locator('[aria-sort="ascending"], [aria-sort="descending"]').count() == 1
    page.get_by_role("button", name="name", exact=True).click()
    layers = [name for name in names(page) if name.startswith("model.layers")]
    numbers = [int(name.split(".")[2]) for name in layers]
    assert numbers == sorted(numbers)  # 2 before 10


def test_filters(visit, file, report):
    page = visit(file)
    page.get_by_role("searchbox", name="Name").fill(r"layers\.1\..*up|head$|^lm_")
    assert names(page) == ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
    assert page.locator("#shown").text_content() == f"2 of {len(NAMES)} shown"
    page.get_by_role("searchbox", name="Name").fill("(")
    assert page.get_by_role("searchbox", name="Name").get_attribute("aria-invalid") == "true"
    page.get_by_role("searchbox", name="Name").fill("")
    page.get_by_role("combobox", name="Kind").select_option("query")
    assert len(names(page)) == 11
    verdict = "no noise-like bulk"
    page.get_by_role("combobox", name="Verdict").select_option(verdict)
    wanted = [n for n in NAMES if "q_proj" in n and report.row(n)["verdict"] == verdict]
    assert names(page) == wanted
    assert wanted


def test_an_opened_row_draws_and_follows_its_row(visit, file):
    page = visit(file)
    row = page.locator("tbody tr", has_text="model.layers.2.mlp.up_proj").first
    button = row.get_by_role("button")
    button.click()
    detail = page.locator(f"#{button.get_attribute('aria-controls')}")
    assert button.get_attribute("aria-expanded") == "true"
    assert detail.locator("figure svg").count() >= 3
    assert detail.locator("svg [aria-label='rect'] rect").count() > 5
    for _ in range(2):
        page.get_by_role("button", name="rank", exact=True).click()
        assert row.evaluate("row => row.nextElementSibling.className") == "detail"
    page.get_by_role("searchbox", name="Name").fill("lm_head")
    assert detail.is_hidden()
    page.get_by_role("searchbox", name="Name").fill("")
    assert detail.is_visible()
    detail.get_by_text("All numbers").click()
    assert "fit_statistic" in detail.inner_text()
    button.click()
    assert detail.is_hidden()


def test_every_row_can_be_opened(visit, file):
    page = visit(file)
    page.evaluate("document.querySelectorAll('.open').forEach(button => button.click())")
    assert page.locator(".detail").count() == len(NAMES)
    empty = page.locator(".detail .charts:not(:has(svg))")
    assert empty.count() == 0


def test_names_stay_text(visit, file):
    page = visit(file)
    page.on("dialog", lambda _: pytest.fail("a name was run"))
    assert names(page)[NAMES.index(HOSTILE)] == HOSTILE
    page.locator("tbody tr", has_text="onerror").first.get_by_role("button").click()
    assert page.locator("img").count() == 0


def test_by_keyboard_alone(visit, file):
    page = visit(file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip-link"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "open":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "sort":
            break
    page.keyboard.press("Enter")
    assert page.locator('[aria-sort="ascending"]').count() == 1


def test_copies_what_is_shown(visit, file, report):
    page = visit(file, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("combobox", name="Kind").select_option("query")
    page.get_by_role("button", name="Copy as CSV").click()
    page.wait_for_function("document.getElementById('copied').textContent")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines == [
        line for line in report.to_csv().splitlines() if re.match("name|.*q_proj", line)
    ]
    page.get_by_role("button", name="Copy as Markdown").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('|'))")
    assert len(page.evaluate("navigator.clipboard.readText()").splitlines()) == 13


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1300])
def test_axe_finds_nothing(visit, file, scheme, width):
    page = visit(file, width=width, color_scheme=scheme)
    for name in ("model.layers.2.mlp", "model.embed"):
        page.locator("tbody tr", has_text=name).first.get_by_role("button").click()
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [320, 400, 700])
def test_nothing_is_cut_on_a_phone(visit, file, width):
    page = visit(file, width=width)
    page.evaluate("document.querySelectorAll('.open').forEach(b => b.click())")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = page.evaluate(
        """width => [...document.querySelectorAll('main *, header *')].filter(each => {
             const box = each.getBoundingClientRect();
             return box.width && box.right > width + 1 && !each.closest('.hidden');
           }).map(each => each.outerHTML.slice(0, 80))""",
        width,
    )
    assert over == []


def test_printed_with_every_row_once(visit, file):
    page = visit(file, color_scheme="dark")
    content = page.pdf(landscape=True)
    words = "".join(sheet.extract_text() for sheet in PdfReader(io.BytesIO(content)).pages)
    joined = re.sub(r"\s", "", words)
    for name in NAMES[:35]:
        assert joined.count(name) == 1, name


def test_without_scripts_the_table_is_there(visit, file):
    page = visit(file, java_script_enabled=False)
    assert len(names(page)) == len(NAMES)


def test_one_matrix_is_open(visit, report, tmp_path):
    place = tmp_path / "one.html"
    report.matrices["lm_head.weight"].to_html(place)
    page = visit(place)
    assert page.locator(".detail figure svg").count() >= 3
    assert page.locator("#overview").count() == 0


@pytest.mark.parametrize("what", ["nothing", "skipped alone", "numbers alone", "nan"])
def test_odd_reports(visit, report, tmp_path, what):
    if what == "nothing":
        odd = Report([], [], {}, versions={}, matrices={})
    elif what == "skipped alone":
        odd = rmtspec.analyze_many({"v": np.ones(3)})
    elif what == "nan":
        odd = rmtspec.analyze_many({"same": np.ones((30, 20)), "none": np.zeros((30, 20))})
    else:
        odd = Report.from_dict(report.to_dict())
    page = visit(odd.save(tmp_path / "odd.html"))
    if odd.rows:
        page.locator(".open").first.click()
    assert page.locator("h1").is_visible()
    assert Axe().run(page).violations_count == 0


def timing(page):
    return page.evaluate(
        "performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart"
    )


def test_five_hundred_matrices(visit, tmp_path):
    matrices = {
        f"layers.{i // 5}.{'qkvou'[i % 5]}_proj.weight": rmtspec.ensembles.spiked(
            96, 64, [3.0 + i % 5], rng=i
        )
        for i in range(500)
    }
    place = rmtspec.analyze_many(matrices, beta=0.01).save(tmp_path / "many.html")
    assert place.stat().st_size < 5e6
    page = visit(place)
    assert timing(page) < 2000
    took = page.evaluate(
        """() => { const start = performance.now();
             document.querySelectorAll('.sort')[3].click();
             document.body.offsetHeight;
             return performance.now() - start; }"""
    )
    assert took < 100


def test_real_models_open_within_a_second(visit, data_folder, tmp_path):
    for path in sorted((data_folder / "models").glob("*.safetensors")):
        page = visit(rmtspec.analyze_checkpoint(path).save(tmp_path / f"{path.stem}.html"))
        began = time.perf_counter()
        page.reload()
        assert timing(page) < 1000
        assert time.perf_counter() - began < 5
