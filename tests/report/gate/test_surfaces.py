"""Golden and contract: a comparison in words, as Markdown, JUnit XML, github-action-benchmark's JSON, and JSON."""

import json
import math
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

import ptq_eval
from ptq_eval.report.common.files import plain
from ptq_eval.report.gate import junit, page, series, words
from ptq_eval.report.gate.names import Names
from ptq_eval.results.gate.pairs import Condition, Mismatch
from ptq_eval.results.gate.verdict import Comparison, Verdict
from tests.results.gate import test_lm_eval as documents
from tests.results.gate.support import grid, moved, noise, write

GOLDEN = Path(__file__).parent / "golden"
NOW = 1764410000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


@pytest.fixture(scope="module")
def found(folder) -> Comparison:
    """One cell is worse, one better, one only noisier, one missing, one not comparable, one new."""
    old, new = grid(steps=(100,)), moved(grid(steps=(100,)), 0.03, quantizer="gptq", bits=3)
    new = moved(moved(new, -0.04, quantizer="gptq", bits=2), noise(0.01), quantizer="gptq", bits=4)
    other = next(m for m in new if (m.trial.quantizer, m.trial.bits) == ("rtn", 3))
    new[new.index(other)] = replace(other, trial=replace(other.trial, dtype="bfloat16"))
    full = next(m for m in new if m.trial.scheme is None)
    new.append(replace(full, trial=replace(full.trial, dtype="bfloat16")))
    new = [m for m in new if (m.trial.quantizer, m.trial.bits) != ("rtn", 4)]
    new += [m for m in grid(steps=(100,), quantizers=("awq",), bits=(4,)) if m.trial.scheme]
    one = ptq_eval.compare(write(folder / "old", old), write(folder / "new", new))
    return replace(one, base=replace(one.base, name="old"), new=replace(one.new, name="new"))


def same_as(name, text):
    """Held against a stored file; delete it to have it written again."""
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{name} was written: look at it, and run again")
    assert text == path.read_text(encoding="utf-8")


def test_markdown_is_as_stored(found):
    same_as("gate.md", page.markdown(found))


def test_junit_is_as_stored(found):
    same_as("gate.xml", junit.junit(found, NOW))


def test_the_series_is_as_stored(found):
    same_as("series.json", json.dumps(series.entries(found), indent=1, ensure_ascii=False) + "\n")


def test_junit_counts_what_it_holds_and_keeps_to_the_schema(found):
    """The rules of the strictest schema in use (Ant's), one by one."""
    root = ElementTree.fromstring(junit.junit(found, NOW).encode())
    [suite] = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    needed = {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time"}
    assert set(suite.attrib) == needed
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    tags = [child.tag for child in suite]
    cases = [child for child in suite if child.tag == "testcase"]
    assert tags == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
    for case in cases:
        assert set(case.attrib) == {"name", "classname", "time"}
        assert len(case) <= 1
        assert all("type" in child.attrib for child in case if child.tag != "skipped")
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert sum(case.find(tag) is not None for case in cases) == int(suite.attrib[count])
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases) == int(suite.get("tests"))
    assert (suite.get("failures"), suite.get("errors")) == ("1", "2")


def test_junit_can_be_read_whatever_a_message_holds(found):
    colour = replace(found.missing[0], message="\x1b[31mno pivot\x1b[0m <&> \ud800")
    root = ElementTree.fromstring(junit.junit(replace(found, missing=(colour,)), NOW).encode())
    messages = [case.attrib["message"] for case in root.iter("error")]
    assert any("no pivot" in text and "<&>" in text for text in messages)


def test_a_loss_that_is_not_finite_is_said_to_be_so_and_has_no_power(folder):
    new = moved(grid(steps=(100,)), math.inf, quantizer="gptq", bits=3)
    one = ptq_eval.compare(folder / "old", write(folder / "infinite", new))
    text = words.headline(one, Names(one))
    assert "Worse: tiny@100 gptq 3 bits by more than any tolerance (its loss is not finite)" in text
    assert "worse by more than any tolerance" in junit.junit(one, NOW)
    assert "gptq 3 bits" not in " ".join(words.power(one, Names(one)))


def test_the_series_holds_losses_with_the_error_of_the_change(found):
    entries = {entry["name"]: entry for entry in series.entries(found)}
    assert all({"name", "unit", "value", "range", "extra"} == set(entry) for entry in entries.values())
    worse = entries["tiny@100 gptq 3 bits"]
    assert worse["value"] == pytest.approx(next(c.pair.new for c in found.worse))
    assert worse["value"] > 2
    assert re.fullmatch(r"± [\d.×⁻⁰-⁹]+", entries["tiny@100 gptq 4 bits"]["range"])


def test_json_has_everything_and_no_number_that_json_lacks(found):
    content = json.loads(json.dumps(plain(page.to_dict(found)), allow_nan=False))
    assert content["verdict"] == "worse"
    assert content["exit_code"] == 1
    by_outcome = sorted(cell["outcome"] for cell in content["cells"])
    assert by_outcome == ["better", "not_worse", "same", "worse"]
    assert [one["what"] for one in content["not_comparable"]] == ["dtype"]
    assert len(content["missing"]) == len(content["added"]) == 1


def test_the_terminal_says_the_verdict_the_power_and_what_else_there_is(found):
    buffer = StringIO()
    Console(file=buffer, width=300).print(page.Rendered(found))
    text = buffer.getvalue()
    assert "Worse: tiny@100 gptq 3 bits by" in text
    assert "could have seen, with probability 0.8" in text
    assert "To see twice the tolerance, 0.02 nats per token, with probability 0.95" in text
    assert "1 of 6 cells of the old result is not in the new one (tiny@100 rtn 4 bits)" in text
    assert "float32 in the old result, bfloat16 in the new one" in text
    assert "1 cell is in the new result alone" in text


def test_every_condition_and_outcome_has_its_words():
    assert set(words.CONDITIONS) == set(Condition)
    assert set(words.VERDICTS) == set(Verdict)


def test_names_grow_only_where_cells_differ(folder):
    two = [replace(m, trial=replace(m.trial, options={"damping": 0.02})) for m in grid(steps=(100,)) if m.trial.scheme]
    one = write(folder / "options", [*grid(steps=(100,)), *two])
    found = ptq_eval.compare(one, one)
    names = {Names(found).of(cell.pair.about) for cell in found.cells}
    assert len(names) == len(found.cells) == 12
    assert "tiny@100 gptq 3 bits, damping=0.02" in names


def test_a_table_says_that_it_is_a_bound(folder):
    for name in ("old", "new"):
        (folder / f"{name}-table").mkdir()
        table = ptq_eval.load(folder / name, bootstrap=5).table
        table.to_csv(folder / f"{name}-table" / "degradation.csv", index=False)
    found = ptq_eval.compare(folder / "old-table", folder / "new-table")
    text = page.markdown(found)
    assert "Not compared window by window" in text
    assert "window by window; errors include" not in text


def test_results_of_which_some_have_records_say_how_many_are_a_bound(folder):
    for side in ("old", "new"):
        both = folder / f"{side}-both"
        (both / "table").mkdir(parents=True)
        shutil.copytree(folder / side, both / "records")
        ptq_eval.load(folder / side, bootstrap=5).table.to_csv(both / "table" / "degradation.csv", index=False)
    found = ptq_eval.compare(folder / "old-both", folder / "new-both")
    text, count = page.markdown(found), len(found.cells)
    assert f"Not compared window by window: {count // 2} of {count} cells" in text
    assert "hold no records" not in text


def test_what_differs_agrees_with_its_verb():
    about = {
        name: None for name in ("run", "step", "quantizer", "options", "bits", "group_size", "symmetric", "format")
    }
    verb = lambda what: words._differ(Mismatch(about, what, "a", "b"))
    assert verb(Condition.CALIBRATION_WINDOWS) == verb(Condition.CALIBRATION_DRAW) == "differs"
    assert verb(Condition.CORPUS) == verb(Condition.WEIGHTS) == "differ"


def test_a_metric_that_is_compared_in_nats_says_so(folder):
    sides = [documents.write(folder / n, {"wiki": documents.lines([[-3.0, 2], [-v, 3]], "bits_per_byte")})
             for n, v in (("one", 4.0), ("two", 5.0))]  # fmt: skip
    found = ptq_eval.compare(*sides)
    assert "wiki bits_per_byte in nats" in words.headline(found, Names(found)) + page.markdown(found)


def test_results_that_share_no_cell_are_named_in_one_line(folder):
    found = ptq_eval.compare(folder / "old", write(folder / "other", grid(steps=(300,))))
    text = words.headline(found, Names(found))
    assert text.startswith("Missing measurements: no cell is in both results. 6 of 6 cells of the old result")
    assert "\n" not in text
    assert words.fine_print(found) == ""
    assert series.entries(found) == []
    ElementTree.fromstring(junit.junit(found).encode())


def test_answers_of_lm_eval_are_in_the_unit_of_their_metric(tmp_path):
    old, new = [1.0] * 300, [0.0] * 30 + [1.0] * 270
    folders = [documents.write(tmp_path / n, {"arc": documents.lines(v)}) for n, v in (("a", old), ("b", new))]
    found = ptq_eval.compare(*folders)
    text = page.markdown(found)
    assert "Worse: arc acc by 0.100 ± 0.017 of the metric" in text
    assert "another rounding, or another seed, is not covered" in text
    [entry] = series.entries(found)
    assert (entry["name"], entry["value"]) == ("arc acc, 1 − value", pytest.approx(0.1))
    assert math.isfinite(found.worse[0].smallest)
