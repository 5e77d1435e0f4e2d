"""Golden: what is stored of a study is what the present code makes of its records."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.results.load import load

RESULTS = Path(__file__).resolve().parents[2] / "results"
STUDIES = sorted(path.parent for path in RESULTS.rglob("records") if any(path.glob("*.jsonl.gz")))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


def test_there_are_such_studies():
    assert {path.name for path in STUDIES} >= {"embedded", "formats"}
    assert sum(file.stat().st_size for path in STUDIES for file in (path / "records").iterdir()) < 5e6


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_the_table_is_that_of_the_records(study, tmp_path):
    shutil.copytree(study / "records", tmp_path / "records")
    shutil.copy(study / "run.json", tmp_path)
    assert not load(tmp_path).damaged
    stored = pd.read_csv(study / "degradation.csv")
    found = load(tmp_path).frame
    assert len(stored) == len(found)
    for name in ("tokens", "loss_q", "delta", "delta_se", "noise_floor"):
        pd.testing.assert_series_equal(stored[name], found[name], rtol=1e-9, check_dtype=False)


@pytest.mark.slow
def test_the_answers_of_the_embedded_study_are_those_of_its_records(tmp_path):
    """Observed turns and forecasts, which do not depend on the number of resamples."""
    study = RESULTS / "embedded"
    shutil.copytree(study / "records", tmp_path / "records")
    shutil.copy(study / "run.json", tmp_path)
    bootstrap = json.loads((study / "run.json").read_text())["options"]["bootstrap"]
    found = ptq_eval.load(tmp_path, bootstrap=bootstrap).fit
    stored = json.loads((study / "fit.json").read_text())
    assert len(found["critical_tokens"]) == len(stored["critical_tokens"])
    for one, other in zip(found["critical_tokens"], stored["critical_tokens"]):
        assert one["verdict_kind"] == other["verdict_kind"]
        assert close(one["answer"], other["answer"])
    for one, other in zip(found["fits"], stored["fits"]):
        assert close(one["parameters"], other["parameters"])


def close(one, other):
    """Whether two JSON values have the same shape and numbers that differ by rounding only."""
    one, other = (json.dumps(value, sort_keys=True, default=str) for value in (one, other))
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(*(map(float, NUMBER.findall(text)) for text in (one, other)))
    return all(a == pytest.approx(b, rel=1e-3) for a, b in pairs)
