"""The workers of a run: one process for each backend, kept from one checkpoint to the next.

Importing a package takes seconds, a small model milliseconds; so a process is started once and does job after job.
A cell in which it dies is answered for it, and a new process goes on with the next.  A process that does not come as
far as importing its package answers so for all cells of the job and of later jobs: it would fail again, or hang as
long, at each checkpoint.  One whose memory has grown since its first job is
replaced before the next: what a package fails to free would otherwise count against later checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq_eval.backends.base import Cell
from ptq_eval.backends.environments import Place
from ptq_eval.backends.process import Answer, Limits, Worker, read_answer, write_job

GROWTH = 1.5
"""Idle memory of a process over that after its first job, above which it is replaced."""


class Workers:
    """Processes by backend, ended with the context."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._alive: dict[str, Worker] = {}
        self._memory: dict[str, int] = {}
        self._not_imported: dict[str, str] = {}
        """Why a package could not be imported, by backend."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._alive):
            self._end(name, kill=False)

    def run(
        self,
        place: Place,
        folder: Path,
        cells: Sequence[Cell],
        layers: Mapping[str, int],
        *,
        threads: int = 1,
        **options: Any,
    ) -> Iterator[Answer]:
        """The answer to every cell, in order, each as soon as it is there.

        `layers` are the names of the layers with their columns.  `folder` holds the model and the token ids as `worker`
        describes; the answers' files are written there.  `options` as for `write_job`.  Raises OSError.
        """
        write_job(folder, cells, layers, **options)
        done = 0
        try:
            while done < len(cells):
                reason = self._not_imported.get(place.name, "")
                if not reason:
                    worker = self._worker(place, threads)
                    worker.ask(folder)
                    while done < len(cells) and not reason:
                        reason = worker.wait(folder / f"{done}.json", self.limits)
                        if not reason:
                            yield read_answer(folder, done, cells[done])
                            done += 1
                    if not reason:
                        break
                    reason += worker.last_words()
                    if not worker.ready:
                        self._not_imported[place.name] = reason
                    self._end(place.name)
                failed = len(cells) - done if place.name in self._not_imported else 1
                for cell in cells[done : done + failed]:
                    (folder / f"{done}.json").write_text("{}", encoding="utf-8")
                    yield Answer(cell, error=reason)
                    done += 1
        finally:
            if done < len(cells):  # the caller wants no more, and the process is still at it
                self._end(place.name)

    def _worker(self, place: Place, threads: int) -> Worker:
        """The process of a backend that is kept and fits, or a new one."""
        kept = self._alive.get(place.name)
        if kept is not None and kept.alive and kept.place == place and kept.threads == threads:
            idle = kept.memory()
            if idle <= GROWTH * self._memory.setdefault(place.name, idle):
                return kept
        self._end(place.name)
        self._alive[place.name] = Worker(place, threads)
        return self._alive[place.name]

    def _end(self, name: str, *, kill: bool = True) -> None:
        worker = self._alive.pop(name, None)
        self._memory.pop(name, None)
        if worker is not None:
            worker.close(kill=kill)
