"""Contract: a worker is kept from job to job, ended in time and within its memory, and does not leave children."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_eval import units
from ptq_eval.backends import process, worker
from ptq_eval.backends.base import Cell
from ptq_eval.backends.environments import place_of
from ptq_eval.backends.process import Limits, Worker, write_job
from ptq_eval.backends.workers import Workers


@pytest.fixture
def exchange(tmp_path):
    folder = tmp_path / "exchange"
    folder.mkdir()
    save_file({"a": torch.randn(8, 32, generator=torch.Generator().manual_seed(0))}, folder / "weights.safetensors")
    save_file({"probe": torch.zeros(1, 4, dtype=torch.long)}, folder / "ids.safetensors")
    return folder


def answers(folder, *methods, **limits):
    with Workers(Limits(**limits)) as workers:
        return asked(workers, folder, *methods)


def asked(workers, folder, *methods):
    for old in folder.glob("*.json"):
        old.unlink()
    cells = [Cell(method, 4, 16, False) for method in methods]
    return list(workers.run(place_of("fake"), folder, cells, {"a": 32}))


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_the_next_cell_is_done(fakes, exchange):
    with Workers() as workers:
        asked(workers, exchange, "good")  # so that the imports do not count
        workers.limits = Limits(2)
        (sleeping,) = asked(workers, exchange, "sleeps")
        workers.limits = Limits()
        (good,) = asked(workers, exchange, "good")
    assert "no answer within 2 s" in sleeping.error
    assert good.error == ""
    assert good.facts["seconds"] >= 0
    assert set(good.facts["versions"]) >= {"torch"}


def test_a_worker_that_is_not_ready_in_time_fails_in_all_cells(fakes, exchange):
    found = answers(exchange, "good", "good", seconds=0.2)
    assert [("its package was not imported within 0.2 s" in answer.error) for answer in found] == [True, True]


def test_a_package_that_was_not_imported_is_not_waited_for_at_the_next_checkpoint(fakes, exchange, monkeypatch):
    with Workers(Limits(0.2)) as workers:
        (first,) = asked(workers, exchange, "good")
        monkeypatch.setattr(Worker, "__init__", None)  # no other process is started
        (second,) = asked(workers, exchange, "good")
    assert second.error == first.error
    assert "its package was not imported within 0.2 s" in second.error


@pytest.mark.parametrize(
    ("imported", "answered", "reason"),
    [
        (8, 16, ""),
        (8, 30, "no answer within 10 s"),
        (12, 16, "its package was not imported within 10 s"),
    ],
)
def test_the_clock_of_a_cell_starts_once_the_package_is_imported(
    fakes, tmp_path, monkeypatch, imported, answered, reason
):
    answer, now = tmp_path / "0.json", [0]

    def sleep(_):
        now[0] += 1
        if now[0] == answered:
            answer.touch()

    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(Worker, "ready", property(lambda _: now[0] >= imported))
    one = Worker(place_of("fake"), 1)
    try:
        assert one.wait(answer, Limits(10)) == reason
    finally:
        one.close(kill=True)


def test_a_progress_bar_is_not_the_last_word(fakes):
    one = Worker(place_of("fake"), 1)
    one._process.kill()
    one._process.wait()
    try:
        one._log.write_text(
            "cannot allocate\n\rLoading weights:   0%|          | 0/21\rLoading weights: 100%|███| 21/21\n"
        )
        assert one.last_words().startswith(": cannot allocate; log: ")
    finally:
        one.close(kill=True)


def test_a_backend_that_returns_nothing_is_named(tmp_path):
    class Forgetful:
        def quantize(self, job):
            pass

    before, job = SimpleNamespace(ids={}), {"layers": {}, "device": "cpu", "reload": False}
    cell = {"method": "m", "bits": 4, "group_size": 16, "symmetric": False}
    with pytest.raises(TypeError, match="returned nothing, neither a model"):
        worker._cell(Forgetful(), before, job, cell, tmp_path / "0.safetensors")


def test_a_worker_that_takes_too_much_memory_is_ended(fakes, exchange):
    (answer,) = answers(exchange, "good", seconds=600, memory=units.read("50MB", units.BYTES))
    assert "took more than 50 MB of memory" in answer.error


def first_number(answer):
    """The first weight of an answer, where some fakes put what they have to say."""
    return load_file(answer.weights)["layer:a"][0, 0].item()


def test_one_process_does_job_after_job_and_ends_with_the_run(fakes, exchange):
    with Workers() as workers:
        found = {first_number(answer) for _ in range(3) for answer in asked(workers, exchange, "process", "process")}
        (number,) = found
        assert psutil.pid_exists(int(number))
    assert not psutil.pid_exists(int(number))


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_only_its_cell_fails(fakes, exchange):
    with Workers() as workers:
        (before,) = asked(workers, exchange, "process")
        old = first_number(before)
        first, killed, last = asked(workers, exchange, "process", "killed", "process")
        assert first_number(first) == old
        assert "killed by SIGKILL" in killed.error
        assert "about to die" in killed.error
        new = first_number(last)
        assert new != old
        (next_job,) = asked(workers, exchange, "process")
        assert first_number(next_job) == new


@pytest.mark.slow
def test_a_process_that_died_between_two_jobs_costs_no_cell(fakes, exchange):
    with Workers() as workers:
        (before,) = asked(workers, exchange, "process")
        process = psutil.Process(int(first_number(before)))
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        (after,) = asked(workers, exchange, "process")
        assert after.error == ""


@pytest.mark.slow
def test_what_a_package_does_not_free_does_not_count_against_later_jobs(fakes, exchange):
    with Workers() as workers:
        methods = ("process", "leaks", "process")
        before, leaking, after = (first_number(asked(workers, exchange, method)[0]) for method in methods)
    assert before == leaking
    assert after != leaking


@pytest.mark.slow
def test_random_numbers_do_not_depend_on_what_was_done_before(fakes, exchange):
    with Workers() as workers:
        found = [first_number(a) for _ in range(2) for a in asked(workers, exchange, "draws", "good", "draws")[::2]]
    assert len(set(found)) == 1


@pytest.mark.slow
def test_a_caller_that_stops_asking_leaves_no_process(fakes, exchange):
    with Workers() as workers:
        (before,) = asked(workers, exchange, "process")
        for old in exchange.glob("*.json"):
            old.unlink()
        cells = [Cell(method, 4, 16, False) for method in ("good", "sleeps")]
        answers = workers.run(place_of("fake"), exchange, cells, {"a": 32})
        next(answers)
        answers.close()
        assert not psutil.pid_exists(int(first_number(before)))


DRIVER = """
import sys, time
from pathlib import Path
from ptq_eval.backends.environments import Place
from ptq_eval.backends.process import Worker

worker = Worker(Place("fake", "tests.backends.fakes:Fake", Path(sys.executable), True, {}), 1)
worker.ask(Path(sys.argv[1]))
print(worker._process.pid, flush=True)
time.sleep(3600)
"""


def test_a_worker_ends_in_the_middle_of_a_job_when_its_parent_is_killed(exchange):
    write_job(exchange, [Cell("sleeps", 4, 16, False)], {"a": 32})
    command = [sys.executable, "-c", DRIVER, str(exchange)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as driver:
        assert driver.stdout is not None
        worker = psutil.Process(int(driver.stdout.readline()))
        assert worker.is_running()
        driver.kill()
    deadline = time.monotonic() + 120
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
