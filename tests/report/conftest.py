"""One synthetic study and one whole report of it, shared by the tests of the report."""

from __future__ import annotations

import pytest

from ptq_eval.report import write
from tests.report.synthetic import make_fit, make_run, make_table


@pytest.fixture(scope="session")
def table():
    return make_table()


@pytest.fixture(scope="session")
def fit(table):
    return make_fit(table)


@pytest.fixture(scope="session")
def run(table):
    return make_run(table)


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """Where the report of the `written` fixture is."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def written(out, table, fit, run):
    """The paths that `write` returned."""
    return write(out, table, fit, run)
