"""Pictures of an HTML report for the README and the site, light and dark.

    python benchmarks/report/pictures.py MODEL.safetensors --open layer1.0.conv2 --out docs/_static

Needs playwright and Chromium (RMTSPEC_BROWSER names it if it is not on the path).
"""

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import rmtspec

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--open", default="", help="the row to open, by a part of its name")
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    asked = parser.parse_args()
    report = rmtspec.analyze_checkpoint(asked.model, noise="auto")
    program = os.environ.get("RMTSPEC_BROWSER") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = report.save(Path(folder, "report.html"))
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1200, "height": 1180}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            if asked.open:
                page.locator("tbody tr", has_text=asked.open).first.get_by_role("button").click()
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            few = picture.quantize(200, method=Image.Quantize.MAXCOVERAGE)
            few.save(asked.out / f"report-{scheme}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
