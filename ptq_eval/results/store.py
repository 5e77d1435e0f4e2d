"""The only place that writes results: one append-only file of JSON lines per worker, and one `run.json`.

A record is written whole, and synced to the disk with the others of its checkpoint.  The trials of a
checkpoint that fit in memory are measured together and then written one by one, so a worker killed at any moment
loses at most those in hand (a power failure, those of one checkpoint), and leaves at most one torn
last line, which readers skip and the next writer removes; what is in the store was measured, and nothing has to be
repaired.  Any other line that cannot be read was damaged later: it is named, and its trial counts as missing.  Several
workers write side by side on a shared file system, each to a file of its own.

Files that are finished may be compressed (`gzip -9 OUT/records/*.jsonl`), as those of the studies in this repository
are.  They are read like the others, and nothing is appended to them.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ptq_eval.errors import NothingToFitError, OptionError, OutputMismatchError, full_disk
from ptq_eval.records import Measurement

_COMPARED = ("nll", "n_tokens", "n_bytes", "kl", "agree", "windows", "status")

_PLANNED = "planned"
_ALERTS = "alerts.json"
_ENDINGS = (".jsonl", ".jsonl.gz")
_UNFINISHED = "unfinished"
_MAPPINGS = ("fixed", "quantizer_options", "digests")
"""Keys of `run.json` that a later run is compared with."""


class Store:
    """The results under one output folder.

    `shard` is (i, n); worker i of n appends to `records/worker-i-of-n.jsonl`, and each `process` of a worker that has
    several to `records/worker-i-of-n-PROCESS.jsonl`.
    """

    def __init__(self, folder: str | Path, shard: tuple[int, int] = (1, 1), process: str = "") -> None:
        if not str(folder).strip():
            raise OptionError("the name of the output folder is empty", remedy="for the current folder write .")
        self.folder = Path(folder)
        self.records = self.folder / "records"
        self.shard = f"{shard[0]}/{shard[1]}"
        own = f"-{process}" if process else ""
        self._path = self.records / f"worker-{shard[0]}-of-{shard[1]}{own}.jsonl"
        self._copies = self.folder / f".copies-{self._path.stem}.json"
        self.conflicts: list[tuple[Measurement, Measurement]] = []
        self._files: dict[Path, _RecordFile] = {}

    @property
    def files(self) -> list[Path]:
        """The files of records, in order."""
        return sorted(path for path in self.records.glob("*") if is_records(path))

    @property
    def damaged(self) -> list[tuple[Path, int]]:
        """(file, line counted from 1) of lines that were read and hold no record, except a last one without its end."""
        return [(path, line) for path, file in self._files.items() for line in file.damaged]

    def measurements(self) -> list[Measurement]:
        """Every record of every worker, one per key, in order of file and line.

        A failed record is replaced by a later good one of the same key.  Two good records of one key with different
        numbers are listed in `conflicts`; the first is kept.  A line that an earlier call parsed is not parsed again.
        """
        return list(self._by_key().values())

    def _by_key(self) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        self.conflicts = []
        for path in self.files:
            for key, measurement in self._files.setdefault(path, _RecordFile(path)).read():
                old = found.get(key)
                if old is None or old.status == "failed":
                    found[key] = measurement
                elif measurement.status != "failed" and any(
                    getattr(old, name) != getattr(measurement, name) for name in _COMPARED
                ):
                    self.conflicts.append((old, measurement))
        return found

    def keys(self) -> set[str]:
        """Keys of the trials that need not be run again; a failed one may succeed next time."""
        return {key for key, measurement in self._by_key().items() if measurement.status != "failed"}

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """A writer that holds this worker's file for itself.  Raises OutputMismatchError if another one does."""
        with full_disk(self.folder):
            self.records.mkdir(parents=True, exist_ok=True)
            handle = open(self._path, "ab+")  # noqa: SIM115 - closed below, after the lock is tried
        try:
            _lock(handle, self._path)
            writer = Writer(handle, self.folder)
            yield writer
            writer.sync()
        finally:
            with full_disk(self.folder):
                handle.close()

    def read_run(self) -> dict[str, Any] | None:
        """What `run.json` says, or None."""
        path = self.folder / "run.json"
        if not path.exists():
            return None
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if not (isinstance(run["checkpoints"], list) and all(isinstance(run[name], dict) for name in _MAPPINGS)):
                raise TypeError("a key holds another type of value")
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise OutputMismatchError(
                "run.json of the output folder is damaged",
                got=f"{path}: {error!r}",
                remedy="delete that file and repeat the run: the records are kept",
            ) from error
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json` atomically."""
        # Named by worker, not by process: in containers, workers on several machines may all be process 1.
        text = json.dumps(run, indent=2, default=str) + "\n"
        self._replace(self.folder / "run.json", self.folder / f".run.json.{self._path.stem}", text)

    def write_plan(self, trials: Mapping[str, Sequence[str]]) -> None:
        """Note what this worker is about to measure: the keys of trials, by checkpoint."""
        path = self.folder / _PLANNED / f"{self._path.stem}.json"
        self._replace(path, path.with_name(f".{path.name}"), json.dumps(trials) + "\n")

    def planned(self) -> dict[str, set[str]]:
        """What the last call of every worker was to measure, measured or not: keys of trials, by checkpoint."""
        found: dict[str, set[str]] = {}
        for path in sorted((self.folder / _PLANNED).glob("*.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                for name, keys in json.loads(path.read_text(encoding="utf-8")).items():
                    found.setdefault(name, set()).update(keys)
        return found

    def read_alerts(self) -> set[tuple[Any, ...]]:
        """What alerts were raised about, by all that ever watched; nothing if the file is damaged."""
        try:
            found = json.loads((self.folder / _ALERTS).read_text(encoding="utf-8"))
            return {tuple(place) for place in found}
        except (OSError, ValueError, TypeError):
            return set()

    def write_alerts(self, places: Collection[tuple[Any, ...]]) -> None:
        """Note what alerts were raised about, so that no later watch raises them again."""
        path = self.folder / _ALERTS
        self._replace(path, path.with_name(f".{_ALERTS}"), json.dumps(sorted(places)) + "\n")

    def read_copies(self) -> list[dict[str, Any]]:
        """What `write_copies` noted last: the copies of a run that was killed; nothing if the file is damaged."""
        try:
            found = json.loads(self._copies.read_text(encoding="utf-8"))
            return [{"format": c["format"], "path": c["path"], "before": list(c["before"])} for c in found]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def write_copies(self, copies: Sequence[Mapping[str, Any]]) -> None:
        """Note the copies of checkpoints that this worker may make: format, path, and the files there before."""
        if copies:
            self._replace(self._copies, self._copies.with_suffix(".new"), json.dumps(list(copies)) + "\n")
        else:
            self._copies.unlink(missing_ok=True)

    def _replace(self, path: Path, partial: Path, text: str) -> None:
        with full_disk(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    def require(self) -> dict[str, Any]:
        """`run.json`, for commands that only read.  Raises NothingToFitError if the folder is not an output."""
        run = self.read_run()
        if run is None or not self.files:
            raise NothingToFitError(
                "this is not an output folder of a run",
                got=self.folder,
                allowed="a folder with run.json and records/",
                remedy="measure first: ptq-eval run FOLDER -o " + str(self.folder),
            )
        return run


def is_records(path: PurePath) -> bool:
    """Whether a file is one of records, by its name: of JSON lines, compressed or not."""
    return path.parent.name == "records" and not path.name.startswith(".") and path.name.endswith(_ENDINGS)


class Writer:
    """Appends records to one worker's file."""

    def __init__(self, handle: Any, folder: Path) -> None:
        self._handle, self._folder = handle, folder
        handle.seek(0)
        lines = handle.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # a worker was killed while writing
            if _parse(lines[-1]):
                self._write(b"\n")
            else:
                handle.truncate(sum(map(len, lines[:-1])))

    def append(self, measurement: Measurement) -> None:
        """Write one record; it survives the end of this process.  Raises OutputFullError."""
        line = json.dumps(measurement.to_dict(), allow_nan=True, separators=(",", ":"), default=str)
        self._write(line.encode() + b"\n")

    def unfinished(self, key: str) -> Path:
        """A folder for parts of the work of the checkpoint whose full-precision trial has this key (`measure.kept`)."""
        return self._folder / _UNFINISHED / key

    def _write(self, data: bytes) -> None:
        with full_disk(self._folder):
            self._handle.write(data)
            self._handle.flush()

    def sync(self) -> None:
        """Wait until the disk has all that was written.  Raises OutputFullError."""
        with full_disk(self._folder):
            os.fsync(self._handle.fileno())


class _RecordFile:
    """The records of one worker's file; each line is parsed once, however often the file is read."""

    def __init__(self, path: Path) -> None:
        self.path, self._parsed, self._end, self._lines = path, list[tuple[str, Measurement]](), 0, 0
        self.damaged: list[int] = []

    def read(self) -> list[tuple[str, Measurement]]:
        """(key, record) of every line, in order; of a damaged compressed file, those before the damage."""
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as handle:
                handle.seek(self._end)
                for line in handle:
                    found = _parse(line)
                    if not line.endswith(b"\n"):  # another worker may still be writing it
                        return [*self._parsed, *found]
                    self._parsed += found
                    self._end, self._lines = self._end + len(line), self._lines + 1
                    self.damaged += [] if found or not line.strip() else [self._lines]
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.damaged = sorted({*self.damaged, self._lines + 1})
        return list(self._parsed)


def _parse(line: bytes) -> list[tuple[str, Measurement]]:
    """The record of a line with its key; nothing where it holds none."""
    try:
        measurement = Measurement.from_dict(json.loads(line))
        return [(measurement.trial.key(), measurement)]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []


def _lock(handle: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            raise OutputMismatchError(
                "another process writes to this worker's file",
                got=path.name,
                remedy="wait for it, or give each process a shard of its own: --shard 1/2, --shard 2/2",
            ) from error
        # Some network file systems have no locks: go on without.
