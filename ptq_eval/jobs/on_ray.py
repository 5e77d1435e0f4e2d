"""Jobs as tasks of a Ray cluster that exists; each runs `ptq-eval work` on one file, with its share of cores or a GPU.

The job's file, the windows and all records are in the output folder, which every node must see.  A task whose node died
is given to another node however often that happens; one whose process died, as often as in `jobs.pool`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptq_eval.errors import ClusterError, MeasurementFailedError, OutputFullError, PtqEvalError, full_disk
from ptq_eval.jobs.files import error_from_dict, write_job
from ptq_eval.jobs.job import Conditions, Job, Tick, write_failed
from ptq_eval.jobs.machine import THREADS
from ptq_eval.jobs.pool import MAX_DEATHS
from ptq_eval.measure.sweep import cost
from ptq_eval.results.store import Store, Writer

_SECONDS = 5
"""For which an address is tried: Ray itself ends the whole process after five minutes."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` ("" is the one that RAY_ADDRESS or this machine names).

    Raises ClusterError.
    """
    try:
        import ray  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise ClusterError("Ray is not installed here", remedy='pip install "ptq-eval[ray]"') from error
    found = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    remedy = "`ray status` shows whether it runs; --executor ray:HOST:PORT names another"
    host, colon, port = found.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_SECONDS).close()
        except OSError as error:
            raise ClusterError("the Ray cluster cannot be reached", got=f"{found}: {error}", remedy=remedy) from error
    try:
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:
        got = f"{found}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise ClusterError("the Ray cluster cannot be reached", got=got, remedy=remedy) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def on_ray(
    jobs: Sequence[Job], conditions: Conditions, store: Store, writer: Writer, address: str, tick: Tick
) -> list[PtqEvalError | None]:
    """Measure jobs on a Ray cluster, as many at a time as it holds; the error of each that fails, in order.

    Raises ClusterError, and OutputFullError: going on would lose what is measured.
    """
    folder = store.folder.resolve() / "ray" / store.shard.replace("/", "-of-")
    with connected(address) as ray:
        shutil.rmtree(folder, ignore_errors=True)  # of a driver that was killed
        with full_disk(store.folder):
            folder.mkdir(parents=True)
            paths = [write_job(folder, number, job, conditions) for number, job in enumerate(jobs)]
        found = _run(ray, paths, jobs, conditions, store, tick)
        shutil.rmtree(folder, ignore_errors=True)
    for job, error in zip(jobs, found):
        if isinstance(error, (OutputFullError, ClusterError)):
            raise error
        if isinstance(error, _LostError):
            write_failed(job, error, writer)
    return found


class _LostError(MeasurementFailedError):
    """Every process that measured a checkpoint died."""


def _run(
    ray: Any, paths: Sequence[Path], jobs: Sequence[Job], conditions: Conditions, store: Store, tick: Tick
) -> list[PtqEvalError | None]:
    threads = int(os.environ.get(THREADS[0], "1"))
    asked = {"num_gpus": 1} if conditions.device == "cuda" else {"num_cpus": threads}
    task = ray.remote(max_retries=0, **asked)(_measured)
    out, environment = str(store.folder.resolve()), {name: str(threads) for name in THREADS}
    deaths: Counter[int] = Counter()
    attempts: Counter[int] = Counter()
    found: dict[int, PtqEvalError | None] = {}
    running: dict[Any, int] = {}
    waiting = deque(range(len(paths)))
    while waiting or running:
        while waiting:
            number = waiting.popleft()
            name = f"ray-{number:04d}-{attempts[number]}"
            attempts[number] += 1
            running[task.remote(str(paths[number]), out, store.shard, name, environment)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            answer = ray.get(done)
        except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
            waiting.append(number)
            continue
        except ray.exceptions.RayError as error:  # the process of the task died, also where memory ran out
            answer = {"lost": (str(error).splitlines() or [""])[0]}
        if "lost" in answer and (deaths.update([number]) or deaths[number] < MAX_DEATHS):
            waiting.append(number)
            continue
        found[number] = _error(answer)
        tick(cost(jobs[number].work, jobs[number].missing))
    return [found[number] for number in range(len(paths))]


def _error(answer: dict[str, Any]) -> PtqEvalError | None:
    if "lost" in answer:
        return _LostError(
            f"{MAX_DEATHS} processes that measured a checkpoint died",
            got=answer["lost"],
            remedy="a smaller --memory or larger nodes, if memory ran out; the other checkpoints are measured",
        )
    if "unseen" in answer:
        return ClusterError(
            "a node of the Ray cluster does not see the output folder",
            got=answer["unseen"],
            remedy="choose an -o on a file system that all nodes share",
        )
    return error_from_dict(answer["error"]) if answer["error"] else None


def _measured(path: str, out: str, shard: str, name: str, environment: dict[str, str]) -> dict[str, Any]:
    """On a node: the answer of `ptq-eval work` to one file; "lost" or "unseen" where it has none."""
    if not os.path.exists(path):
        return {"unseen": f"{path} on {socket.gethostname()}"}
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [sys.executable, "-m", "ptq_eval", "work", out, shard, name],
            input=f"{path}\n".encode(),
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **environment},
            check=False,
        )
        said.seek(0)
        words = " ".join(said.read().decode(errors="replace").split())[-300:]
    for line in done.stdout.decode(errors="replace").splitlines():
        answer = json.loads(line) if line.endswith("}") else {}
        if "done" in answer:
            return answer
    return {"lost": f"exit code {done.returncode}" + (f": {words}" if words else "")}
