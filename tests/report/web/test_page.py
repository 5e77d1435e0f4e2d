"""Contract: `report.html` holds all of `report.md` and the files it offers, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import html5lib
import numpy as np
import pandas as pd
import pytest

from ptq_eval.report import studies, with_texts, write
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import page as markdown
from ptq_eval.report.web import markup, page
from tests.report.synthetic import make_fit, make_run, make_table

HOSTILE = (
    "<script>window.broken = 1</script>",
    "</script><img src=x onerror=window.broken=1>",
    "<!--<script>",
    "[link](javascript:window.broken=1) ![p](https://example.com/p.png) <https://example.com>",
    "a & b | c `d` _e_ \" ' <br>",
)


def parsed(text):
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def words(element):
    return " ".join("".join(element.itertext()).split())


def embedded(document):
    [found] = document.findall(".//script[@id='data']")
    return json.loads(found.text)


@pytest.fixture(scope="session")
def text(out, written):
    return (out / "report.html").read_text()


@pytest.fixture(scope="session")
def document(text):
    return parsed(text)


def plain(markdown_text):
    """Markdown without the marks that the pages use."""
    text = re.sub(r"`([^`]*)`", r"\1", markdown_text).replace("**", "").replace("<br>", " ").replace("&lt;", "<")
    return re.sub(r"\*(\S[^*|]*)\*", r"\1", text.replace("\\\n", "\n").replace("\\|", "¦").replace("\\", ""))


def test_every_section_of_the_markdown_page_is_there_in_its_order(out, document):
    source = (out / "report.md").read_text()
    headings = re.findall(r"^## (.*)$", source, re.M)
    assert [words(one) for one in document.findall(".//h2")] == headings
    assert [words(one) for one in document.findall(".//h3")] == re.findall(r"^### (.*)$", source, re.M)
    assert [words(one) for one in document.findall(".//h1")] == re.findall(r"^# (.*)$", source, re.M)
    contents = document.findall(".//nav//a")
    assert [words(one) for one in contents] == headings
    targets = {one.get("id") for one in document.findall(".//section")}
    assert {one.get("href") for one in contents} == {f"#{target}" for target in targets}


def test_every_table_and_sentence_of_the_markdown_page_is_there(out, document):
    source = (out / "report.md").read_text()
    rows = [line for line in source.splitlines() if line.startswith("|") and not re.match(r"^\| :?--", line)]
    expected = [[" ".join(c.split()).replace("¦", "|") for c in plain(row).strip("|").split("|")] for row in rows]
    found = [[words(cell) for cell in row] for row in document.findall(".//section//tr")]
    assert [[c.replace(" ", "") for c in row] for row in found] == [[c.replace(" ", "") for c in r] for r in expected]
    bullets = [plain(line[2:]).replace("¦", "|") for line in source.splitlines() if line.startswith("- ")]
    assert [words(item) for item in document.findall(".//section//li")] == [" ".join(b.split()) for b in bullets]


def test_the_answer_comes_first_with_what_was_observed_in_bold(document, fit):
    first = document.find(".//section")
    assert first.get("id") == "the-answer"
    bold = {words(cell) for cell in first.findall(".//td") if cell.find("strong") is not None}
    observed = [entry for entry in fit["critical_tokens"] if entry["verdict_kind"] == "observed"]
    assert len(observed) == sum(cell.find("strong") is not None for cell in first.findall(".//td")) > 0
    assert all(cell.endswith("observed") for cell in bold)


def test_what_is_offered_for_download_is_what_was_written(out, document):
    files = embedded(document)["files"]
    assert files["degradation.csv"] == (out / "degradation.csv").read_text()
    assert files["fit.json"] == (out / "fit.json").read_text()
    for name in ("loss_vs_tokens", "delta_vs_ratio"):
        assert files[f"figures/{name}.csv"] == (out / "figures" / f"{name}.csv").read_text()
    offered = {one.get("data-download") for one in document.findall(".//button[@data-download]")}
    assert offered == {"degradation.csv", "fit.json", "run.json"}


def test_measurements_have_the_labels_and_cells_of_the_table(document, table, fit, run):
    found, study = embedded(document), Study(table, with_texts(fit), run)
    assert len(found["labels"]) == len(found["cells"]) == len(table)
    assert set(found["labels"]) == {*study.labels, found["full_precision"]}
    cells = dict(zip(table["key"], found["cells"]))
    assert [cells[key] for key in study.measured["key"]] == tables.delta_cells(study.measured)
    assert sum(tables.FLOOR in cell for cell in found["cells"]) == (~tables.clear(study.measured)).sum()


def test_only_its_own_scripts_may_run_and_nothing_is_requested(text, document):
    policy = document.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert "connect-src" not in rules

    def hashed(element):
        return f"'sha256-{base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()}'"

    scripts = [one for one in document.findall(".//script") if one.get("type") is None]
    assert rules["script-src"].split() == [hashed(one) for one in scripts]
    assert rules["style-src"] == hashed(document.find(".//style"))
    for element in document.iter():
        assert not [name for name in element.attrib if name.startswith("on") or name == "style"]
        assert str(element.get("src", "data:")).startswith("data:")
        assert str(element.get("href", "#")).startswith("#")


@pytest.mark.parametrize(
    "hostile", [" ".join(HOSTILE), *(pytest.param(one, marks=pytest.mark.slow) for one in HOSTILE)]
)
def test_strings_from_outside_are_text(hostile, document, tmp_path):
    table = make_table(runs=("small",), ratios=(20, 50, 100), quantizers=("gptq",), bits=(2, 3))
    fit, run = make_fit(table), make_run(table)
    renamed = json.loads(json.dumps(run).replace("standard library", "text of"))
    table["run"] = hostile
    table.loc[2, ["delta", "loss_q", "status", "message"]] = [np.nan, np.nan, "failed", hostile]
    for entry in [*fit["critical_tokens"], *fit["fits"]]:
        entry.update({"run": hostile, "runs": [hostile]})
    fit["warnings"] = [hostile]
    renamed["notes"] = [hostile]
    renamed["options"] = {"eval_text": hostile}
    renamed["models"] = {hostile: next(iter(run["models"].values()))}
    write(tmp_path, table, fit, renamed)
    found = parsed((tmp_path / "report.html").read_text())
    for tag in ("script", "img", "iframe"):
        assert len(found.findall(f".//{tag}")) == len(document.findall(f".//{tag}"))
    assert all(one.get("href").startswith("#") for one in found.findall(".//a"))
    assert embedded(found)["runs"][0]["name"] == hostile
    squeezed = "".join(hostile.replace("`", "").replace("_", "").replace("<br>", "").split())
    shown = "".join("".join(found.find(".//main").itertext()).replace("_", "").replace("<br>", "").split())
    assert squeezed in shown


def test_json_in_a_script_element_has_no_tag():
    value = {"</script>": ["<!--", "a&b", "\u2028", float("nan"), np.float64(2.5)]}
    text = page.in_script(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script>": ["<!--", "a&b", "\u2028", None, 2.5]}


def test_figures_are_drawn_or_shown_or_named(tmp_path):
    (tmp_path / "seen.png").write_bytes(b"not really a picture")
    text = "![Damage](figures/seen.png)\n\nWords.\n\n![Gone](figures/gone.png)\n\n![Loss](figures/loss_vs_tokens.png)\n"
    names = []

    def picture(name, about):
        names.append((name, about))
        return f"<figure data-name='{name}'></figure>"

    html = markup.render(text, "Figures", picture)
    assert names == [("seen", "Damage"), ("gone", "Gone"), ("loss_vs_tokens", "Loss")]
    assert html.count("<p>") == html.count("</p>") == 1


def test_a_study_of_sensitivity_brings_its_picture(out, written, table, fit, run, tmp_path):
    study = Study(table, with_texts(fit), run)
    record = {"settings": {}, "checkpoints": []}
    (tmp_path / "sensitivity_gptq.png").write_bytes(b"picture")

    def sections(*_):
        return [
            ("", "# Title\n"),
            ("From theory", "![Damage](figures/sensitivity_gptq.png)\n\n![No](figures/none.png)"),
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown, "sections", sections)
        found = parsed(page.document(study, (record, None, None), figures=tmp_path))
    [image] = found.findall(".//img")
    assert image.get("alt") == "Damage"
    assert base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")) == b"picture"
    assert "No: see the folder figures." in words(found.find(".//main"))


def test_the_library_is_the_one_that_its_script_fetches():
    folder = Path(page.__file__).parent / "assets" / "vendor"
    [digest] = re.findall(r"^script=([0-9a-f]{64})$", (folder / "fetch.sh").read_text(), re.M)
    assert hashlib.sha256((folder / "d3.min.js").read_bytes()).hexdigest() == digest
    assert "Mike Bostock" in (folder / "d3.LICENSE").read_text()


@pytest.mark.slow
def test_the_embedded_folder_of_this_repository_makes_a_page():
    folder = Path(__file__).parents[3] / "results" / "formats"
    table, fit, run = (
        pd.read_csv(folder / "degradation.csv"),
        *(json.loads((folder / name).read_text()) for name in ("fit.json", "run.json")),
    )
    study = Study(table, with_texts(fit), run)
    found = parsed(page.document(study, studies(folder), figures=folder / "figures"))
    content = embedded(found)
    assert set(content["toggles"].values()) == {"rtn", "gptq"}
    assert {one.get("data-figure") for one in found.findall(".//figure")} >= {"delta_vs_bits", "loss_vs_tokens"}
    assert set(content["style"]["methods"]) == {"rtn", "gptq"}
