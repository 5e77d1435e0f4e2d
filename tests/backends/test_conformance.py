"""Contract: the conformance run finds what is wrong with a method, and such a method is not measured."""

import pytest
from click.testing import CliRunner

from ptq_eval.backends.environments import State, backend_of, distrusted, statuses
from ptq_eval.cli.main import cli
from ptq_eval.errors import BackendError
from ptq_eval.measure.foreign.conformance import Finding, check


@pytest.mark.slow
def test_each_fault_is_found_and_remembered(fakes, home, measure, saved):
    found = {one.method: one for one in check("folds")}
    assert {name: one.finding for name, one in found.items()} == {
        "fold": None,
        "scaled": Finding.LARGE_ERROR,
        "moves": Finding.MOVES,
        "reloads": Finding.RELOADS_DIFFERENTLY,
    }
    assert 0.02 < found["fold"].ratio < 1
    backend = backend_of("folds")
    version = next(status.version for status in statuses() if status.backend.name == "folds")
    assert set(distrusted(backend, version)) == {"scaled", "moves", "reloads"}
    assert distrusted(backend, "another version") is None
    table = measure(saved("llama"), quantizers=("folds:fold", "folds:scaled"), bits=(4,)).table.set_index("quantizer")
    assert table.loc["folds:fold", "status"] == "ok"
    assert table.loc["folds:scaled", "status"] == "failed"
    assert "failed its conformance run: error too large" in table.loc["folds:scaled", "message"]
    listed = CliRunner().invoke(cli, ["backends", "list"], catch_exceptions=False).output
    assert "checked" in listed
    assert "not saved and loaded by its check" in " ".join(listed.split())
    assert "moves: weights" in listed


def test_what_cannot_be_used_is_listed_with_its_reason_and_not_tried(fakes):
    known = {status.backend.name: status for status in statuses()}
    assert known["fake"].state is State.HERE
    assert known["absent"].state is State.ABSENT
    assert known["elsewhere"].state is State.UNSUPPORTED
    assert known["auto-gptq"].state is State.UNSUPPORTED
    assert "gptqmodel:gptq" in known["auto-gptq"].backend.remarks
    with pytest.raises(BackendError, match="somebody succeeds it"):
        check("elsewhere")


def test_a_broken_package_fails_in_all_methods(fakes):
    (one,) = check("broken")
    assert one.finding is Finding.FAILED
    assert "libmissing.so" in one.message
