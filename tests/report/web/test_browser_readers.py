"""Contract: the page serves every reader: by keyboard, in the dark, on a phone, and by the rules that axe-core checks.

`make page-test` runs these; CHROMIUM is the browser's path, AXE that of axe-core's script.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.report.web.support import chart

pytestmark = pytest.mark.browser


def test_everything_works_by_keyboard(opened, pages):
    tab = opened(pages("embedded").path)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
    panel = chart(tab, "loss_vs_tokens").locator(".panel").nth(1)
    panel.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    said = tab.text_content("#spoken")
    assert "D = " in said
    assert tab.locator("#tip").is_visible()
    tab.keyboard.press("ArrowRight")
    assert tab.text_content("#spoken") != said
    ticks = chart(tab, "loss_vs_tokens").locator("svg text.muted").all_text_contents()
    tab.keyboard.press("+")
    assert chart(tab, "loss_vs_tokens").locator("svg text.muted").all_text_contents() != ticks
    assert tab.evaluate(
        "document.activeElement.dataset.key === "
        "document.querySelectorAll('[data-figure=loss_vs_tokens] .panel')[1].dataset.key"
    )
    tab.keyboard.press("0")
    assert chart(tab, "loss_vs_tokens").locator("svg text.muted").all_text_contents() == ticks
    tab.focus("#contents-menu summary")
    tab.keyboard.press("Enter")
    assert tab.locator("#contents-menu nav").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#contents-menu nav").is_visible()
    tab.locator("#measurements th button").nth(5).focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#measurements th").nth(5).get_attribute("aria-sort") == "ascending"


def test_light_and_dark(opened, pages):
    def paper(tab):
        return sum(map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    dark, light = (opened(pages("embedded").path, color_scheme=scheme) for scheme in ("dark", "light"))
    assert paper(dark) < 150 < 600 < paper(light)
    light.click("#theme")
    assert "light" in light.inner_text("#theme")
    light.click("#theme")
    assert paper(light) < 150
    light.reload()
    light.wait_for_selector("html[data-ready]")
    assert paper(light) < 150


@pytest.mark.parametrize("name", ["embedded", "formats"])
def test_a_phone_needs_no_sideways_scrolling(opened, pages, name):
    tab = opened(pages(name).path)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert chart(tab, "loss_vs_tokens").locator("svg").bounding_box()["width"] <= 360


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("embedded", "light", 1280), ("embedded", "dark", 360), ("formats", "light", 800)]
)
def test_axe_finds_nothing_to_object_to(opened, pages, name, scheme, width):
    tab = opened(pages(name).path, color_scheme=scheme, bypass_csp=True)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.evaluate(Path(os.environ["AXE"]).read_text())
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert found["testEngine"]["name"] == "axe-core"
    assert len(found["passes"]) > 10
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found["violations"]] == []
