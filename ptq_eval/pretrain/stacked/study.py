"""`ptq-eval pretrain --study FILE`: all runs of a grid, trained in stacks.

    text = ["stdlib:train", "novels.txt"]     # a text, or several as an axis
    stack = 16                                      # the most runs in a stack, as far as `memory` allows
    [run]                                           # options that all grids share
    context = 128
    [[grid]]                                        # every combination of these lists is a run
    size = ["32x3", "64x4"]
    seed = [0, 1, 2]
    weights = ["full", 8, 4]
    [[grid]]
    stage = 1                                       # trained after the grids of stage 0
    size = "96x5"

Keys are the options of a run by their names in Python.  Combinations that differ in nothing that has an effect are one
run, the first of them.  A file may grow: what is trained is kept.  The folder has a run's files in `runs/`, and in
`stacks/` which legs are trained together; both are written whole, so the same command goes on after a SIGKILL at any
moment.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.config.options import MEMORY, SIZE, TEXT, Options, option
from ptq_eval.errors import OptionError
from ptq_eval.pretrain.architectures import counts, model_config
from ptq_eval.pretrain.stacked.options import RunOptions
from ptq_eval.pretrain.stacked.plan import Leg, Run, legs, points, stacks

if TYPE_CHECKING:
    from ptq_eval.pretrain.stacked.trainer import Material

Progress = Callable[[str, int, int], None]
"""progress(what is trained, steps done, steps in all)."""


@dataclass(frozen=True)
class StudyOptions(Options):
    """The keys of a study file beside its grids.  Raises OptionError."""

    text: tuple[str, ...] = option(("stdlib:train",), "Texts.", TEXT, many=True, files=True)
    stack: int = option(16, "The most runs in a stack.", low=1)
    memory: int = option(4_000_000_000, "What a stack may take.", SIZE, plausible=MEMORY)
    states: bool = option(False, "Keep the optimizer's state at each checkpoint of a trunk.")


@dataclass(frozen=True)
class GridOptions(Options):
    """The keys of a grid that are no options of a run.  Raises OptionError."""

    stage: int = option(0, "Grids are trained in the order of their stages.", low=0)


STAGE = "stage"
TOKENIZER_CHARS = 20_000_000
"""A tokenizer is trained on so much of a text at most, from its start: more changes little, and takes minutes."""


@dataclass(frozen=True)
class Study:
    """The runs of a study and how many may be stacked."""

    runs: tuple[Run, ...]
    options: StudyOptions

    def until(self, stage: int | None) -> Study:
        """The part of the study up to this stage; all of it for None."""
        return self if stage is None else replace(self, runs=tuple(run for run in self.runs if run.stage <= stage))

    def stacks(self, before: Sequence[Sequence[str]]) -> list[list[Leg]]:
        """All legs in stacks; those of `before` (names of legs) as they were formed."""
        return stacked([leg for run in self.runs for leg in legs(run)], self.options, before)


def stacked(wanted: Sequence[Leg], options: StudyOptions, before: Sequence[Sequence[str]]) -> list[list[Leg]]:
    """These legs in stacks that `options` allow; those of `before` (names of legs) as they were formed."""
    shapes = {leg.run.options.shape: leg.run.options for leg in wanted}
    limits = {shape: max(1, min(options.stack, options.memory // bytes_per_run(own))) for shape, own in shapes.items()}
    return stacks(wanted, limits, before)


@dataclass(frozen=True)
class Progressed:
    """How far a run is: checkpoints saved of those planned, averages excluded."""

    name: str
    saved: int
    planned: int


def read(path: str | Path) -> Study:
    """The study of a TOML file.  Raises OptionError."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "see docs/pretraining.md"
        raise OptionError("the study file cannot be read", got=f"{path}: {error}", remedy=remedy) from None
    common, grids = content.pop("run", {}), content.pop("grid", [{}])
    if not isinstance(common, dict) or not isinstance(grids, list) or not all(isinstance(one, dict) for one in grids):
        raise OptionError("run or grid of the study file is no table", got=path, remedy="write [run] and [[grid]]")
    options = StudyOptions.of(content, also=["run", "grid"])
    shared = common.pop(STAGE, 0)
    stages = [GridOptions(stage=grid.pop(STAGE, shared)).stage for grid in grids]
    study = _study([(stage, *point) for stage, grid in zip(stages, grids) for point in points(grid, common)], options)
    if not study.runs:
        raise OptionError("the study file describes no run", got=path, remedy="name a text, and a [[grid]] or none")
    return study


def _study(found: Sequence[tuple[int, RunOptions, str | None]], options: StudyOptions) -> Study:
    runs: dict[tuple[RunOptions, str], Run] = {}
    for stage, own, text in found:
        (params, _), tokens = counts(own), own.context * own.batch_size
        targets = tuple(sorted({max(1, round(ratio * params / tokens)) for ratio in own.ratios}))
        for one in (text,) if text else options.text:
            runs.setdefault((own.effective, one), Run(own, one, targets, stage))
        _require_reached(own, targets[-1])
    return Study(tuple(runs.values()), options)


def _require_reached(options: RunOptions, steps: int) -> None:
    """Raise OptionError where a run ends before its warm-up does, or before an average of it has its snapshots."""
    if options.warmup > steps:
        what, remedy = "warmup is longer than a run of the study", "a lower warmup, or higher ratios"
        got = f"warmup = {options.warmup:,} in {steps:,} steps"
        raise OptionError(what, got=got, allowed=f"at most {steps:,}", remedy=remedy)
    if (size := max(options.lawa, default=0)) > (most := steps // options.lawa_every):
        raise OptionError(
            "lawa averages more snapshots than a run of the study takes",
            got=f"lawa = {size:,} with lawa_every = {options.lawa_every:,} in {steps:,} steps",
            allowed=f"at most {most:,}" if most > 1 else "",
            remedy="a lower lawa or lawa_every, or higher ratios",
        )


def bytes_per_run(options: RunOptions) -> int:
    """About what a run takes in a stack: weights, gradients, moments, averages, and activations kept for backward."""
    _, params = counts(options)
    copies = 8 + len(options.ema) + max(options.lawa, default=0)
    feed = model_config(options).intermediate_size
    per_token = 4 * options.vocab + options.layers * (16 * options.width + 5 * feed)
    return 4 * (copies * params + options.batch_size * options.context * per_token)


def status(study: Study, out: str | Path) -> list[Progressed]:
    """How far each run is."""
    found = []
    for run in study.runs:
        planned = [("trunk", step) for step in run.targets]
        planned += [("annealed", leg.branch) for leg in legs(run) if leg.branch]
        home = Path(out) / "runs" / run.name
        saved = sum((home / part / f"checkpoint-{step}").is_dir() for part, step in planned)
        found.append(Progressed(run.name, saved, len(planned)))
    return found


def train(
    study: Study,
    out: str | Path,
    *,
    device: str = "cpu",
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train all runs that are not complete under `out`, and return it; the same call goes on where one ended.

    compiled: use torch.compile (default: on CUDA, and on the CPU for long stacks).  On CUDA, matrix products are in
    bfloat16 under autocast, with float32 weights.  Raises OptionError, and OutputFullError if `out` cannot be written.
    """
    materials: dict[tuple[str, int], Any] = {}
    wanted = [leg for run in study.runs for leg in legs(run)]
    read_text = lambda run: _material(materials, run, Path(out))
    return train_legs(wanted, study.options, out, read_text, device=device, compiled=compiled, progress=progress)


def train_legs(
    wanted: Sequence[Leg],
    options: StudyOptions,
    out: str | Path,
    read_text: Callable[[Run], Material],
    *,
    device: str = "cpu",
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """`train` for single legs; `read_text` gives the tokenized text of a run."""
    from ptq_eval.pretrain.saving import writing
    from ptq_eval.pretrain.stacked.trainer import Stack

    out = Path(out)
    with writing(out):
        (out / "stacks").mkdir(parents=True, exist_ok=True)
        (out / "runs").mkdir(exist_ok=True)
    known = [json.loads(path.read_text()) for path in sorted((out / "stacks").glob("*.json"))]
    complete = {tuple(one["legs"]) for one in known if one["done"]}
    waiting = [
        stack
        for stack in stacked(wanted, options, [one["legs"] for one in known])
        if tuple(leg.name for leg in stack) not in complete
    ]
    runs = {leg.run.name: leg.run for leg in wanted}
    for run in runs.values() if waiting else ():  # those that are complete too: their text may have changed
        _describe(out / "runs" / run.name, run, read_text(run), device)
    for number, stack in enumerate(waiting, 1):
        trained = Stack(stack, [read_text(leg.run) for leg in stack], out, device, compiled, options.states)
        trained.describe(done=False)
        what = f"stack {number} of {len(waiting)}, {len(stack)} runs"
        trained.train(lambda done, total, what=what: progress(what, done, total) if progress else None)
    return out


def _material(known: dict[tuple[str, int], Any], run: Run, out: Path) -> Any:
    """The tokenized text of a run; its tokenizer is trained once and kept in OUT/tokenizers."""
    from transformers import AutoTokenizer

    from ptq_eval import corpora
    from ptq_eval.pretrain.data import encode, train_tokenizer
    from ptq_eval.pretrain.saving import write_folder, writing
    from ptq_eval.pretrain.stacked.trainer import Material

    key = (run.text, run.options.vocab)
    if key not in known:
        source = corpora.read(run.text)
        if source.text is None:
            allowed = "a text that can be tokenized"
            raise OptionError("a text of the study must be text, not token ids", got=run.text, allowed=allowed)
        said = f"{source.digest} {run.options.vocab}"
        folder = out / "tokenizers" / hashlib.sha256(said.encode()).hexdigest()[:16]
        if not folder.exists():
            with writing(out):
                folder.parent.mkdir(exist_ok=True)
            write_folder(folder, train_tokenizer(source.text[:TOKENIZER_CHARS], run.options.vocab).save_pretrained)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known[key] = Material(tokenizer, encode(tokenizer, source.text), source.digest)
    return known[key]


def _describe(folder: Path, run: Run, material: Any, device: str) -> None:
    """Write a run's `pretrain.json`.  Raises OptionError where its text was another one before."""
    from ptq_eval.pretrain.saving import describe

    describe(
        folder,
        run.options,
        material.batches(run.options),
        steps_saved=run.targets,
        params=counts(run.options),
        text={"text": run.text, "text_digest": material.text_digest},
        device=device,
    )
