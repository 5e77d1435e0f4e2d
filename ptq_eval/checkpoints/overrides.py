"""Corrections supplied by the user: `trajectory.yaml`, `--tokens-per-step`, `--tokens`, `--exclude`, `--checkpoints`.

A `trajectory.yaml` is in the folder that is searched, in a run's folder, or in both; the run's own one wins, and
the command line wins over both.  Example:

    tokens_per_step: 2097152      # or   tokens: {500: 1000000, 1000: 2000000}
    offset_tokens: 0              # added to every D, for a stage that starts at 0 again
    exclude: [700]                # steps that are not measured
    checkpoint_count: 8           # of the others, so many, spaced evenly in log D
    learning_rate: 0.003          # or by step
    schedule_phase: constant      # or by step
    family: small                 # runs of one family differ in their seed alone
    architecture: {softcap: 20}   # what the files do not say, or the name of a whole config.json
    runs:
      small: {params: 85056000}   # the same keys for one run
    checkpoints:                  # the folders of this run, whatever their names, and no others
      warm: {step: 100, tokens: 2M}
      final: {step: 980, tokens: 20M}

These counts have the source "user".  A key, run or step that does not exist is an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ptq_eval import plugins
from ptq_eval.checkpoints.architecture import ARCHITECTURE
from ptq_eval.checkpoints.contents import pointer
from ptq_eval.checkpoints.growth import COUNTER_RESTART, COUNTER_UNIT
from ptq_eval.checkpoints.numbered import RATE_UNUSED, numbered_by, steps_restart, with_unused_rate
from ptq_eval.checkpoints.spacing import spread
from ptq_eval.checkpoints.trainer_state import PHASES
from ptq_eval.config.options import (
    COUNT,
    NUMBER,
    PARAMS,
    TEXT,
    TOKENS,
    TOKENS_PER_STEP,
    Kind,
    Options,
    declared,
    option,
)
from ptq_eval.errors import OptionError, PtqEvalError, TrajectoryFileError, did_you_mean
from ptq_eval.models.json_files import file_content
from ptq_eval.records import Checkpoint

FILE_NAME = "trajectory.yaml"
_SETTLED = (COUNTER_RESTART, COUNTER_UNIT, RATE_UNUSED)
"""Problems that a D given by the user settles."""


@dataclass(frozen=True)
class Place(Options):
    """Where in its training a folder that is listed by name belongs.  Raises OptionError."""

    step: int | None = option(None, "The step of the checkpoint.", COUNT, low=0, flag="")
    tokens: int | None = option(None, "Its D.", COUNT, low=0, plausible=TOKENS, flag="")
    stage: str = option("", "Its stage of training.", flag="")


def _mapping_of(cls_name: str) -> Kind:
    """A mapping from names to objects of a class of this module."""

    def read(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, Any]:
        if not isinstance(value, Mapping) or any(type(own).__name__ != cls_name for own in value.values()):
            raise error(f"{name} is not a mapping from names to {cls_name}", got=repr(value), allowed="NAME: {…}")
        return {str(key): own for key, own in value.items()}

    return Kind(read, "")


@dataclass(frozen=True)
class Overrides(Options):
    """Corrections to what was found.  `tokens` is D by step, or one D per checkpoint in order of step.

    `params` replaces N whatever its convention.  Raises OptionError for a value that makes no sense.
    """

    tokens_per_step: int | None = option(
        None, "D = step × this, in place of what checkpoints say.", COUNT, low=1, plausible=TOKENS_PER_STEP
    )
    tokens: tuple[int, ...] | Mapping[int, int] | None = option(
        None,
        "D of each checkpoint, in order of step.",
        COUNT,
        many=True,
        by_step=True,
        low=0,
        plausible=TOKENS,
        metavar="D,…",
    )
    params: int | None = option(None, "N, in place of the count from the architecture.", COUNT, low=1, plausible=PARAMS)
    exclude: tuple[int, ...] = option((), "Steps to exclude.", COUNT, many=True, low=0, metavar="STEP,…")
    checkpoint_count: int | None = option(
        None,
        "Keep this many checkpoints of each run, spaced evenly in log D, the first and the last among them.",
        COUNT,
        low=2,
        flag="--checkpoints",
        unset="all",
    )
    offset_tokens: int = option(
        0, "Added to every D, for a stage that starts at 0 again.", low=0, plausible=TOKENS, flag=""
    )
    learning_rate: float | Mapping[int, float] | None = option(
        None, "Learning rate, for warnings about the schedule.", NUMBER, by_step=True, low=0, flag=""
    )
    schedule_phase: str | Mapping[int, str] | None = option(
        None, "Phase of the schedule, likewise.", TEXT, by_step=True, choices=PHASES, flag=""
    )
    family: str = option("", "What runs that differ in their seed alone have in common.", flag="")
    architecture: Mapping[str, Any] = option(
        {},
        "Configuration of files that hold tensors alone (.pt): a config.json of transformers or a type of model; or "
        "entries that files do not say (nanochat, torchtitan).",
        ARCHITECTURE,
    )
    runs: Mapping[str, Overrides] = option({}, "The same for single runs.", _mapping_of("Overrides"), flag="")
    checkpoints: Mapping[str, Place] = option(
        {}, "The folders of this run, and no others.", _mapping_of("Place"), flag=""
    )

    @classmethod
    def made_of(cls, value: Overrides | Mapping[str, Any] | None) -> Overrides:
        """Corrections, from a mapping too; None has none.  Raises OptionError for anything else."""
        if value is None or isinstance(value, cls):
            return value or cls()
        if not isinstance(value, Mapping):
            raise OptionError("overrides have the wrong type", got=repr(value), allowed="Overrides, a mapping or None")
        return cls.of(value)

    @classmethod
    def take(cls, options: dict[str, Any], base: Overrides | Mapping[str, Any] | None = None) -> Overrides:
        """Remove the corrections among named `options`, and add them to `base`, which may be a mapping from names.

        Raises OptionError for a value that makes no sense or contradicts `base`.
        """
        base, unset = cls.made_of(base), cls()
        given = {spec.name: options.pop(spec.name) for spec in fields(cls) if spec.name in options}
        own = cls(**{name: value for name, value in given.items() if value is not None})
        changed = {name: value for name, value in vars(own).items() if value != getattr(unset, name)}
        for name, value in changed.items():
            other = getattr(base, name)
            if other not in (getattr(unset, name), value):
                raise OptionError(f"{name} contradicts overrides.{name}", got=f"{value} and {other}", remedy="give one")
        return replace(base, **changed)

    def apply(self, checkpoints: Sequence[Checkpoint], error: type[PtqEvalError]) -> list[Checkpoint]:
        """The checkpoints of one run, in order of step, corrected.

        Raises `error`, which says where the corrections are from.
        """
        if self.architecture and (other := next((c for c in checkpoints if not _takes_architecture(c)), None)):
            raise error(
                "`architecture` is for formats whose files do not say all of it",
                got=f"{other.name} in the format {other.format}",
                allowed=", ".join(n for n, cls in plugins.load_all("checkpoints").items() if cls.takes_architecture),
                remedy="correct its config.json",
            )
        kept = [checkpoint for checkpoint in checkpoints if checkpoint.step not in set(self.exclude)]
        kept = kept if self.checkpoint_count is None else spread(kept, self.checkpoint_count)
        placed = [checkpoint for checkpoint in kept if checkpoint.step is not None]
        listed = len(self.tokens) if isinstance(self.tokens, Sequence) else None
        if listed == len(placed) > 0:
            corrected = [self._corrected(checkpoint, index) for index, checkpoint in enumerate(placed)]
            return corrected + [checkpoint for checkpoint in kept if checkpoint.step is None]
        if listed not in (None, len(kept)):
            counts = f"{listed} count{'s' * (listed != 1)} of tokens"
            number = f"{len(kept)} checkpoint{'s' * (len(kept) != 1)}"
            raise error(
                f"there {'is' if listed == 1 else 'are'} {counts} for {number}",
                got=f"run {kept[0].run}" if kept else "no checkpoint",
                remedy="give one count per checkpoint, in order of step (--tokens D,D,…), or in trajectory.yaml "
                "tokens: {STEP: D}",
            )
        corrected = [self._corrected(checkpoint, index) for index, checkpoint in enumerate(kept)]
        return corrected if self.tokens_per_step is None else with_unused_rate(corrected)

    def check_steps(self, steps: Collection[int | None], error: type[PtqEvalError]) -> None:
        """Raise `error` for a step named here that no checkpoint has."""
        named = set(self.exclude)
        for value in (self.tokens, self.learning_rate, self.schedule_phase):
            named |= set(value) if isinstance(value, Mapping) else set()
        if missing := sorted(named - set(steps)):
            known = ", ".join(str(step) for step in sorted(step for step in steps if step is not None))
            raise error("no checkpoint at a step that is named", got=missing, allowed=known)

    def _corrected(self, checkpoint: Checkpoint, index: int) -> Checkpoint:
        step, changes = checkpoint.step, {}
        tokens, note = self._tokens(checkpoint, index)
        if note:
            TOKENS.require_below(tokens or 0, f"D of {checkpoint.name}, {note},")
            changes |= {"tokens": tokens, "tokens_source": "user", "tokens_note": note, "tokens_counter": ""}
            changes["problems"] = tuple(p for p in checkpoint.problems if p.code not in _SETTLED)
        if self.params is not None:
            changes |= {"params": self.params, "params_source": "user", "params_convention": "user"}
        if self.architecture:
            changes["architecture_given"] = tuple(sorted(self.architecture.items()))
        for name in ("learning_rate", "schedule_phase"):
            value = getattr(self, name)
            value = value.get(step) if isinstance(value, Mapping) else value
            if value is not None:
                changes[name] = value
        return replace(checkpoint, **changes, family=self.family or checkpoint.family)

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


def _takes_architecture(checkpoint: Checkpoint) -> bool:
    return plugins.get("checkpoints", checkpoint.format).takes_architecture


class _KeyTwiceError(yaml.constructor.ConstructorError):
    """A mapping in YAML has two values for one key."""


class _Loader(yaml.SafeLoader):
    """YAML with numbers left as text: YAML 1.1 takes 3e-4 for text and 0100 for 64, and 0098 may name a folder."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and form that yaml asks for
        first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping.  Raises _KeyTwiceError for a key that occurs twice, whose last value would win silently."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise _KeyTwiceError(None, None, f"the key {twice[0]!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_overrides(folder: Path) -> Overrides | None:
    """The `trajectory.yaml` of a folder, if it has one.  Raises TrajectoryFileError."""
    path = folder / FILE_NAME
    if not path.exists():
        _require_no_misnamed(folder)
        return None
    if fault := pointer(path):
        raise TrajectoryFileError(fault.what, got=path, remedy=fault.remedy)
    try:
        data = yaml.load(file_content(path).decode(), _Loader)
    except RecursionError as error:
        raise TrajectoryFileError(f"{path} is nested too deeply", remedy="correct the file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "keep one of the two" if isinstance(error, _KeyTwiceError) else "correct the file"
        raise TrajectoryFileError(f"{path} cannot be read", got=error, remedy=remedy) from error
    if isinstance(data, dict) and isinstance(own := data.get("architecture"), str) and (folder / own).exists():
        data["architecture"] = folder / own
    return _parse({} if data is None else data, str(path))


def _require_no_misnamed(folder: Path) -> None:
    """Raise TrajectoryFileError for a file that is nearly called as the file of corrections, and would be ignored."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        lower = name.lower()
        if lower.endswith((".yaml", ".yml", ".yaml.txt")) and get_close_matches(lower, [FILE_NAME], cutoff=0.85):
            what = f"a file of corrections is called {FILE_NAME}; another name is not read"
            raise TrajectoryFileError(what, got=folder / name, remedy=f"rename it to {FILE_NAME}")


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
        allowed, remedy = ", ".join(declared(Overrides)), "write one KEY: VALUE a line, without a dash"
        raise TrajectoryFileError(f"{where} is not a mapping of keys", got=_kind(data), allowed=allowed, remedy=remedy)
    runs = data.get("runs") or {}
    if not isinstance(runs, Mapping):
        allowed = "runs: {RUN: {params: 1B}}"
        raise TrajectoryFileError(f"runs in {where} is not a mapping from names", got=_kind(runs), allowed=allowed)
    for key, remedy in (
        ("checkpoints", "list them in a trajectory.yaml in the run's own folder"),
        ("runs", "name each run by its path, as `ptq-eval inspect` shows it, without nesting"),
    ):
        if nesting := [name for name, own in runs.items() if isinstance(own, Mapping) and key in own]:
            what = f"runs in {where} cannot {'list' if key == 'checkpoints' else 'hold'} {key}"
            raise TrajectoryFileError(what, got=nesting[0], remedy=remedy)
    nested = {str(name): _parse(content, f"{where}, run {name}") for name, content in runs.items()}
    own = _read(Overrides, {name: data[name] for name in data if name not in ("runs", "checkpoints")}, where)
    return Overrides(**own, runs=nested, checkpoints=_places(data.get("checkpoints") or {}, where))


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else repr(value)[:80]


def _read(cls: type[Options], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a file, each read by its declaration.  Raises TrajectoryFileError."""
    require_known(data, declared(cls), f"key in {where}")
    found = {name: spec for name, spec in declared(cls).items() if data.get(name) is not None}
    return {name: spec.read(data[name], f"{name} in {where}", TrajectoryFileError) for name, spec in found.items()}


def _places(data: Any, where: str) -> dict[str, Place]:
    """The folders that a file lists, by name or as a list of objects with a `folder`, with what it says about each.

    Raises TrajectoryFileError.
    """
    if isinstance(data, list) and all(isinstance(place, Mapping) and "folder" in place for place in data):
        names = [str(place["folder"]) for place in data]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TrajectoryFileError(f"checkpoints in {where} lists a folder twice", got=", ".join(twice))
        data = {name: {key: place[key] for key in place if key != "folder"} for name, place in zip(names, data)}
    if not isinstance(data, Mapping) or not all(isinstance(place, Mapping) for place in data.values()):
        raise TrajectoryFileError(
            f"checkpoints in {where} does not say step and tokens of each folder",
            got=repr(data)[:80],
            allowed="FOLDER: {step: 980, tokens: 20M}, or a list of {folder: FOLDER, step: 980, tokens: 20M}",
        )
    return {str(folder): Place(**_read(Place, place, f"{where}, {folder}")) for folder, place in data.items()}
