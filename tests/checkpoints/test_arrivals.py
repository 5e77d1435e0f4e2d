"""Contract of what counts as complete: files that have been seen unchanged for long enough, and are sound."""

import os
import time
from dataclasses import replace

import pytest

from ptq_eval.checkpoints.arrivals import LONG, Arrivals, files_of
from ptq_eval.records import Checkpoint, Problem


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    return Checkpoint("run", 1, 1000, 1000, location=str(folder))


def write(checkpoint, content, at):
    path = os.path.join(checkpoint.location, "model.safetensors")
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, (at, at))


def test_a_checkpoint_is_still_once_it_was_seen_unchanged_for_long_enough(checkpoint):
    arrivals = Arrivals(settle=10, patience=100, wall_clock=lambda: 1000.0)
    write(checkpoint, b"12", at=1000)
    assert arrivals.still([checkpoint], now=1000) == []
    assert arrivals.still([checkpoint], now=1009) == []
    write(checkpoint, b"123", at=1009)
    assert arrivals.still([checkpoint], now=1012) == []
    assert arrivals.still([checkpoint], now=1021) == []
    assert arrivals.still([checkpoint], now=1022) == [checkpoint]


def test_an_old_checkpoint_is_still_at_once(checkpoint):
    write(checkpoint, b"12", at=1000)
    arrivals = Arrivals(10, 100, wall_clock=lambda: time.time() + 10 * LONG)
    assert arrivals.still([checkpoint], now=7) == [checkpoint]


def test_a_copy_that_keeps_the_times_of_its_original_has_only_just_come(checkpoint):
    write(checkpoint, b"12", at=1000)
    arrivals = Arrivals(settle=10, patience=100)
    assert arrivals.still([checkpoint], now=7) == []
    assert not arrivals.given_up(checkpoint, now=16)
    assert arrivals.still([checkpoint], now=17) == [checkpoint]


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_clock_that_jumps_neither_hurries_nor_delays(checkpoint, jump):
    wall, clock = [1000.0], [5.0]
    arrivals = Arrivals(10, 100, clock=lambda: clock[0], wall_clock=lambda: wall[0])
    write(checkpoint, b"12", at=1000)
    assert arrivals.still([checkpoint]) == []
    wall[0] += jump
    clock[0] += 9
    assert arrivals.still([checkpoint]) == []
    clock[0] += 1
    assert arrivals.still([checkpoint]) == [checkpoint]


@pytest.mark.parametrize("clock", [-60, 60])
def test_the_clock_of_a_file_server_may_be_wrong_by_a_minute(checkpoint, clock):
    arrivals = Arrivals(settle=10, patience=100, wall_clock=lambda: 1000.0)
    for now, size in ((1000, 1), (1008, 2), (1016, 3)):
        write(checkpoint, b"x" * size, at=now + clock)
        assert arrivals.still([checkpoint], now=now) == []
    assert arrivals.still([checkpoint], now=1026) == [checkpoint]


def test_a_damaged_checkpoint_is_waited_for_only_so_long(checkpoint):
    arrivals = Arrivals(settle=10, patience=100, wall_clock=lambda: 1000.0)
    write(checkpoint, b"12", at=1000)
    damaged = replace(checkpoint, problems=(Problem("unreadable", "cut off", fatal=True),))
    arrivals.still([checkpoint], now=1000)
    assert not arrivals.given_up(damaged, now=1099)
    assert arrivals.given_up(damaged, now=1100)


def test_a_folder_that_is_gone_is_never_still_and_a_remote_checkpoint_always(tmp_path):
    gone = Checkpoint("run", 1, 1000, 1000, location=str(tmp_path / "gone"))
    remote = Checkpoint("run", 1, 1000, 1000, location="hub:org/name@step1")
    assert Arrivals(settle=0.1, patience=1).still([gone, remote]) == [remote]
    assert files_of(gone) == ()
