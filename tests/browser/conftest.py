"""A headless browser; without one these tests are skipped, or fail where RMTSPEC_BROWSER is set."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: So that the browser looks for no host of its own.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    program = os.environ.get("RMTSPEC_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    if program is None:
        pytest.skip("no Chromium; install it, or set RMTSPEC_BROWSER to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a file; at the end, nothing was logged and nothing requested."""
    seen, contexts, opened_files = [], [], set()

    def opened(path, width=1300, height=900, **how):
        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("request", lambda request: seen.append(request.url))
        opened_files.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [what for what in seen if what not in opened_files | {"data:,"}] == []
