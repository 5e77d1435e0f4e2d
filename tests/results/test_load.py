"""Contract: what an output folder holds is loaded whole, and each record of it is parsed once per command."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest

import ptq_eval
from ptq_eval.errors import NothingToFitError
from ptq_eval.jobs.compare_laws import compare_laws, fit_by
from ptq_eval.records import Measurement
from ptq_eval.report import render
from ptq_eval.report.run.warnings import notes
from ptq_eval.results import points
from ptq_eval.results.load import load
from ptq_eval.results.points import Skipped
from ptq_eval.results.store import Store
from tests.support.steps import lines


@pytest.fixture
def out(complete, tmp_path):
    return shutil.copytree(complete[0], tmp_path / "out")


@pytest.fixture
def parsed(monkeypatch):
    """How often each record was parsed, by its trial's key."""
    counts, parse = Counter(), Measurement.from_dict

    def counting(data):
        found = parse(data)
        counts[found.trial.key()] += 1
        return found

    monkeypatch.setattr(Measurement, "from_dict", counting)
    return counts


COMMANDS = {
    "load": lambda out: ptq_eval.load(out, bootstrap=5),
    "compare_laws": lambda out: compare_laws(out, "ratio", bootstrap=5),
    "fit by bits": lambda out: fit_by(out, "bits", bootstrap=5),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_reads_parses_each_record_once(out, parsed, command):
    COMMANDS[command](out)
    assert len(parsed) == lines(out)
    assert set(parsed.values()) == {1}


def test_a_run_with_its_report_reads_the_rows_of_its_table_once(out, trajectory, small, monkeypatch):
    read, tables = points._point, Counter()

    def counting(row, axis):
        tables[row["key"]] += 1
        return read(row, axis)

    monkeypatch.setattr(points, "_point", counting)
    result = ptq_eval.run(trajectory, out, **small)
    render(result.table, result.fit, result.run, result.points)
    assert len(tables) == len(result.table)
    assert set(tables.values()) == {1}


@pytest.mark.parametrize("run_json", [True, False], ids=["resumed", "without run.json"])
def test_a_run_parses_what_is_stored_once_and_what_it_adds_once(out, trajectory, small, parsed, run_json):
    [path] = (out / "records").iterdir()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    if not run_json:
        (out / "run.json").unlink()
    result = ptq_eval.run(trajectory, out, write_report=False, **small)
    assert len(parsed) == len(result.table)
    assert set(parsed.values()) == {1}


def test_a_store_sees_what_other_workers_add(out):
    store, other = Store(out), Store(out, (2, 2))
    before = store.measurements()
    with other.writer() as writer:
        writer.append(before[0])
    assert store.measurements() == before
    assert store.conflicts == []
    with other.writer() as writer:
        writer.append(replace(before[0], n_tokens=tuple(n + 1 for n in before[0].n_tokens)))
    assert store.measurements() == before
    assert len(store.conflicts) == 1


def test_results_hold_table_points_and_digest(complete):
    results = load(complete[0])
    assert len(results.frame) == len(complete[1].table) == len(results.points)
    assert results.digest == complete[1].fit["records"] == load(complete[0]).digest
    assert results.n_measured == results.n_sound == 3
    assert not results.excluded
    assert set(results.versions) == {"none", "rtn", "gptq"}


def test_rows_that_no_law_can_use_are_counted(out):
    text = (out / "run.json").read_text(encoding="utf-8")
    (out / "run.json").write_text(text.replace('"tokens": 100000,', '"tokens": null,'), encoding="utf-8")
    results = load(out)
    assert results.excluded == {Skipped.TOKENS_UNKNOWN: len(results.frame) - len(results.points)}
    assert results.excluded[Skipped.TOKENS_UNKNOWN] > 0
    warnings = ptq_eval.load(out, bootstrap=5).fit["warnings"]
    assert any(warning.endswith("rows not fitted: tokens unknown, or none seen (D = 0)") for warning in warnings)


def test_a_folder_without_records_is_no_output(tmp_path):
    with pytest.raises(NothingToFitError, match="output folder of a run"):
        load(tmp_path)


def test_the_laws_that_a_run_was_asked_for_are_fitted_again(out, trajectory, small):
    def laws(result):
        return [entry["law"] for entry in result.fit["fits"] if entry["quantizer"] == "gptq"]

    assert laws(ptq_eval.load(out, bootstrap=5)) == ["kumar_ptq_ratio"]
    assert laws(ptq_eval.run(trajectory, out, laws="ouyang", **small)) == ["ouyang"]
    assert laws(ptq_eval.load(out, bootstrap=5)) == ["ouyang"]
    assert laws(ptq_eval.load(out, laws=("kumar",), bootstrap=5)) == ["kumar_ptq"]


def test_a_record_that_was_damaged_is_named_with_what_is_missing(out):
    [path] = (out / "records").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(at for at, line in enumerate(lines) if b'"quantizer":"gptq"' in line)
    lost = Store(out).measurements()[place].trial
    path.write_bytes(b"".join([*lines[:place], lines[place][:50] + b"\n", *lines[place + 1 :]]))
    [found] = [note for note in notes(load(out)) if "cannot be read" in note]
    assert f"line {place + 1} of records/{path.name}" in found
    assert f"missing here are {lost.checkpoint.name} gptq {lost.bits} bits; repeat ptq-eval run" in found
