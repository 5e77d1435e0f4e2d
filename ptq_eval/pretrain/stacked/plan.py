"""A study as runs, and runs as stacks of legs.

A leg is what is trained in one go: a run's trunk from its first step to its last D, or one annealed branch, which
starts from the trunk's weights and optimizer state at (1 − decay)·D.  Legs of one shape and one length are a stack:
nothing of a leg depends on the others in it.  No torch here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.config.options import declared
from ptq_eval.errors import OptionError
from ptq_eval.pretrain.schedule import branch_factor, branch_start
from ptq_eval.pretrain.stacked.options import PER_D, RunOptions

SIZE = "size"
SIDES = ("width", "layers")
"""What a size sets."""
MOST_RUNS = 10_000
"""Of one grid: more are a slip, and would take minutes to list."""
_ALWAYS = ("width", "layers", "schedule", "learning_rate", "seed")
"""Options that are in every name; the others where they are not default, but for lists, which are long."""
_SHORT = {
    "learning_rate": "lr", "weight_decay": "wd", "weights": "w", "activations": "a", "kv": "kv",
    "low_precision_share": "share", "batch_size": "batch", "width": "w", "layers": "l", "seed": "s",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run of a study: its options, the text it reads, its steps, and the stage in which it is trained."""

    options: RunOptions
    text: str
    targets: tuple[int, ...]
    stage: int = 0

    @property
    def name(self) -> str:
        """A name that says what is not default, lists excepted, and the hash of everything."""
        o = self.options
        parts = [f"{o.width}x{o.layers}", str(o.schedule), f"lr{o.learning_rate:g}"]
        for name, spec in declared(RunOptions).items():
            value = getattr(o, name)
            if name not in _ALWAYS and not spec.many and value != spec.default:
                parts.append(f"{_SHORT.get(name, name.replace('_', ''))}{value}")
        if o.schedule in PER_D:
            parts.append(f"r{o.ratios[-1]:g}")
        said = json.dumps([asdict(o), self.text], sort_keys=True)
        return "-".join([*parts, f"s{o.seed}", hashlib.sha256(said.encode()).hexdigest()[:6]])


@dataclass(frozen=True)
class Leg:
    """A trunk (`branch` 0) or the annealed branch that ends at step `branch`; trained from `start` to `end`.

    `origin` is the file with the state that it starts from, by default one that the run's trunk has left.
    """

    run: Run
    start: int
    end: int
    branch: int = 0
    origin: Path | None = None

    @property
    def name(self) -> str:
        """The run's name, with the step of a branch."""
        return f"{self.run.name}/annealed-{self.branch}" if self.branch else self.run.name

    def rate(self, step: int) -> float:
        """The learning rate of the step after `step` steps."""
        o = self.run.options
        if self.branch:
            return o.learning_rate * branch_factor(step, start=self.start, end=self.end)
        return o.learning_rate * o.factor(step, self.end)

    def low_precision(self, step: int) -> bool:
        """Whether the step after `step` steps computes in the run's precision, rather than in full precision."""
        o = self.run.options
        if o.low_precision_share < 1 and o.schedule == "wsd" and not self.branch:
            return False  # the end of a wsd run is its branch
        return step >= round((1 - o.low_precision_share) * self.end)


def branch_starts(run: Run) -> dict[int, int]:
    """{end: start} of a run's annealed branches."""
    o = run.options
    ends = run.targets if o.schedule == "wsd" else ()
    return {end: branch_start(end, warmup=o.warmup, decay=o.decay) for end in ends}


def legs(run: Run) -> list[Leg]:
    """The trunk and the branches of a run."""
    branches = [Leg(run, start, end, end) for end, start in branch_starts(run).items()]
    return [Leg(run, 0, run.targets[-1]), *branches]


def points(grid: Mapping[str, Any], common: Mapping[str, Any]) -> list[tuple[RunOptions, str | None]]:
    """(options, text) of every combination of a grid's values; a schedule per D becomes a point for each D/N.

    A list is an axis, except for options that are lists themselves, where a list of lists is one; `size = "32x3"` sets
    width and layers, and what the grid says of them replaces what is common.  Raises OptionError.
    """
    known = declared(RunOptions)
    for table in (common, grid):
        if SIZE in table and (twice := [name for name in SIDES if name in table]):
            got = f"{SIZE} and {' and '.join(twice)}"
            raise OptionError("a table of the study gives a size twice", got=got, remedy="keep one of them")
    shared = {name: value for name, value in common.items() if SIZE not in grid or name not in SIDES}
    axes: dict[str, list[Any]] = {}
    for name, value in {**shared, **grid}.items():
        if name in known and known[name].many:
            axes[name] = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        else:
            axes[name] = value if isinstance(value, list) else [value]
        if not axes[name]:
            raise OptionError("an axis of the study has no values", got=name, remedy="name values, or delete the line")
    if (count := math.prod(map(len, axes.values()))) > MOST_RUNS:
        what = "a grid of the study has too many combinations"
        raise OptionError(what, got=f"{count:,}", allowed=f"at most {MOST_RUNS:,}", remedy="fewer values, or two files")
    found = []
    for values in itertools.product(*axes.values()):
        named = dict(zip(axes, values))
        text = named.pop("text", None)
        if SIZE in named:
            named = _size(named.pop(SIZE)) | named
        options = RunOptions.of(named, also=[SIZE, "text"])
        ratios = [(ratio,) for ratio in options.ratios] if options.schedule in PER_D else [options.ratios]
        found += [(replace(options, ratios=own), text) for own in ratios]
    return found


def _size(value: Any) -> dict[str, int]:
    width, _, layers = str(value).partition("x")
    if not (width.isdigit() and layers.isdigit()):
        raise OptionError("a size of the study is not WIDTHxLAYERS", got=repr(value), remedy='size = ["32x3", "64x4"]')
    return {"width": int(width), "layers": int(layers)}


def stacks(
    wanted: Sequence[Leg], limits: Mapping[tuple[Any, ...], int], before: Sequence[Sequence[str]]
) -> list[list[Leg]]:
    """Legs as stacks, by stage, and trunks before branches; one of `before` (names of legs) is kept as it was formed.

    limits: the most runs in a stack, by the runs' shape.
    """
    by_name = {leg.name: leg for leg in wanted}
    kept = [[by_name[name] for name in names] for names in before if all(name in by_name for name in names)]
    taken = {leg.name for stack in kept for leg in stack}
    groups: dict[tuple[Any, ...], list[Leg]] = {}
    for leg in by_name.values():
        if leg.name not in taken:
            shape = leg.run.options.shape
            groups.setdefault((leg.run.stage, bool(leg.branch), shape, leg.end - leg.start), []).append(leg)
    new = [
        group[i : i + limits[shape]]
        for (_, _, shape, _), group in groups.items()
        for i in range(0, len(group), limits[shape])
    ]
    return sorted([*kept, *new], key=lambda stack: (max(leg.run.stage for leg in stack), bool(stack[0].branch)))


def identity(stack: Sequence[Leg]) -> str:
    """A name for a stack, from its legs."""
    return hashlib.sha256("\n".join(leg.name for leg in stack).encode()).hexdigest()[:16]
