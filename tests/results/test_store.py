"""Contract: what is stored is kept, whatever happens to the writer."""

import errno
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ptq_eval.errors import NothingToFitError, OutputFolderError, OutputFullError, OutputMismatchError
from ptq_eval.records import Checkpoint, Measurement, Scheme, Trial
from ptq_eval.results.store import Store

RUN = {"checkpoints": [], "fixed": {}, "quantizer_options": {}, "digests": {}}
CHECKPOINT = Checkpoint(run="a", step=1, tokens=10, params=2, weights_sha="w")


def record(bits=4, nll=(1 / 3, 0.1), **changes):
    trial = Trial(CHECKPOINT, "digest", "protocol", "rtn", "1", scheme=Scheme(bits, 16))
    return Measurement(trial, nll=nll, n_tokens=(7,) * len(nll), kl=nll, agree=(1,) * len(nll), **changes)


def write(store, *records):
    with store.writer() as writer:
        for one in records:
            writer.append(one)


def file_of(store):
    (path,) = store.records.glob("*.jsonl")
    return path


def test_records_come_back_bit_by_bit(tmp_path):
    store = Store(tmp_path)
    records = [record(2, (1 / 3, 2e-308)), record(3, details={"layers_skipped": {"a.b": "why"}})]
    write(store, *records)
    assert store.measurements() == records
    assert store.keys() == {r.trial.key() for r in records}
    assert store.conflicts == []


@pytest.mark.parametrize("lost", [1, 2, 40, 300])
def test_a_torn_last_line_is_skipped_and_removed_by_the_next_writer(tmp_path, lost):
    store = Store(tmp_path)
    write(store, record(2), record(3))
    path = file_of(store)
    path.write_bytes(path.read_bytes()[:-lost])
    whole = 2 if lost == 1 else 1  # without its line feed alone, a line is still a record
    assert len(store.measurements()) == whole
    write(store, record(4))
    assert [m.trial.bits for m in store.measurements()] == [*(2, 3)[:whole], 4]
    assert path.read_bytes().endswith(b"\n")
    assert store.damaged == Store(tmp_path).damaged == []


def test_a_line_that_was_damaged_is_named_and_its_trial_is_missing(tmp_path):
    store = Store(tmp_path)
    write(store, record(2), record(3), record(4))
    path = file_of(store)
    first, second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, second[:50], b"", third, third[:9]]))
    store = Store(tmp_path)
    assert [m.trial.bits for m in store.measurements()] == [2, 4]
    assert store.keys() == {record(2).trial.key(), record(4).trial.key()}
    assert store.damaged == [(path, 2)]
    write(store, record(3))
    assert [m.trial.bits for m in store.measurements()] == [2, 4, 3]
    assert store.damaged == [(path, 2)]


def test_bytes_that_are_no_record_are_skipped(tmp_path):
    store = Store(tmp_path)
    write(store, record(2))
    with file_of(store).open("ab") as handle:
        handle.write(b'\xff\xfe\n{"trial": 3}\n[]\n\n{"nll": [1]}\n')
    write(store, record(3))
    assert [m.trial.bits for m in store.measurements()] == [2, 3]


def test_duplicates_count_once_and_different_values_are_reported(tmp_path):
    store = Store(tmp_path)
    write(store, record(2), record(3), record(2))
    assert len(store.measurements()) == 2
    assert store.conflicts == []
    write(Store(tmp_path, (2, 2)), record(2, provenance={"host": "other"}), record(3, nll=(0.3, 0.1)))
    found = store.measurements()
    assert [m.nll for m in found] == [record(2).nll, record(3).nll], "the first one is kept"
    assert [other.trial for _, other in store.conflicts] == [record(3).trial]


def test_a_failed_record_gives_way_to_a_later_good_one(tmp_path):
    store, failed = Store(tmp_path), replace(record(2, nll=()), status="failed", message="no")
    write(store, failed)
    assert store.keys() == set()
    assert [m.status for m in store.measurements()] == ["failed"]
    write(store, record(2), failed)
    assert [m.status for m in store.measurements()] == ["ok"]
    assert store.keys() == {record(2).trial.key()}
    assert store.conflicts == []


def test_a_second_writer_of_one_shard_is_refused(tmp_path):
    with Store(tmp_path, (1, 2)).writer() as first:
        with pytest.raises(OutputMismatchError, match="another process writes"), Store(tmp_path, (1, 2)).writer():
            pass
        with Store(tmp_path, (2, 2)).writer() as second:
            second.append(record(2))
        first.append(record(3))
    assert {m.trial.bits for m in Store(tmp_path).measurements()} == {2, 3}
    write(Store(tmp_path, (1, 2)), record(4))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_error_and_what_is_stored_is_kept(tmp_path, monkeypatch, code):
    store = Store(tmp_path)

    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    write(store, record(2))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputFullError, match="no space left"):
        write(store, record(3))
    monkeypatch.undo()
    assert record(2) in store.measurements()
    write(store, record(4))
    assert {2, 4} <= {m.trial.bits for m in store.measurements()}


def test_an_output_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputFolderError, match="is a file, or below one"):
            Store(folder).write_run({})
        with pytest.raises(OutputFolderError, match="is a file, or below one"), Store(folder).writer():
            pass


def test_run_json_is_replaced_whole(tmp_path):
    store = Store(tmp_path / "new")
    assert store.read_run() is None
    store.write_run({**RUN, "seconds": 1})
    store.write_run({**RUN, "seconds": 2})
    assert store.read_run() == {**RUN, "seconds": 2}
    assert [p.name for p in store.folder.iterdir()] == ["run.json"]
    for damaged in (json.dumps(RUN)[:-1], "[]", "{}", json.dumps({**RUN, "fixed": None})):
        (store.folder / "run.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(OutputMismatchError, match="damaged"):
            store.read_run()


def test_workers_that_replace_run_json_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    """Both under one process number, as workers in containers on two machines are."""
    original = Path.replace

    def meanwhile(partial, target):
        monkeypatch.undo()
        Store(tmp_path, (2, 2)).write_run({**RUN, "seconds": 2})
        return original(partial, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    Store(tmp_path, (1, 2)).write_run({**RUN, "seconds": 1})
    assert Store(tmp_path).read_run() == {**RUN, "seconds": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_is_no_output_is_told(tmp_path):
    with pytest.raises(NothingToFitError, match="not an output folder"):
        Store(tmp_path).require()
    store = Store(tmp_path)
    store.write_run(RUN)
    with pytest.raises(NothingToFitError):
        store.require()


def test_compressed_records_are_read_like_others_and_not_appended_to(tmp_path):
    store = Store(tmp_path)
    write(store, record(2), record(3))
    path = file_of(store)
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    store = Store(tmp_path)
    assert store.measurements() == [record(2), record(3)]
    before = packed.read_bytes()
    write(store, record(4))
    assert {m.trial.bits for m in store.measurements()} == {2, 3, 4}
    assert packed.read_bytes() == before
    packed.write_bytes(before[:-20])  # damaged: named, and what was before the damage counts
    damaged = Store(tmp_path)
    assert record(4) in damaged.measurements()
    assert [file for file, _ in damaged.damaged] == [packed]
