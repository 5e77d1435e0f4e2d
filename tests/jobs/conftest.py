"""A quick watch on a folder that does not exist yet."""

import json

import pytest

from ptq_eval.jobs import watch as watching
from tests.jobs.support import CSV, QUICK


@pytest.fixture
def options(small, monkeypatch):
    """Those of a quick watch, whose report is a table alone: figures take most of the time, and one test has them."""

    def save(folder, result):
        result.table.to_csv(folder / CSV)
        (folder / "fit.json").write_text(json.dumps(result.fit, default=str))

    monkeypatch.setattr(watching, "save_report", save)
    return {**small, **QUICK, "quantizers": "rtn", "bits": 4}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "live" / "small"
