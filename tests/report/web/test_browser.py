"""Contract: the page in a browser (headless Chromium): drawn, switched, sorted, saved, read, and asking nobody.

`make page-test` runs these; CHROMIUM is the browser's path, AXE that of axe-core's script.
"""

from __future__ import annotations

import json
import math
import re
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptq_eval.cli.server import bind
from ptq_eval.jobs.sensitivity import sensitivity
from ptq_eval.records import Checkpoint, Measurement, Scheme, Trial
from ptq_eval.report import studies, with_texts, write
from ptq_eval.report.common import numbers
from ptq_eval.report.common.data import Study
from ptq_eval.report.web import page as web
from ptq_eval.report.web.live import Folder
from ptq_eval.results.store import Store
from tests.report.synthetic import make_fit, make_run, make_table
from tests.report.web.support import chart

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror=window.broken=2>"


def switch(tab, kind, value):
    tab.locator(f"[data-switches='{kind}'] input[data-value='{value}']").click()


def shown(tab):
    """The rows of the table of all measurements that are not hidden, as {heading: text}."""
    return tab.evaluate(
        """() => { const table = document.querySelector("#measurements table");
        const heads = [...table.querySelectorAll("th")].map((head) => head.textContent);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden)
          .map((row) => Object.fromEntries([...row.cells].map((cell, i) => [heads[i], cell.textContent]))); }"""
    )


def test_figures_are_drawn_with_a_mark_for_every_measurement(opened, pages):
    made = pages("embedded")
    tab, study = opened(made.path), made.study
    measured = len(study.measured)
    assert chart(tab, "loss_vs_tokens").locator(".panel").count() == len(study.runs) * len(study.labels)
    before = len(study.baseline) * len(study.labels)
    assert chart(tab, "loss_vs_tokens").locator(".point").count() == measured + before
    assert chart(tab, "delta_vs_ratio").locator(".point").count() == measured
    assert chart(tab, "asked").locator(".panel").count() == len(study.runs) * len(study.labels) * len(study.bits())
    formats = opened(pages("formats").path)
    assert chart(formats, "delta_vs_bits").locator(".panel").count() == 2 * len(pages("formats").study.runs)
    assert not tab.locator(".chart").filter(has_text="NaN").count()
    assert not tab.evaluate(
        "[...document.querySelectorAll('.chart svg')].some((one) => /NaN|Infinity/.test(one.outerHTML))"
    )


@pytest.fixture(scope="module")
def layered(saved, texts, tmp_path_factory):
    """The page of a study of layers with mixed models, and the folder of that study."""
    out = tmp_path_factory.mktemp("layers") / "out"
    few = {"bits": (2, 4), "group_size": 16, "seq_len": 32, "eval_windows": 12, "calib_windows": 4, "device": "cpu"}
    few |= {"eval_text": texts.evaluation, "calib_text": texts.calibration, "quantizers": "rtn"}
    sensitivity(saved("llama"), out, budget="3.5bits", **few)
    table = make_table()
    study = Study(table, with_texts(make_fit(table)), make_run(table))
    (out / web.NAME).write_text(web.document(study, studies(out), figures=out / "figures"))
    return out


def test_layers_and_mixed_models_are_drawn_and_say_their_names(opened, layered):
    tab = opened(layered / web.NAME)
    layers = pd.read_csv(layered / "figures" / "sensitivity_rtn.csv").query("kind == 'layer'")
    panels = chart(tab, "sensitivity_rtn").locator(".panel")
    assert panels.count() == 3
    shown = (layers["kl"] > 0).sum() + (layers["delta"] > 0).sum()
    drawn = chart(tab, "sensitivity_rtn").locator(".point").count()
    assert 0 < shown <= drawn <= shown + 4
    panels.nth(1).focus()
    tab.keyboard.press("ArrowRight")
    least = layers[(layers["kl"] > 0) & (layers["predicted"] > 0)].sort_values("predicted").iloc[0]
    assert tab.inner_text("#spoken").startswith(f"{least['layer']}, {least['bits']:.0f} bits, KL ")
    models = pd.read_csv(layered / "figures" / "mixed.csv")
    assert chart(tab, "mixed").locator(".panel").count() == 2
    mixed = models[models["kind"] == "mixed"]
    assert chart(tab, "mixed").locator(".point").count() == len(models) + (mixed["predicted_kl"] > 0).sum()
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert not tab.locator(".chart").filter(has_text="NaN").count()
    drawn = "[...document.querySelectorAll('.chart svg')].some((one) => /NaN|Infinity/.test(one.outerHTML))"
    assert not tab.evaluate(drawn)


def test_what_is_far_down_is_drawn_when_it_comes_near(opened, pages):
    from playwright.sync_api import expect

    tab = opened(pages("embedded").path, lazy=True)
    assert chart(tab, "asked").locator(".panel").count() == 0
    chart(tab, "asked").scroll_into_view_if_needed()
    expect(chart(tab, "asked").locator(".panel").first).to_be_visible()
    tab.locator("#measurements").scroll_into_view_if_needed()
    expect(tab.locator("#measurements tbody tr").first).to_be_visible()


def test_the_table_sorts_and_filters(opened, pages):
    made = pages("embedded")
    tab = opened(made.path)
    heading = tab.locator("#measurements th", has_text="δ")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    order = made.study.measured["delta"].sort_values()
    deltas = tab.evaluate(
        "[...document.querySelector('#measurements tbody').rows].map((row) => +row.cells[9].dataset.value)"
    )
    np.testing.assert_allclose(deltas, order, rtol=1e-12)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert (
        tab.evaluate("+document.querySelector('#measurements tbody').rows[0].cells[9].dataset.value") == order.iloc[-1]
    )
    tab.fill("#filter", "gptq 2 bits")
    rows, wanted = shown(tab), made.table[(made.table["quantizer"] == "gptq") & (made.table["bits"] == 2)]
    assert len(rows) == len(wanted)
    assert {(row["quantizer"], row["bits"]) for row in rows} == {("gptq", "2")}
    assert tab.inner_text("#filter-count") == f"{len(wanted)} of {len(made.study.measured)} measurements"
    tab.fill("#filter", "")
    tab.check("#filter-clear")
    assert 0 < len(shown(tab)) < len(made.study.measured)
    assert not [row for row in shown(tab) if "°" in row["δ"]]


def test_a_degradation_table_sorts_by_value(opened, pages):
    tab = opened(pages("embedded").path)
    table = tab.locator("#degradation > .scroll").first
    button = table.locator("th button", has_text="8 bits").first
    button.click()
    column = table.locator("th button").all_inner_texts().index(button.inner_text())
    cells = [row.locator("td").nth(column).inner_text() for row in table.locator("tbody tr").all()]
    values = [float(re.match(r"-?[\d.]+", cell)[0]) for cell in cells]
    assert values == sorted(values)


def test_switches_act_on_every_figure_and_table(opened, pages):
    made = pages("embedded")
    tab, study = opened(made.path), made.study
    points = {name: chart(tab, name).locator(".point").count() for name in ("loss_vs_tokens", "delta_vs_ratio")}
    switch(tab, "bits", 2)
    at_two = int((study.measured["bits"] == 2).sum())
    for name, before in points.items():
        assert chart(tab, name).locator(".point").count() == before - at_two
    assert "2 bits" not in [row["bits"] + " bits" for row in shown(tab)]
    head = tab.locator("#degradation > .scroll th", has_text="2 bits").first
    assert not head.is_visible()
    switch(tab, "bits", 2)
    assert head.is_visible()
    switch(tab, "quantizers", "rtn")
    assert chart(tab, "delta_vs_ratio").locator(".panel").count() == len(study.labels) - 1
    switch(tab, "runs", study.runs[0])
    assert {row["run"] for row in shown(tab)} == set(study.runs[1:])
    assert not tab.locator("#degradation h3", has_text=study.title(study.runs[0])).is_visible()
    for name in study.runs[1:]:
        switch(tab, "runs", name)
    assert "Everything is switched off." in chart(tab, "loss_vs_tokens").text_content()
    assert shown(tab) == []


def test_axes_forecast_and_zoom(opened, pages):
    tab = opened(pages("embedded").path)
    figure = chart(tab, "loss_vs_tokens")

    def drawn():
        return figure.locator("svg").inner_html()

    first, ticks = drawn(), figure.locator("svg text.muted").all_text_contents()
    for option in ("xlog", "ylog", "forecast"):
        button = figure.locator(f"[data-option={option}]")
        was, before = button.get_attribute("aria-pressed"), drawn()
        button.click()
        assert button.get_attribute("aria-pressed") != was
        assert drawn() != before, option
        button.click()
        assert drawn() == first
    panel = figure.locator(".panel .catch").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.8 * box["height"], steps=3)
    tab.mouse.up()
    assert figure.locator("svg text.muted").all_text_contents() != ticks
    reset = figure.locator("[data-reset]")
    assert reset.is_enabled()
    reset.click()
    assert drawn() == first
    assert reset.is_disabled()


def test_a_mark_says_its_values_and_errors(opened, pages):
    made = pages("embedded")
    tab = opened(made.path)
    mark = chart(tab, "delta_vs_ratio").locator(".panel .catch").first
    mark.scroll_into_view_if_needed()
    point = chart(tab, "delta_vs_ratio").locator(".point").first.locator("path").bounding_box()
    tab.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    said = tab.inner_text("#tip")
    cells = {numbers.with_error(row["delta"], row["delta_se"]) for _, row in made.study.measured.iterrows()}
    [delta] = re.findall(r"δ (\S+)", said)
    assert delta in cells
    assert "D = " in said
    assert "D/N = " in said
    tab.mouse.move(2, 2)
    assert tab.locator("#tip").is_hidden()


def test_what_is_saved_is_what_was_measured(opened, pages, tmp_path):
    made = pages("embedded")
    tab = opened(made.path)

    def saved(click):
        with tab.expect_download() as caught:
            click()
        return caught.value.suggested_filename, Path(caught.value.path()).read_bytes()

    name, content = saved(lambda: tab.click("#measurements [data-download]"))
    assert name == "degradation.csv"
    (tmp_path / "saved.csv").write_bytes(content)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "saved.csv"), made.table)
    figure = chart(tab, "loss_vs_tokens")
    name, content = saved(lambda: figure.locator("[data-save=csv]").click())
    assert name == "loss_vs_tokens.csv"
    assert content.decode().count("\nllama") > len(made.study.measured)
    name, content = saved(lambda: figure.locator("[data-save=svg]").click())
    picture = ET.fromstring(content)
    assert picture.tag.endswith("svg")
    assert "var(" not in content.decode()
    assert len(picture.findall(".//{*}path")) > 100
    name, content = saved(lambda: figure.locator("[data-save=png]").click())
    assert (name, content[:8]) == ("loss_vs_tokens.png", b"\x89PNG\r\n\x1a\n")
    tab.click("#download-menu summary")
    name, content = saved(lambda: tab.click("#download-menu [data-download='fit.json']"))
    assert json.loads(content)["critical_tokens"]


def test_names_and_messages_from_outside_run_nothing(opened, tmp_path):
    table = make_table(runs=("small",), ratios=(20, 50, 100), quantizers=("gptq",), bits=(2, 3))
    fit, run = make_fit(table), make_run(table)
    table["run"] = HOSTILE
    for entry in [*fit["critical_tokens"], *fit["fits"]]:
        entry.update({"run": HOSTILE, "runs": [HOSTILE]})
    fit["warnings"] = [HOSTILE]
    table.loc[2, ["status", "message"]] = ["partial", HOSTILE]
    write(tmp_path, table, fit, run)
    tab = opened(tmp_path / "report.html")
    chart(tab, "loss_vs_tokens").locator(".panel").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("typeof window.broken") == "undefined"
    assert HOSTILE in {row["run"] for row in shown(tab)}


def test_numbers_are_written_as_on_the_other_page(opened, pages):
    tab, rng = opened(pages("embedded").path), np.random.default_rng(0)
    values = [*(10 ** rng.uniform(-7, 9, 200) * rng.choice([-1, 1], 200)), 0.0, 1.0, 999.5, 1000.0, 0.0995]
    errors = [abs(value) * 10 ** rng.uniform(-3, 0.5) if value else 1e-3 for value in values]
    small = [(value, error) for value, error in zip(values, errors) if abs(value) < 100 and error < 9]
    got = tab.evaluate("(pairs) => pairs.map(([value, error]) => ptq.withError(value, error))", small)
    same = [a == numbers.with_error(*pair) for a, pair in zip(got, small)]
    assert np.mean(same) > 0.97, [
        (a, numbers.with_error(*p)) for a, p in zip(got, small) if a != numbers.with_error(*p)
    ]
    tokens = [float(round(abs(value))) for value in values if 1 <= abs(value) < 1e15]
    for name, all_of_them in (("count", tokens), ("short", values)):
        got = tab.evaluate(f"(all) => all.map(ptq.{name})", all_of_them)
        wanted = [getattr(numbers, name)(value) for value in all_of_them]
        differ = [pair for pair in zip(got, wanted) if pair[0] != pair[1]]
        assert len(differ) <= 0.03 * len(wanted), differ  # a value half-way between two may be rounded to either


def _record(step, bits, rng):
    checkpoint = Checkpoint(run="one", step=step, tokens=500_000 * (step + 1), params=100_000, weights_sha=f"{step}")
    trial = Trial(checkpoint, "text", "protocol")
    losses = 3 / math.sqrt(step + 1) + rng.normal(0, 0.1, 12)
    if bits is None:
        return Measurement(trial, nll=tuple(7 * losses), n_tokens=(7,) * 12)
    trial = Trial(checkpoint, "text", "protocol", "rtn", "1", scheme=Scheme(bits, 16))
    return Measurement(trial, nll=tuple(7 * (losses + 0.2)), n_tokens=(7,) * 12, kl=(0.1,) * 12, agree=(5,) * 12)


def test_a_page_that_is_served_follows_the_run(opened, tmp_path):
    from playwright.sync_api import expect

    rng, store = np.random.default_rng(0), Store(tmp_path)
    every = [_record(step, bits, rng) for step in range(4) for bits in (None, 2, 4)]
    checkpoints = [one.trial.checkpoint for one in every[::3]]
    store.write_run(
        {
            **{key: {} for key in ("fixed", "quantizer_options", "digests")},
            "checkpoints": [c.to_dict() for c in checkpoints],
        }
    )
    planned = {}
    for one in every:
        planned.setdefault(one.trial.checkpoint.name, []).append(one.trial.key())
    store.write_plan(planned)
    with bind(Folder(tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            tab = opened(f"http://127.0.0.1:{server.server_address[1]}/")
            assert "0 of 12 measurements" in tab.inner_text("#progress")
            with store.writer() as writer:
                for one in every[:6]:
                    writer.append(one)
                tab.wait_for_selector("#progress:has-text('6 of 12 measurements')", timeout=20_000)
                tab.wait_for_selector("[data-figure='loss_vs_tokens'] .point", state="attached", timeout=30_000)
                switch(tab, "bits", 2)
                before = chart(tab, "loss_vs_tokens").locator(".point").count()
                for one in every[6:]:
                    writer.append(one)
                tab.wait_for_selector("#progress:has-text('12 of 12 measurements')", timeout=20_000)
            # The switch is still off after the page has loaded itself again.
            expect(chart(tab, "loss_vs_tokens").locator(".point")).to_have_count(2 * before, timeout=30_000)
        finally:
            server.shutdown()
            thread.join()
    tab.wait_for_selector("#progress:has-text('The server has ended')", timeout=20_000)
    assert set(opened.heard) == {"Failed to load resource: net::ERR_CONNECTION_REFUSED"}
    opened.heard.clear()
