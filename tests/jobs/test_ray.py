"""Contract and recovery against a real Ray (make cluster-test): the records of one process."""

import os
import signal
import threading
import time

import pytest

import ptq_eval
from tests.support import ray_cluster
from tests.support.numbers import numbers, working

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster.cluster() as found:
        yield found


@pytest.fixture(scope="module")
def alone(trajectory, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    ptq_eval.run(trajectory, out, write_report=False, **small)
    return numbers(out)


def when_measuring(out, act):
    """A thread that calls act(numbers of processes) once something measures into `out`."""

    def wait():
        deadline = time.monotonic() + 200
        while not (list(out.glob("records/*-ray-*.jsonl")) and working(out)) and time.monotonic() < deadline:
            time.sleep(0.02)
        act(working(out))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_recovery_from_a_node_that_dies(trajectory, small, alone, tmp_path, cluster):
    out = tmp_path / "out"
    killer = when_measuring(out, lambda alive: ray_cluster.kill(cluster))
    result = ptq_eval.run(trajectory, out, write_report=False, executor=f"ray:{cluster.address}", **small)
    killer.join()
    assert result.problems == ()
    assert numbers(out) == alone
    assert not list((out / "ray").iterdir())


def test_recovery_from_a_process_that_is_killed_as_if_memory_ran_out(trajectory, small, alone, tmp_path, cluster):
    out = tmp_path / "out"
    killer = when_measuring(out, lambda alive: os.kill(alive[0], signal.SIGKILL))
    result = ptq_eval.run(trajectory, out, write_report=False, executor=f"ray:{cluster.address}", **small)
    killer.join()
    assert result.problems == ()
    assert numbers(out) == alone
