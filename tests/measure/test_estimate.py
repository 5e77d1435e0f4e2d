"""Contract: an estimate counts every part of a sweep as often as the sweep does it, and writes nothing."""

import pytest

import ptq_eval
from ptq_eval.measure import estimate as subject
from ptq_eval.measure import sweep as sweeping
from tests.support.steps import planned

GRID = {"quantizers": ("rtn", "gptq", "awq"), "bits": (2, 4), "eval_windows": 8, "calib_windows": 3, "seq_len": 32}


@pytest.fixture
def second(monkeypatch):
    """Every call takes one second."""
    monkeypatch.setattr(subject, "_seconds", lambda task: (task(), 1.0)[1])


@pytest.fixture(scope="module")
def options(small):
    return {**small, **GRID}


@pytest.fixture(scope="module")
def work(saved, options):
    return planned(saved("llama").parent, **options).workloads[0]


def test_each_part_is_counted_as_often_as_it_is_done(work, second):
    found = subject.estimate(work, work.trials)
    variants, windows = 6, 8
    batch = windows  # all fit into one batch of so small a model
    assert found.trials == 1 + variants
    assert found.backends == 0
    assert found.seconds["evaluation"] == (1 + variants) * windows / batch / 2
    scored_again = 8 * subject.torch.get_num_threads() + variants
    assert found.seconds["noise floor"] == (8 + 8) + scored_again / batch / 2
    assert found.total == sum(found.seconds.values())
    assert found.memory > 0
    assert found.disk == 0


def test_what_is_stored_costs_nothing_more(work, second):
    whole, part = (subject.estimate(work, trials) for trials in (work.trials, work.trials[:1]))
    assert part.seconds["evaluation"] == whole.seconds["evaluation"] / 7
    assert part.seconds["solver"] == part.seconds["calibration"] == 0


def test_a_long_sweep_takes_disk(work, second, monkeypatch):
    monkeypatch.setattr(sweeping, "_SHORT", 0.0)
    found = subject.estimate(work, work.trials)
    assert found.disk >= 6 * 4 * 0.5 * work.checkpoint.params


def test_a_run_is_estimated_without_writing(saved, options, tmp_path, monkeypatch, second):
    called = []
    original = subject.estimate
    monkeypatch.setattr("ptq_eval.jobs.grid.estimate", lambda *a, **k: called.append(a) or original(*a, **k))
    found = ptq_eval.estimate(saved("llama").parent, tmp_path / "out", **options)
    assert len(found) >= len(called) == 1
    assert not (tmp_path / "out").exists()
