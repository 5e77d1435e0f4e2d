"""Contract: what a Ray that cannot be used says, and how answers of its tasks are read; no Ray is needed."""

import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import ptq_eval
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import ClusterError, MeasurementFailedError, OptionError
from ptq_eval.jobs import on_ray


@pytest.fixture
def ray(monkeypatch):
    """A package `ray` whose cluster cannot be reached."""

    def init(**options):
        raise SystemExit(15)

    made = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def test_an_address_where_nothing_listens_is_one_line_at_once(trajectory, small, tmp_path, ray):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ClusterError, match=rf"cannot be reached \| got 127.0.0.1:{port}: .*remedy: `ray status`"):
        ptq_eval.run(trajectory, tmp_path / "out", executor=f"ray:127.0.0.1:{port}", **small)
    assert time.monotonic() - started < 60


def test_ray_that_ends_the_process_is_one_line(ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"cannot be reached \| got auto: 15"), on_ray.connected(""):
        pass


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"not installed here \| remedy: pip install"), on_ray.connected(""):
        pass


@pytest.mark.parametrize("value", ["slurm", "ray:", "local:x", ""])
def test_other_executors_are_refused(value):
    with pytest.raises(OptionError, match="--executor has an unknown value"):
        RunConfig(executor=value)


def test_a_device_asked_for_on_a_cluster_need_not_be_here():
    assert RunConfig(executor="ray", device="cuda").resolve_device() == "cuda"
    with pytest.raises(OptionError, match="--executor has an unknown value"):
        RunConfig(executor="cuda")


def test_jobs_and_ray_exclude_each_other():
    with pytest.raises(OptionError, match="--jobs is for one machine"):
        RunConfig(executor="ray", jobs=2)


def test_a_node_that_does_not_see_the_folder(tmp_path):
    answer = on_ray._measured(str(tmp_path / "0000.json"), str(tmp_path), "1/1", "ray-0000-0", {})
    error = on_ray._error(answer)
    assert isinstance(error, ClusterError)
    assert "does not see the output folder" in str(error)
    assert "remedy: choose an -o on a file system that all nodes share" in str(error)


@pytest.mark.slow
def test_a_process_that_dies_answers_with_its_last_words(tmp_path, monkeypatch):
    path = tmp_path / "0000.json"
    path.write_text("{}")
    answer = on_ray._measured(str(path), str(tmp_path / "out"), "1/1", "ray-0000-0", {})
    assert answer["lost"].startswith("exit code 1: ")
    assert isinstance(on_ray._error(answer), MeasurementFailedError)
    killed = lambda *_, **__: SimpleNamespace(returncode=-9, stdout=b'{"tick": 1.0}\n{"do')
    monkeypatch.setattr(subprocess, "run", killed)
    assert on_ray._measured(str(path), str(tmp_path), "1/1", "n", {}) == {"lost": "exit code -9"}
