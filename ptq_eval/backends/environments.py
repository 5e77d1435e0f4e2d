"""Where backends are installed: beside us, or each in a virtual environment of its own on top of ours.

An environment of its own sees the packages of this one behind its own, by a path file: what it pins comes first, and
torch is shared.  So the comparison is between programs and not between builds of torch, an environment takes seconds
and megabytes instead of minutes and gigabytes, and nothing here is changed by it.  The version of torch is a
constraint; a backend that needs another one is refused by pip with its reason, which is kept and listed.

An environment serves whoever has the same Python and torch, not only the one that it was made from, as long as that
one's packages are where they were.

Environments are below `home()`: PTQ_EVAL_BACKENDS if set, else `ptq-eval/backends` in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_platform
from typing import Any

from ptq_eval import plugins
from ptq_eval.backends.base import Backend, distribution_name
from ptq_eval.config.cache import cache_folder
from ptq_eval.errors import BackendError

INSTALL_SECONDS = 1800
_SHARED = "zz_shared.pth"
"""The path file that names the packages behind an environment's own."""
_UNREACHABLE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError")
"""What pip's output has where no package index answers; its last line says that there is no such version."""


class State(StrEnum):
    """Whether a backend can be used."""

    HERE = "here"
    """Importable in this environment."""
    INSTALLED = "installed"
    """In an environment of its own."""
    STALE = "stale"
    """Its environment was made for another torch, Python or version, or on packages that are gone: install it again."""
    FAILED = "failed"
    """pip could not install it."""
    ABSENT = "not installed"
    UNSUPPORTED = "unsupported"
    """It needs a device that this machine lacks."""


@dataclass(frozen=True)
class Status:
    """The state of a backend, the version that would be used, and why it cannot be."""

    backend: Backend
    state: State
    version: str = ""
    why_not: str = ""

    @property
    def usable(self) -> bool:
        """Whether a worker can be started."""
        return self.state in (State.HERE, State.INSTALLED)


@dataclass(frozen=True)
class Distrust:
    """What the conformance run found wrong with a method."""

    finding: str
    message: str


@dataclass(frozen=True)
class Place:
    """Where a backend's worker runs: an interpreter, ours or not, with environment variables; `entry` is its class."""

    name: str
    entry: str
    python: Path
    ours: bool
    variables: Mapping[str, str]


def home() -> Path:
    """The folder of all environments and logs."""
    own = os.environ.get("PTQ_EVAL_BACKENDS")
    return Path(own) if own else cache_folder("backends")


def backend_of(name: str) -> Backend:
    """The backend of that name.  Raises UnknownPluginError."""
    return plugins.get("backends", name)()


def statuses() -> list[Status]:
    """The status of every backend, in order of name."""
    return [status_of(backend_of(name)) for name in plugins.names("backends")]


def status_of(backend: Backend) -> Status:
    """What is known of a backend without starting it."""
    here, folder = _here(backend), home() / backend.name
    record = _record(folder)
    if here:
        found = Status(backend, State.HERE, here)
    elif record is None:
        found = Status(backend, State.ABSENT, "", f"ptq-eval backends install {backend.name}")
    elif why := _stale(record, backend, folder):
        again = f"ptq-eval backends install {backend.name}"
        found = Status(backend, State.STALE, record["version"], f"{why}: {again}")
    elif record["error"]:
        found = Status(backend, State.FAILED, "", record["error"])
    else:
        found = Status(backend, State.INSTALLED, record["version"])
    if backend.device == "cuda" and not _cuda():
        return Status(backend, State.UNSUPPORTED, found.version, "needs CUDA, and no CUDA device is available")
    return found


def place_of(name: str) -> Place:
    """Where the worker of a backend runs.  Raises UnknownPluginError, or BackendError where it cannot be used."""
    status = status_of(backend_of(name))
    if not status.usable:
        got, remedy = str(status.state), status.why_not
        if status.state in (State.UNSUPPORTED, State.FAILED):
            got, remedy = status.why_not, status.backend.remarks
        raise BackendError(f"the backend {name} cannot be used", got=got, remedy=remedy)
    ours = status.state is State.HERE
    python = Path(sys.executable) if ours else interpreter(home() / name)
    return Place(name, plugins.value("backends", name), python, ours, dict(status.backend.variables))


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(name: str, seconds: float = INSTALL_SECONDS) -> Status:
    """Make the environment of a backend anew; its status afterwards.

    Raises UnknownPluginError, or BackendError with pip's reason, which `status_of` gives from then on.
    """
    backend = backend_of(name)
    folder = home() / name
    started, error = time.perf_counter(), ""
    try:
        _verdict(backend).unlink(missing_ok=True)  # of what is replaced
        _build(backend, folder, seconds)
    except (OSError, subprocess.SubprocessError) as problem:
        error = _reason(problem)
    record = {
        "fingerprint": fingerprint(backend),
        "version": "" if error else _version_in(folder, backend),
        "error": error,
        "seconds": time.perf_counter() - started,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()),
    }
    if error:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "installed.json").write_text(json.dumps(record), encoding="utf-8")
    except OSError as problem:
        error = error or _reason(problem)
    if error:
        remedy = backend.remarks or f"pip's output is in {_log(name)}"
        raise BackendError(f"the backend {name} cannot be installed", got=error, remedy=remedy)
    return status_of(backend)


def remove(name: str) -> bool:
    """Delete the environment of a backend; whether there was one.  Raises UnknownPluginError."""
    folder = home() / backend_of(name).name
    found = folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return found


def remember(backend: Backend, tried: str, wrong: Mapping[str, Distrust]) -> None:
    """Keep what the conformance run of the version `tried` found wrong, by method."""
    path = _verdict(backend)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {method: asdict(distrust) for method, distrust in wrong.items()}
    path.write_text(json.dumps({"version": tried, "wrong": found}), encoding="utf-8")


def distrusted(backend: Backend, used: str) -> dict[str, Distrust] | None:
    """What the conformance run of the version `used` found wrong, by method; None if there was no run."""
    try:
        found = json.loads(_verdict(backend).read_text(encoding="utf-8"))
        wrong = {method: Distrust(**distrust) for method, distrust in found["wrong"].items()}
        return wrong if found["version"] == used else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _verdict(backend: Backend) -> Path:
    return home() / "checks" / f"{backend.name}.json"


def fingerprint(backend: Backend) -> str:
    """What an environment was made for."""
    text = "\n".join((*backend.requirements, f"torch {version('torch')}", sys.version, get_platform()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stale(record: Mapping[str, Any], backend: Backend, folder: Path) -> str:
    """Why an environment cannot be used any more; empty where it can, or was never made."""
    if record["fingerprint"] != fingerprint(backend):
        return "made for another torch, Python or version"
    if not record["error"] and not interpreter(folder).exists():
        return "its interpreter has gone"
    if record["error"] or version("torch") in _torches(folder):
        return ""
    return "the packages that it was made on have gone, or have another torch now"


def _torches(folder: Path) -> list[str]:
    """The versions of torch that an environment sees behind its own packages."""
    try:
        shared = (_site(folder) / _SHARED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [found.version for found in distributions(name="torch", path=shared)]


def _build(backend: Backend, folder: Path, seconds: float) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=find_spec("pip") is None)
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    packages = _site(folder)
    (packages / _SHARED).write_text("\n".join(shared), encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n", encoding="utf-8")
    # Each file is compiled by its first import: compiling all of them takes longer than installing them.
    pip = [str(interpreter(folder)), "-m", "pip", "install", "--no-compile"]
    command = [*pip, "--constraint", str(constraints)]
    _log(backend.name).parent.mkdir(parents=True, exist_ok=True)
    with open(_log(backend.name), "w+", encoding="utf-8", errors="replace") as log:
        done = subprocess.run(
            [*command, *backend.requirements], stdout=log, stderr=log, check=False, timeout=seconds, env=_environment()
        )
        log.seek(0)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, stderr=log.read())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _log(name: str) -> Path:
    return home() / "logs" / f"{name}-install.log"


def _site(folder: Path) -> Path:
    """The folder of an environment's packages."""
    if os.name == "nt":
        return folder / "Lib" / "site-packages"
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"pip did not end within {error.timeout:g} s"
    text = getattr(error, "stderr", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(name in text for name in _UNREACHABLE):
        return "the package index cannot be reached"
    return next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no message")[:300]


def _record(folder: Path) -> dict[str, Any] | None:
    """What `install` wrote; None where it did not end, or the file is damaged."""
    try:
        record = json.loads((folder / "installed.json").read_text(encoding="utf-8"))
        return record if all(isinstance(record[name], str) for name in ("fingerprint", "version", "error")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def distribution_of(backend: Backend) -> str:
    """The distribution that the backend is."""
    return distribution_name(backend.requirements[0])


def _here(backend: Backend) -> str:
    """The version that is importable in this environment; empty if none is."""
    try:
        found = version(distribution_of(backend))
    except PackageNotFoundError:
        return ""
    return found if find_spec(backend.imports.partition(".")[0]) is not None else ""


def _version_in(folder: Path, backend: Backend) -> str:
    name = distribution_of(backend).lower().replace("_", "-")
    for found in distributions(path=[str(_site(folder))]):
        if (found.metadata["Name"] or "").lower().replace("_", "-") == name:
            return found.version
    return ""


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
