"""Contract: the next checkpoint is brought near while one is measured, within bounds, and nothing depends on it."""

import sys
import threading

import pytest

import ptq_eval
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.jobs import grid, parts, pool, prefetch
from ptq_eval.jobs.job import Conditions, Job, measure
from ptq_eval.jobs.prefetch import Near, Prefetch, bring
from ptq_eval.measure.trials import make_plan
from ptq_eval.results.store import Store
from tests.jobs.test_parts import MODEL, blobs, losses, suite, weights  # noqa: F401
from tests.support.hub import commit_of

ENOUGH = 60
"""Seconds after which an event that should have come fails a test."""


@pytest.fixture
def notes(monkeypatch):
    found = []

    class Noting(Prefetch):
        """Notes what would be brought near, and does nothing."""

        def begin(self, near):
            found.append(near)

    for place in (grid, parts, pool):
        monkeypatch.setattr(place, "Prefetch", Noting)
    return found


@pytest.fixture
def measuring(monkeypatch):
    """A list of calls that are made as a checkpoint's measuring begins, with its step."""
    calls = []

    def measured(job, *rest):
        for call in calls:
            call(job.work.checkpoint.step)
        return measure(job, *rest)

    monkeypatch.setattr(grid, "measure", measured)
    return calls


def digest(hub, revision):
    import hashlib

    return hashlib.sha256(hub.repositories[MODEL][revision]["model.safetensors"]).hexdigest()


def test_the_next_revision_arrives_while_one_is_measured(suite, measuring, tmp_path):  # noqa: F811
    """Measuring a revision does not begin before the weights of the next one have been asked for, and ends."""
    following = {1: "step8", 8: "step64", 64: "step1000"}
    arrived = threading.Condition()
    answer = suite.answer

    def noticed(request):
        answer(request)
        with arrived:
            arrived.notify_all()

    suite.answer = noticed

    def wait(step):
        if step in following:
            with arrived:
                assert arrived.wait_for(lambda: digest(suite, following[step]) in suite.fetched(), ENOUGH)

    measuring.append(wait)
    result = suite.run(tmp_path / "out", prune=True)
    assert len(losses(result)) == 4
    assert suite.most == 2
    assert blobs(suite) == []


def test_one_revision_is_fetched_ahead_and_the_first_is_not(suite, notes, tmp_path):  # noqa: F811
    suite.run(tmp_path / "out", prune=True)
    assert [[c.revision for c in near.fetch] for near in notes if near.fetch] == [["step8"], ["step64"], ["step1000"]]


@pytest.mark.parametrize("times", [1, None])
def test_a_fetch_that_fails_is_silent_and_its_turn_tries_again(suite, measuring, times, tmp_path):  # noqa: F811
    """The hub refuses the weights of a revision, once or always, and measuring the one before waits for that."""
    refused, answer = threading.Semaphore(0), suite.answer
    weights_of_8, count = digest(suite, "step8"), []

    def refuse(request):
        if weights_of_8 in request.path and (times is None or len(count) < times):
            count.append(1)
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            refused.release()
        else:
            answer(request)

    suite.answer = refuse
    measuring.append(lambda step: step != 1 or refused.acquire(timeout=ENOUGH))
    result = suite.run(tmp_path / "out", prune=True)
    found = {row["step"] for row in result.table.to_dict("records") if row["status"] == "ok"}
    assert found == ({1, 8, 64, 1000} if times else {1, 64, 1000})
    assert len(result.problems) == (0 if times else 1)
    assert blobs(suite) == []


def test_an_interruption_leaves_nothing_behind(suite, measuring, tmp_path):  # noqa: F811
    def interrupt(step):
        if step == 8:
            raise KeyboardInterrupt

    measuring.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        suite.run(tmp_path / "out", prune=True)
    assert weights(suite) == []


def test_what_is_measured_already_is_not_fetched(suite, notes, tmp_path):  # noqa: F811
    suite.run(tmp_path / "out", prune=True)
    notes.clear()
    suite.run(tmp_path / "out", prune=True, bits=(3, 4))
    assert not any(near.fetch for near in notes)


def test_a_full_disk_is_not_filled(suite, notes, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(parts, "_SHARE_OF_DISK", 0.0)
    suite.run(tmp_path / "out", prune=True)
    assert not any(near.fetch for near in notes)


def test_two_names_of_one_commit_are_one_copy(suite, revisions, tmp_path):  # noqa: F811
    suite.add(MODEL, "step8", revisions["step1"])
    assert len({commit_of(suite.repositories[MODEL][name]) for name in ("step1", "step8")}) == 1
    suite.run(tmp_path / "out", prune=True)
    assert blobs(suite) == []


def test_the_files_of_the_next_folder_are_read(trajectory, small, notes, tmp_path):
    """One after the other: the weights of the next job, and nothing beside the last."""
    options = {**small, "quantizers": ("rtn",), "bits": (4,), "write_report": False}
    result = ptq_eval.run(trajectory, tmp_path / "out", **options)
    folders = [c["location"] for c in result.run["checkpoints"]]
    assert [[str(path.parent) for path in near.read] for near in notes] == [[folder] for folder in folders[1:]] + [[]]


def test_with_several_processes_the_first_that_waits_is_next(trajectory, small, notes, tmp_path, monkeypatch):
    """The processes say that they have measured what they are handed, at once."""
    answering = tmp_path / "python"
    answering.write_text("""#!/bin/sh\nwhile read job; do echo '{"error": null}'; done\n""")
    answering.chmod(0o755)
    plan = make_plan(verify_all(discover([trajectory])), RunConfig.of(small))
    jobs, store = [Job(work, work.trials) for work in plan.workloads], Store(tmp_path / "out")
    monkeypatch.setattr(sys, "executable", str(answering))
    with store.writer() as writer:
        found = pool.in_processes(jobs, Conditions("cpu"), store, writer, 2, lambda amount: None)
    assert found == [None] * 3
    assert [near.read[0].parent for near in notes] == [job.work.folder for job in jobs[2:]]


def test_what_is_larger_than_memory_or_read_at_once_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4000))
    for free, limit, least, begins in (
        (20_000, None, 4000, True), (12_000, None, 4000, False), (20_000, 3000, 0, False), (20_000, None, 4001, False),
    ):  # fmt: skip
        monkeypatch.setattr(prefetch, "free_memory", lambda device, free=free: free)
        monkeypatch.setattr(prefetch, "_LEAST", least)
        with Prefetch(limit) as one:
            one.begin(Near(read=(file,)))
            assert one.busy == begins


def test_the_process_ends_by_itself_and_when_it_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "_LEAST", 0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4000))
    said = []
    with Prefetch(None) as one:
        one.begin(Near(read=(file,)))
        one.wait(lambda: said.append(1))
        assert one._process.returncode == 0
        one.begin(Near(read=(file,)))
        process = one._process
    assert process.returncode is not None
    assert not one.busy


def test_whatever_cannot_be_brought_is_passed_over(tmp_path):
    bring({"fetch": [{"nonsense": 1}], "read": [str(tmp_path / "missing")]})
    assert Near.folder(tmp_path / "missing").read == (tmp_path / "missing",)
    assert Near.folder(tmp_path).read == ()
