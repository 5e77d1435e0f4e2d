"""A SLURM of this machine alone: munge, a controller and a node on loopback, without accounting and cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=debug Nodes={host} Default=YES MaxTime=60 State=UP
"""


def installed() -> bool:
    """Whether this machine has all that `cluster` starts, and may start it."""
    return os.getuid() == 0 and all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch")))


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and squeue use a cluster whose files are below `folder`."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    ports = dict(zip(("controller", "node"), _free_ports(2)))
    conf.write_text(_CONF.format(folder=folder, host=socket.gethostname(), **ports), encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    places = {
        "socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed",
        "log-file": "munge.log",
    }  # fmt: skip
    munge = ["munged", "--force", "--foreground", *(f"--{name}={folder / file}" for name, file in places.items())]
    started = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: "idle" in _asked(["sinfo", "--noheader", "--format=%T"], environment), folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=environment, check=False, capture_output=True)
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, capture_output=True)
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def queue(environment: dict[str, str]) -> str:
    """What is queued or running."""
    return _asked(["squeue", "--noheader", "--array", "--format=%i %j %T"], environment)


def wait_until_empty(environment: dict[str, str], seconds: float = 300) -> None:
    """Wait for the end of all jobs."""
    deadline = time.monotonic() + seconds
    while queue(environment).strip():
        if time.monotonic() > deadline:
            raise TimeoutError(queue(environment))
        time.sleep(0.3)


def _asked(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _wait(ready, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))
            raise TimeoutError(f"SLURM does not start: {logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
