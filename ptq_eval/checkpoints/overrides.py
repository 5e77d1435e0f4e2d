"""What the user knows better: `trajectory.yaml`, `--tokens-per-step`, `--tokens`, `--exclude`.

A `trajectory.yaml` is in the folder that is searched, in a run's folder, or in both; the run's own one wins, and
the command line wins over both.  Example:

    tokens_per_step: 2097152      # or   tokens: {500: 1000000, 1000: 2000000}
    offset_tokens: 0              # added to every D, for a stage that starts at 0 again
    exclude: [700]                # steps that are not measured
    learning_rate: 0.003          # or by step
    schedule_phase: constant      # or by step
    runs:
      small: {params: 85056000}   # the same keys for one run
    checkpoints:                  # the folders of this run, whatever their names, and no others
      warm: {step: 100, tokens: 2M}
      final: {step: 980, tokens: 20M}

These counts have the source "user".  A key, run or step that does not exist is an error.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ptq_eval import units
from ptq_eval.checkpoints.numbered import numbered_by, steps_restart
from ptq_eval.checkpoints.trainer_state import COUNTER_RESTART, PHASES
from ptq_eval.errors import OptionError, TrajectoryFileError
from ptq_eval.records import Checkpoint

FILE_NAME = "trajectory.yaml"


@dataclass(frozen=True)
class Place:
    """Where in its training a folder that is listed by name belongs."""

    step: int | None = None
    tokens: int | None = None
    stage: str = ""


@dataclass(frozen=True)
class Overrides:
    """Corrections to what was found.  `tokens` is D by step, or one D per checkpoint in order of step.

    `params` replaces N whatever its convention.  Raises TrajectoryFileError for a value that makes no sense.
    """

    tokens_per_step: int | None = None
    tokens: Sequence[int] | Mapping[int, int] | None = None
    params: int | None = None
    exclude: Collection[int] = ()
    offset_tokens: int = 0
    learning_rate: float | Mapping[int, float] | None = None
    schedule_phase: str | Mapping[int, str] | None = None
    runs: Mapping[str, Overrides] = field(default_factory=dict)
    checkpoints: Mapping[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in _RULES.items():
            value = allowed.read(getattr(self, name))
            object.__setattr__(self, name, value)
            if value is not None and not allowed.holds(value):
                raise TrajectoryFileError(f"{name} makes no sense", got=repr(value), allowed=allowed.text)

    def apply(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints of one run, in order of step, corrected.  Raises TrajectoryFileError."""
        kept = [checkpoint for checkpoint in checkpoints if checkpoint.step not in set(self.exclude)]
        placed = [checkpoint for checkpoint in kept if checkpoint.step is not None]
        if _is_list(self.tokens) and len(self.tokens or ()) == len(placed) > 0:
            corrected = [self._corrected(checkpoint, index) for index, checkpoint in enumerate(placed)]
            return corrected + [checkpoint for checkpoint in kept if checkpoint.step is None]
        if _is_list(self.tokens) and len(self.tokens or ()) != len(kept):
            raise TrajectoryFileError(
                f"tokens lists {len(self.tokens or ())} counts",
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
            changes["problems"] = tuple(p for p in checkpoint.problems if p.code != COUNTER_RESTART)
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
        # Where a later stage counts its steps from 0 again, D is the label's, or an offset's.
        if self.tokens_per_step is not None and step is not None and not steps_restart(checkpoint):
            tokens, note = step * self.tokens_per_step, f"{numbered_by(checkpoint)} × {self.tokens_per_step:,}"
        elif not self.offset_tokens:
            return None, ""
        if tokens is None:
            return None, ""
        return tokens + self.offset_tokens, note + (f" + {self.offset_tokens:,}" if self.offset_tokens else "")


class _Loader(yaml.SafeLoader):
    """YAML with numbers left as text: YAML 1.1 takes 3e-4 for text and 0100 for 64, and 0098 may name a folder."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and form that yaml asks for
        first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_overrides(folder: Path) -> Overrides | None:
    """The `trajectory.yaml` of a folder, or None where there is none.  Raises TrajectoryFileError."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TrajectoryFileError(f"{path} cannot be read", got=error) from error
    return _parse({} if data is None else data, str(path))


def did_you_mean(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise TrajectoryFileError for the first of `names` that is not `known`, with the nearest one that
    is."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise TrajectoryFileError(
                f"unknown {what}",
                got=repr(name),
                allowed=", ".join(sorted(known)),
                remedy=f"did you mean {near[0]!r}?" if near else "",
            )


def _parse(data: Any, where: str) -> Overrides:
    if not isinstance(data, Mapping):
        raise TrajectoryFileError(f"{where} is not a mapping of keys", got=type(data).__name__)
    did_you_mean(data, [f.name for f in fields(Overrides)], f"key in {where}")
    runs = data.get("runs") or {}
    if not isinstance(runs, Mapping):
        raise TrajectoryFileError(f"runs in {where} is not a mapping", got=type(runs).__name__)
    if listing := next((name for name, own in runs.items() if isinstance(own, Mapping) and "checkpoints" in own), None):
        remedy = "list them in a trajectory.yaml in the run's own folder"
        raise TrajectoryFileError(f"runs in {where} cannot list checkpoints", got=listing, remedy=remedy)
    nested = {str(name): _parse(content, f"{where}, run {name}") for name, content in runs.items()}
    values = {name: value for name, value in data.items() if value is not None}
    return Overrides(**{**values, "runs": nested, "checkpoints": _places(data.get("checkpoints") or {}, where)})


def _places(data: Any, where: str) -> dict[str, Place]:
    """The folders that a file lists, with what it says about each.  Raises TrajectoryFileError."""
    if not isinstance(data, Mapping) or not all(isinstance(place, Mapping) for place in data.values()):
        raise TrajectoryFileError(
            f"checkpoints in {where} is not a list of folders",
            got=type(data).__name__,
            allowed="FOLDER: {step: 980, tokens: 20M}",
        )
    places = {}
    for folder, place in data.items():
        did_you_mean(place, [f.name for f in fields(Place)], f"key of {folder} in {where}")
        counts = {
            name: units.read(place[name], name=f"{name} of {folder} in {where}", error=TrajectoryFileError)
            for name in ("step", "tokens")
            if place.get(name) is not None
        }
        if negative := [name for name, count in counts.items() if count < 0]:
            raise TrajectoryFileError(f"{negative[0]} of {folder} in {where} is negative", got=counts[negative[0]])
        places[str(folder)] = Place(**counts, stage=str(place.get("stage") or ""))
    return places


@dataclass(frozen=True)
class _Rule:
    kind: type | tuple[type, ...]
    at_least: float
    text: str
    lists: bool = False
    maps: bool = False

    def read(self, value: Any) -> Any:
        """`value` with the numbers that are written as text, such as 3e-4 and 2M; what is no number stays as it is."""
        if self.maps and isinstance(value, Mapping):
            return {_number(key, int): _number(item, self.kind) for key, item in value.items()}
        if self.lists and _is_list(value):
            return [_number(item, self.kind) for item in value]
        return _number(value, self.kind)

    def holds(self, value: Any) -> bool:
        if self.maps and isinstance(value, Mapping):
            return all(_is_whole(key) for key in value) and all(self._one(item) for item in value.values())
        if self.lists:
            return _is_list(value) and all(self._one(item) for item in value)
        return self._one(value)

    def _one(self, value: Any) -> bool:
        if self.kind is str:
            return value in PHASES
        return isinstance(value, self.kind) and not isinstance(value, bool) and self.at_least <= value < math.inf


def _number(value: Any, kind: type | tuple[type, ...]) -> Any:
    if kind is str:
        return value
    try:
        return units.read(value) if kind is int else units.read_number(value)
    except OptionError:
        return value


_RULES = {
    "tokens_per_step": _Rule(int, 1, "a positive whole number"),
    "tokens": _Rule(int, 0, "whole numbers: a list in order of step, or {step: count}", lists=True, maps=True),
    "params": _Rule(int, 1, "a positive whole number"),
    "exclude": _Rule(int, 0, "a list of steps", lists=True),
    "offset_tokens": _Rule(int, 0, "a whole number"),
    "learning_rate": _Rule((int, float), 0, "a number, or {step: number}", maps=True),
    "schedule_phase": _Rule(str, 0, f"{', '.join(PHASES)}, or one of them by step", maps=True),
}


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
