"""The pages in a real browser: axe-core finds nothing wrong with them, and they are readable on a telephone."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL_SPACE, make_candidate, prepare_pairs

from nasrec_torchrec import training
from nasrec_torchrec.inference.api_page import api_page
from nasrec_torchrec.search.config import Limits, Objective
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.report import write_report
from nasrec_torchrec.search.results import SearchResults, write_results

_BROWSER = shutil.which("chromium")
# As `.ci/run` installs it; another copy of axe.min.js will do.
_AXE = Path(os.environ.get("NASREC_AXE", Path(__file__).parents[1] / "build/axe/node_modules/axe-core/axe.min.js"))

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(
        _BROWSER is None or importlib.util.find_spec("playwright") is None or not _AXE.exists(),
        reason="Chromium, playwright or axe-core is not installed; .ci/run installs them",
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page that the programs write, with all of its parts."""
    folder = tmp_path_factory.mktemp("pages")
    data = prepare_pairs(folder / "data", 900)
    auto(data, folder / "race", RaceConfig(trials=6, epochs=2, final_seeds=2, finalists=1, slice=("shop",), quiet=True))
    model = folder / "race"
    training.evaluate(model, data, slices=("shop",), importance=1, report=folder / "evaluation.html")
    generator = torch.Generator().manual_seed(0)
    networks = dict.fromkeys(SMALL_SPACE.sample(generator) for _ in range(30))
    measured = [make_candidate(one, latency_us=90.0 + i, latency_iqr_us=4.0) for i, one in enumerate(networks)]
    objective = Objective(trade_off=("multiply_adds", "latency_us"))
    write_results(SearchResults(tuple(measured), objective, Limits(), 3, ("a warning",)), folder / "search")
    write_report(folder / "search")
    body = {"content": {"application/json": {"schema": {"type": "object", "required": ["inputs"]}}}}
    infer = {"requestBody": body, "responses": {"200": {"description": "the probability of a click for each row"}}}
    paths = {"/v2/models/{name}/versions/{version}/infer": {"post": infer}}
    (folder / "api.html").write_text(api_page({"info": {"title": "nasrec", "description": "Scores."}, "paths": paths}))
    names = "race/report.html", "evaluation.html", "search/report.html", "api.html"
    return {name: folder / name for name in names}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=_BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_accessible_and_fits(browser: Any, pages: dict[str, Path], width: int, scheme: str):
    found = {}
    for name, file in pages.items():
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(file.as_uri())
        # All details are open, so that they are checked too.
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        page.add_script_tag(content=_AXE.read_text())
        wrong = page.evaluate("axe.run().then(found => found.violations)")
        found[name] = [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in wrong]
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            found[name].append(f"is {wide} pixels wide")
        found[name] += [f"asks for {url[:80]}" for url in asked if url != file.as_uri() and not url.startswith("data:")]
        page.close()
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_check_finds_what_is_wrong(browser: Any):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content("<title>nothing</title><img src='data:,'><p style='color:#ddd;width:900px'>pale and wide</p>")
    page.add_script_tag(content=_AXE.read_text())
    wrong = {one["id"] for one in page.evaluate("axe.run().then(found => found.violations)")}
    assert wrong >= {"image-alt", "color-contrast", "html-has-lang"}
    assert page.evaluate("document.documentElement.scrollWidth") > 390
