"""Backends of the tests beside the real ones, and a folder of environments of its own for every test."""

from importlib.metadata import EntryPoint

import pytest

from ptq_eval import plugins

FAKES = {"fake": "Fake", "folds": "Folds", "broken": "Broken", "absent": "Absent", "elsewhere": "Elsewhere"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where environments, logs and results of conformance runs are kept."""
    monkeypatch.setenv("PTQ_EVAL_BACKENDS", str(tmp_path / "backends"))
    return tmp_path / "backends"


@pytest.fixture
def fakes(monkeypatch):
    """The names of the fake backends, as if a package provided them."""
    real = plugins._points
    group = "ptq_eval.backends"
    points = {name: EntryPoint(name, f"tests.backends.fakes:{cls}", group) for name, cls in FAKES.items()}
    monkeypatch.setattr(plugins, "_points", lambda kind: {**real(kind), **(points if kind == "backends" else {})})
    return list(FAKES)
