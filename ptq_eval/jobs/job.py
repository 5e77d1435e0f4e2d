"""A job: one checkpoint with its missing trials, under what conditions it is measured, and how.

A job is plain data, so that it can be written to a folder (`jobs.files`) and measured by another process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ptq_eval.backends.process import Limits
from ptq_eval.backends.workers import Workers
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import MeasurementFailedError, OutputFullError, PtqEvalError
from ptq_eval.measure.sweep import Say, sweep
from ptq_eval.measure.trials import Workload
from ptq_eval.records import Measurement, Trial
from ptq_eval.results.store import Writer

Tick = Callable[[float], None]
"""tick(units of work done), see `measure.sweep.cost`."""


@dataclass(frozen=True)
class Job:
    """One checkpoint with its missing trials, the full-precision one first if it is among them."""

    work: Workload
    missing: tuple[Trial, ...]


@dataclass(frozen=True)
class Conditions:
    """Where and within what limits a job is measured; none of it changes a number.

    device: "cpu", "cuda" or "cuda:N"; memory, backend_memory: bytes.
    """

    device: str
    memory: int | None = None
    trust_remote_code: bool = False
    backend_seconds: int = 3600
    backend_memory: int | None = None

    @classmethod
    def of(cls, config: RunConfig) -> Conditions:
        """Those that a run asks for.  Raises DeviceError."""
        return cls(
            config.resolve_device(),
            config.memory,
            config.trust_remote_code,
            config.backend_seconds,
            config.backend_memory,
        )

    @property
    def limits(self) -> Limits:
        """Those of backends."""
        return Limits(self.backend_seconds, self.backend_memory)


def measure(
    job: Job, conditions: Conditions, writer: Writer, workers: Workers, tick: Tick, say: Say | None = None
) -> PtqEvalError | None:
    """Run the missing trials of a job and write their records; the error of a checkpoint that cannot be measured.

    say(what): called with the checkpoint and its stage as it begins.

    Raises OutputFullError: going on would lose what is measured.
    """
    try:
        for measurement in sweep(
            job.work,
            job.missing,
            device=conditions.device,
            trust_remote_code=conditions.trust_remote_code,
            memory=conditions.memory,
            workers=workers,
            tick=tick,
            say=(lambda stage: say(f"{job.work.checkpoint.name}, {stage}")) if say else None,
            unfinished=writer.unfinished(job.work.trials[0].key()),
        ):
            writer.append(measurement)
        writer.sync()
    except OutputFullError:
        raise
    except Exception as error:  # whatever one checkpoint does, the others are still to be measured
        problem = error if isinstance(error, PtqEvalError) else _unexpected(job.work.checkpoint.name, error)
        write_failed(job, problem, writer)
        return problem
    return None


def write_failed(job: Job, problem: PtqEvalError, writer: Writer) -> None:
    """Write that no missing trial of a job could be measured."""
    for trial in job.missing:
        writer.append(Measurement(trial, status="failed", message=str(problem)))


def _unexpected(name: str, error: Exception) -> MeasurementFailedError:
    problem = MeasurementFailedError(
        f"{name}: measuring it stopped at an unexpected error",
        got=f"{type(error).__name__}: {error}",
        remedy="the other checkpoints are measured; exclude this one, or fix it and repeat the command",
    )
    problem.__cause__ = error
    return problem
