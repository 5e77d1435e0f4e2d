"""The pages of stored results, and a headless Chromium that opens them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ptq_eval.report import studies, with_texts
from ptq_eval.report.common.data import Study
from ptq_eval.report.web import page as web

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """pages(name) -> the page of a folder of `results`, its table and its path."""
    made, root = {}, tmp_path_factory.mktemp("pages")

    def get(name):
        if name not in made:
            folder = RESULTS / name
            table = pd.read_csv(folder / "degradation.csv")
            fit, run = (json.loads((folder / f"{part}.json").read_text()) for part in ("fit", "run"))
            study, path = Study(table, with_texts(fit), run), root / f"{name}.html"
            path.write_text(web.document(study, studies(folder), figures=folder / "figures"))
            made[name] = SimpleNamespace(path=path, table=table, study=study)
        return made[name]

    return get


@pytest.fixture
def opened(chromium):
    """opened(path or address, **of the context) -> the page, ready; what it complained of and asked for is checked.

    lazy: what is not on the screen is not made yet; else all is, as before printing.
    """
    contexts, heard = [], []

    def get(where, lazy=False, **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        contexts.append(context)
        tab = context.new_page()
        address = where if str(where).startswith("http") else Path(where).as_uri()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: _own(request.url, address) or heard.append(request.url))
        tab.goto(address)
        tab.wait_for_selector("html[data-ready]")
        if not lazy:
            tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        return tab

    get.heard = heard
    yield get
    for context in contexts:
        context.close()
    assert heard == []


def _own(url, address):
    return url.startswith(("data:", "blob:")) or url.startswith(address)
