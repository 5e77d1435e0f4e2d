"""Contract: activations and cache have a section of their own, and change nothing else of a report."""

import pytest

import ptq_eval
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Study, runtime_name
from ptq_eval.report.run import precisions_figure, tokens
from ptq_eval.report.run.page import sections
from ptq_eval.report.run.runtime import TITLE


@pytest.fixture(scope="module")
def both(trajectory, small, tmp_path_factory):
    """(result without, result with activations and cache) of one trajectory."""
    out = tmp_path_factory.mktemp("runtime")
    options = {**small, "quantizers": ("rtn",), "bits": (3,), "write_report": False}
    plain = ptq_eval.run(trajectory, out / "plain", **options)
    return plain, ptq_eval.run(trajectory, out / "all", **options, activation_bits=(4,), kv_bits=(3,))


def test_the_section_has_every_combination_and_the_answer(both):
    study = Study(both[1].table, both[1].fit, both[1].run)
    text = dict(sections(study))[TITLE]
    assert "**The damages" in text
    for row in ("| rtn | 3 | A4 KV3 | 3 |", "| rtn | 3 | A4 | 3 |", "| full precision | – | A4 KV3 | 3 |"):
        assert row in text
    assert "δ at D = 400k, with activations per token, dynamic range; keys per channel, after the rotary" in text


@pytest.mark.drawn("png")
def test_the_laws_of_three_precisions_are_in_the_section_and_in_a_figure(both, tmp_path):
    study = Study(both[1].table, both[1].fit, both[1].run)
    text = dict(sections(study))[TITLE]
    assert "**rtn, laws of three precisions.** The " in text
    assert {
        line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| N_eff |", "| product |", "| sum |"))
    } == {"| N_eff", "| product", "| sum"}
    (entry,) = both[1].fit["precisions"]
    assert all(f"W3{more}" in text for more in ("A4", "KV3", "A4KV3"))
    assert len(both[1].replicates) == len(both[1].fit["fits"]) + len(entry["forms"])
    data = precisions_figure.data(study)
    points = data[data["kind"] == "measured"]
    assert set(points["name"]) == {"W3", "W3A4", "W3KV3", "W3A4KV3"}
    assert len(points) == 4 * 3
    assert set(data.loc[data["kind"] == "fit", "name"]) == set(points["name"])
    paths = figures.write(tmp_path, study, {precisions_figure.NAME: precisions_figure})
    assert {path.suffix for path in paths} == {".png", ".pdf", ".csv"}
    assert precisions_figure.data(Study(both[0].table, both[0].fit, both[0].run)).empty


def test_everything_else_is_of_weights_alone(both):
    plain, whole = (Study(result.table, result.fit, result.run) for result in both)
    assert plain.digest == whole.digest
    assert whole.labels == plain.labels == ["rtn"]
    assert len(whole.rows) == len(plain.rows)
    assert [e for e in whole.fit["fits"] if "digest" in e] == [e for e in plain.fit["fits"] if "digest" in e]
    assert TITLE not in dict(sections(plain))
    changed = {title for title, text in sections(whole) if dict(sections(plain)).get(title) != text}
    assert changed <= {TITLE, tokens.TITLE, "Warnings", "How this was measured"}
    assert any("18 rows not fitted: activations or cache quantized" in warning for warning in whole.warnings)


def test_names_are_short_for_integers_and_whole_for_others():
    row = {"activation_format": "int8", "activation_bits": 8.0, "kv_format": "fp8_e4m3", "kv_bits": 8.0}
    assert runtime_name(row) == "A8 KV fp8_e4m3"
    assert runtime_name({"activation_format": float("nan"), "kv_format": None}) == ""
