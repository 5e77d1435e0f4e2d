"""What the user knows better: `trajectory.yaml`, `--tokens-per-step`, `--tokens`, `--exclude`.

A `trajectory.yaml` lies in the folder given, in a run's folder, or in both; the nearer one wins, and the
command line wins over both.  Example:

    tokens_per_step: 2097152      # or   tokens: {500: 1000000, 1000: 2000000}
    offset_tokens: 0              # added to every D, for a stage that starts at 0 again
    exclude: [700]                # steps to leave out
    learning_rate: 0.003          # or by step
    schedule_phase: constant      # or by step
    runs:
      small: {params: 85056000}   # the same keys for one run

Counts given here have the source "user".  A key, run or step that does not exist is an error, not a silent
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ptq_eval.checkpoints.trainer_state import PHASES
from ptq_eval.errors import OptionError, PtqEvalError, TrajectoryFileError, did_you_mean
from ptq_eval.options import COUNT, NUMBER, TEXT, Kind, Options, declared, option
from ptq_eval.records import Checkpoint

FILE_NAME = "trajectory.yaml"


def _runs(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, Overrides]:
    if not isinstance(value, Mapping) or not all(isinstance(own, Overrides) for own in value.values()):
        raise error(f"{name} is not a mapping from runs to Overrides", got=repr(value))
    return {str(run): own for run, own in value.items()}


@dataclass(frozen=True)
class Overrides(Options):
    """Corrections to what was found.  `tokens` is D by step, or one D per checkpoint in order of step.

    `params` replaces N whatever its convention.  Raises OptionError for a value that makes no sense.
    """

    tokens_per_step: int | None = option(None, "D = step × this, in place of what checkpoints say.", COUNT, low=1)
    tokens: tuple[int, ...] | Mapping[int, int] | None = option(
        None, "D of each checkpoint, in order of step.", COUNT, many=True, by_step=True, low=0, metavar="D,…"
    )
    params: int | None = option(None, "N, in place of the count from the architecture.", COUNT, low=1)
    exclude: tuple[int, ...] = option((), "Steps to exclude.", COUNT, many=True, low=0, metavar="STEP,…")
    offset_tokens: int = option(0, "Added to every D, for a stage that starts at 0 again.", low=0, flag="")
    learning_rate: float | Mapping[int, float] | None = option(
        None, "Learning rate, for warnings about the schedule.", NUMBER, by_step=True, low=0, flag=""
    )
    schedule_phase: str | Mapping[int, str] | None = option(
        None, "Phase of the schedule, likewise.", TEXT, by_step=True, choices=PHASES, flag=""
    )
    runs: Mapping[str, Overrides] = option({}, "The same for single runs.", Kind(_runs, ""), flag="")

    @classmethod
    def take(cls, options: dict[str, Any], base: Overrides | None = None) -> Overrides:
        """Remove the corrections among named `options`, and add them to `base`.

        Raises OptionError for a value that makes no sense or contradicts `base`.
        """
        unset = cls()
        given = {spec.name: options.pop(spec.name) for spec in fields(cls) if spec.name in options}
        own = cls(**{name: value for name, value in given.items() if value is not None})
        changed = {name: value for name, value in vars(own).items() if value != getattr(unset, name)}
        for name, value in changed.items():
            other = getattr(base or unset, name)
            if other not in (getattr(unset, name), value):
                raise OptionError(f"{name} contradicts overrides.{name}", got=f"{value} and {other}", remedy="give one")
        return replace(base or unset, **changed)

    def apply(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints of one run, in order of step, corrected.  Raises TrajectoryFileError."""
        kept = [checkpoint for checkpoint in checkpoints if checkpoint.step not in set(self.exclude)]
        if isinstance(self.tokens, Sequence) and len(self.tokens) != len(kept):
            raise TrajectoryFileError(
                f"tokens lists {len(self.tokens)} counts",
                got=f"{len(kept)} checkpoints in {kept[0].run}" if kept else "no checkpoint",
                remedy="one count per checkpoint, in order of step, or tokens: {step: count}",
            )
        return [self._corrected(checkpoint, index) for index, checkpoint in enumerate(kept)]

    def check_steps(self, steps: Collection[int | None]) -> None:
        """Raise TrajectoryFileError for a step named here that no checkpoint has."""
        named = set(self.exclude)
        for value in (self.tokens, self.learning_rate, self.schedule_phase):
            named |= set(value) if isinstance(value, Mapping) else set()
        if missing := sorted(named - set(steps)):
            known = ", ".join(str(step) for step in sorted(step for step in steps if step is not None))
            raise TrajectoryFileError("no checkpoint at a step that is named", got=missing, allowed=known)

    def _corrected(self, checkpoint: Checkpoint, index: int) -> Checkpoint:
        step, changes = checkpoint.step, {}
        tokens, note = self._tokens(checkpoint, index)
        if note:
            changes |= {"tokens": tokens, "tokens_source": "user", "tokens_note": note}
        if self.params is not None:
            changes |= {"params": self.params, "params_source": "user", "params_convention": "user"}
        for name in ("learning_rate", "schedule_phase"):
            value = getattr(self, name)
            value = value.get(step) if isinstance(value, Mapping) else value
            if value is not None:
                changes[name] = value
        return replace(checkpoint, **changes)

    def _tokens(self, checkpoint: Checkpoint, index: int) -> tuple[int | None, str]:
        step = checkpoint.step
        if isinstance(self.tokens, Mapping):
            if step is not None and step in self.tokens:
                return self.tokens[step], "given for this step"
        elif self.tokens is not None:
            return self.tokens[index], "given for this checkpoint"
        tokens, note = checkpoint.tokens, checkpoint.tokens_note
        # A stage of OLMo after the first counts its steps from 0 again: its D is the label's, or an offset's.
        restarted = checkpoint.format == "olmo" and checkpoint.stage not in ("", "stage1")
        if self.tokens_per_step is not None and step is not None and not restarted:
            tokens, note = step * self.tokens_per_step, f"step × {self.tokens_per_step:,}"
        elif not self.offset_tokens:
            return None, ""
        if tokens is None:
            return None, ""
        return tokens + self.offset_tokens, note + (f" + {self.offset_tokens:,}" if self.offset_tokens else "")


def read_overrides(folder: Path) -> Overrides | None:
    """The `trajectory.yaml` of a folder, or None where there is none.  Raises TrajectoryFileError."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TrajectoryFileError(f"{path} cannot be read", got=error) from error
    return _parse({} if data is None else data, str(path))


def require_known(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise TrajectoryFileError for the first of `names` that is not `known`, with the nearest one that is."""
    for name in names:
        if name not in known:
            raise TrajectoryFileError(
                f"unknown {what}",
                got=repr(name),
                allowed=", ".join(sorted(known)),
                remedy=did_you_mean(name, known),
            )


def _parse(data: Any, where: str) -> Overrides:
    if not isinstance(data, Mapping):
        raise TrajectoryFileError(f"{where} is not a mapping of keys", got=type(data).__name__)
    options = declared(Overrides)
    require_known(data, options, f"key in {where}")
    runs = data.get("runs") or {}
    if not isinstance(runs, Mapping):
        raise TrajectoryFileError(f"runs in {where} is not a mapping", got=type(runs).__name__)
    nested = {str(name): _parse(content, f"{where}, run {name}") for name, content in runs.items()}
    values = {
        name: options[name].read(value, f"{name} in {where}", TrajectoryFileError)
        for name, value in data.items()
        if value is not None and name != "runs"
    }
    return Overrides(**values, runs=nested)
