"""From options and checkpoints to the list of numbers to measure, and the texts to measure them on.

Everything that can be wrong with a request is found here, before any weight is loaded: text too short, a group
larger than a row, fused experts, a missing tokenizer.  Checkpoints that are wrong themselves do not stop the
others; they are excluded with their reason, and so are those that turn out to lack a tokenizer or a model class.
Texts are read once, cut into windows once per tokenizer, and described for `run.json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints import gravest, small_path
from ptq_eval.config.run import DEFAULT_SEQ_LEN, RunConfig
from ptq_eval.corpora.overlap import overlap
from ptq_eval.corpora.windows import Windows
from ptq_eval.errors import (
    MissingTokenizerError,
    NumberFormatError,
    OptionError,
    PtqEvalError,
    TokenRangeError,
    UnreadableCheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from ptq_eval.measure import mixtures, tasks
from ptq_eval.measure.foreign.quantizer import Foreign, method_of
from ptq_eval.measure.mixtures import Mixture
from ptq_eval.measure.roundings import is_static, roundings_of
from ptq_eval.measure.schemes import refusal, schemes_of
from ptq_eval.measure.texts import Texts, evaluation_request
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import FULL_PRECISION, WEIGHTS_KEPT, CalibrationDraw, Checkpoint, Progress, Trial
from quantizers import Quantizer, Scheme

_OF_ONE_CHECKPOINT = (
    MissingTokenizerError,
    TokenRangeError,
    UnreadableCheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
"""What may be wrong with one checkpoint and right with the next; anything else is wrong with the request."""

_LACKS_BOS = (
    "the tokenizer begins a text with a beginning-of-sequence token, which not every window has: for a model "
    "trained with one in each window, the losses are too high; --bos begins each window with it"
)


_WARNED = ("near_identical", "dequantized")
"""Problems of a checkpoint that is measured which a reader of the results must know."""


@dataclass(frozen=True)
class Workload:
    """One checkpoint with its texts and all its trials, the full-precision one first.

    `drawn` are all draws of calibration windows, condition by condition, the first one first; empty where no quantizer
    needs any.  A trial's `calibration_corpus` is the digest of its own.
    """

    checkpoint: Checkpoint
    folder: Path
    evaluation: Windows
    drawn: Mapping[CalibrationDraw, Windows]
    trials: tuple[Trial, ...]

    @property
    def calibration(self) -> Windows | None:
        """The first draw of the calibration windows, if there is any."""
        return next(iter(self.drawn.values()), None)

    @property
    def calibrations(self) -> dict[str, Windows]:
        """Every draw of the calibration windows by its digest, the first one first."""
        return {windows.digest: windows for windows in self.drawn.values()}


@dataclass
class Plan:
    """What a run will do, and what a reader of its results must know.

    `checkpoints` are those asked for; what excludes one is among its fatal problems, and in `excluded`.
    """

    checkpoints: list[Checkpoint] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    excluded: list[tuple[Checkpoint, PtqEvalError]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def quantizers_of(config: RunConfig) -> dict[str, Quantizer]:
    """The quantizers of a run with their options.  Raises OptionError."""
    try:
        return {name: method_of(name, **config.options.get(name, {})) for name in config.quantizers}
    except ValueError as error:
        raise OptionError(f"--option: {error}", remedy="`ptq-eval quantizers` lists them all") from error


def make_plan(
    checkpoints: Sequence[Checkpoint],
    config: RunConfig,
    progress: Progress | None = None,
    texts: Texts | None = None,
) -> Plan:
    """The plan for verified checkpoints; `texts` are those of earlier plans with these options.

    Raises the PtqEvalError of whatever is wrong with the request.
    """
    return _Planner(config, texts or Texts(config, progress)).plan(checkpoints)


@contextlib.contextmanager
def _excluding(plan: Plan, place: int) -> Iterator[None]:
    """An error that concerns the checkpoint at `place` alone takes it out of the plan."""
    try:
        yield
    except _OF_ONE_CHECKPOINT as error:
        checkpoint = plan.checkpoints[place].with_problem(
            "not_measurable", error.fault, fatal=True, remedy=error.remedy
        )
        plan.checkpoints[place] = checkpoint
        plan.excluded.append((checkpoint, error))


class _Planner:
    def __init__(self, config: RunConfig, texts: Texts) -> None:
        self.config, self.texts = config, texts
        self.quantizers = quantizers_of(config)
        self.device = config.resolve_device().split(":")[0]
        self.narrowest = 1
        roundings_of(self.config)  # raises what is wrong with the request
        self.tasks = tasks.specs(config)

    def plan(self, checkpoints: Sequence[Checkpoint]) -> Plan:
        plan = Plan(checkpoints=list(checkpoints))
        sound = []
        for place, checkpoint in enumerate(checkpoints):
            if checkpoint.fatal:
                plan.excluded.append((checkpoint, gravest(checkpoint)))
                continue
            with _excluding(plan, place):
                folder = small_path(checkpoint)
                sound.append((place, folder, self._blueprint(checkpoint, folder)))
        # One group size and one window length for all runs: deltas of other ones could not be compared.
        widths = {
            f"{checkpoints[place].run}: {name}": model.weight(name).shape[1]
            for place, _, model in sound
            for name in model.matrices()
        }
        group_size = self.config.resolve_group_size(widths) if widths else None
        self.narrowest = min(widths.values(), default=1)
        schemes = schemes_of(self.config, group_size, self.narrowest) if widths else []
        mixed = [mixtures.read(path, group_size, self.narrowest) for path in self.config.mixed] if widths else []
        self._refuse_backends()
        if schemes or mixed:
            self._require_one_possible(schemes, mixed)
        seq_len = self._seq_len([model for *_, model in sound])
        for place, folder, model in sound:
            shapes = {name: (model.weight(name).shape[0], model.weight(name).shape[1]) for name in model.matrices()}
            for one in mixed:
                one.require(checkpoints[place].name, shapes)
            with _excluding(plan, place):
                work = self._workload(plan, checkpoints[place], folder, model, [*schemes, *mixed], seq_len)
                plan.workloads.append(work)
                plan.models[work.checkpoint.run].setdefault("group_size", group_size)
        if len({work.checkpoint.tokenizer_sha for work in plan.workloads} - {""}) > 1:
            plan.warnings.append(
                "the runs have different tokenizers: their losses per token, and fits over several sizes, "
                "cannot be compared"
            )
        plan.warnings += [
            f"{checkpoint.name}: {problem}"
            for checkpoint in checkpoints
            for problem in checkpoint.problems
            if problem.code in _WARNED
        ]
        plan.warnings += filter(None, [one.note(plan.checkpoints) for one in mixed])
        index, count = self.config.shard
        plan.workloads = plan.workloads[index - 1 :: count]
        return plan

    def _refuse_backends(self) -> None:
        """Raise OptionError for what is asked of backends and none of them does."""
        foreign = [name for name, one in self.quantizers.items() if isinstance(one, Foreign)]
        asked = {"--include-embedding": "no embedding", "--mixed": "all layers alike"}
        for flag, what in asked.items():
            if foreign and getattr(self.config, flag.strip("-").replace("-", "_")):
                remedy = f"omit {flag}, or measure backends in a run of their own"
                raise OptionError(f"backends quantize {what}", got=foreign[0], remedy=remedy)

    def _require_one_possible(self, schemes: Sequence[Scheme], mixed: Sequence[Mixture]) -> None:
        """Raise the error of the first cell where none is possible; where some are, the others become failed records.

        Raises NumberFormatError, or BackendError for a backend that is not installed or is not trusted.
        """
        faults = []
        for name, quantizer in self.quantizers.items():
            if isinstance(quantizer, Foreign):
                own = [quantizer.fault(scheme, self.narrowest) for scheme in quantizer.schemes(schemes, self.narrowest)]
            else:
                cells = [(scheme.name, [scheme]) for scheme in schemes]
                cells += [(one.source, list(one.layers.values())) for one in mixed]
                own = [_undefined(name, quantizer, *cell) for cell in cells]
            faults += own
        if None not in faults:
            first = next(fault for fault in faults if fault is not None)
            raise first

    def _workload(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        folder: Path,
        model: LanguageModel,
        schemes: Sequence[Scheme | Mixture],
        seq_len: int,
    ) -> Workload:
        evaluation = self.texts.cut(evaluation_request(self.config, seq_len), checkpoint, folder, model.vocab_size)
        drawn: Mapping[CalibrationDraw, Windows] = {}
        if is_static(self.config) or any(quantizer.needs_stats for quantizer in self.quantizers.values()):
            drawn = self.texts.calibrations(checkpoint, folder, model.vocab_size, seq_len)
        if checkpoint.run not in plan.models:
            plan.models[checkpoint.run] = {**model.describe(), "seq_len": seq_len}
            self._note(plan, checkpoint.run, evaluation, drawn)
        trials = tuple(self._trials(checkpoint, evaluation, drawn, schemes))
        return Workload(checkpoint, folder, evaluation, drawn, trials)

    def _blueprint(self, checkpoint: Checkpoint, folder: Path) -> LanguageModel:
        return LanguageModel.blueprint(
            folder,
            include_head=self.config.include_head,
            include_embedding=self.config.include_embedding,
            trust_remote_code=self.config.trust_remote_code,
            name=checkpoint.name,
        )

    def _seq_len(self, models: Sequence[LanguageModel]) -> int:
        longest = min((m.max_length for m in models if m.max_length is not None), default=None)
        asked = {"--seq-len": self.config.seq_len, "--calib-length": max(self.config.calib_length, default=None)}
        for flag, length in asked.items():
            if longest is not None and length is not None and length > longest:
                raise OptionError(f"{flag} is longer than the model's context", got=length, allowed=f"2 to {longest}")
        if self.config.seq_len is None:
            return min(DEFAULT_SEQ_LEN, longest or DEFAULT_SEQ_LEN)
        return self.config.seq_len

    def _note(self, plan: Plan, run: str, evaluation: Windows, drawn: Mapping[CalibrationDraw, Windows]) -> None:
        roles = {"evaluation": evaluation}
        for draw, windows in drawn.items():
            roles[f"calibration: {draw.name}" if "calibration" in roles else "calibration"] = windows
        for role, windows in roles.items():
            plan.texts.setdefault(run, {})[role] = windows.describe()
            plan.notes += [f"{role.partition(':')[0]} text: {note}" for note in windows.notes]
        if any(windows.lacks_bos for windows in roles.values()) and _LACKS_BOS not in plan.warnings:
            plan.warnings.append(_LACKS_BOS)
        by_text: dict[str, Windows] = {}
        for draw, windows in drawn.items():
            by_text.setdefault(draw.text, windows)
        for text, windows in by_text.items():
            plan.overlaps[f"{run}, {text}" if plan.overlaps.get(run) else run] = asdict(overlap(windows, evaluation))
        plan.notes = list(dict.fromkeys(plan.notes))

    def _trials(
        self,
        checkpoint: Checkpoint,
        evaluation: Windows,
        drawn: Mapping[CalibrationDraw, Windows],
        schemes: Sequence[Scheme | Mixture],
    ) -> list[Trial]:
        common: dict[str, Any] = {
            "checkpoint": checkpoint,
            "corpus": evaluation.digest,
            "protocol": evaluation.protocol,
            "dtype": self.config.dtype,
            "device": self.device,
            "include_head": self.config.include_head,
            "include_embedding": self.config.include_embedding,
            "stop": self.config.stop_rule(),
            "sample": evaluation.sample,
        }
        first = next(iter(drawn.values()), None)
        roundings = roundings_of(self.config, first.digest if first else "")
        losses = [Trial(quantizer=FULL_PRECISION, **common)]
        losses += [Trial(quantizer=WEIGHTS_KEPT, **common, **rounding) for rounding in roundings if rounding]
        for name, quantizer in self.quantizers.items():
            mode = _calibration(quantizer, self.config)
            asked = schemes
            if isinstance(quantizer, Foreign):
                asked = quantizer.schemes([one for one in schemes if isinstance(one, Scheme)], self.narrowest)
            own = drawn.items() if mode != "none" else [(None, None)]
            losses += [
                Trial(
                    quantizer=name,
                    quantizer_version=quantizer.version,
                    options=quantizer.options(),
                    scheme=mixtures.recorded(scheme),
                    calibration=mode,
                    calibration_corpus=windows.digest if windows is not None else "",
                    calibration_draw=draw,
                    **common,
                    **rounding,
                )
                for scheme in asked
                for draw, windows in own
                for rounding in roundings
            ]
        kept = Trial(quantizer=WEIGHTS_KEPT, **common)
        answers = [replace(trial, task=task) for trial in [kept, *losses[1:]] for task in self.tasks]
        return [*losses, *answers]


def _undefined(name: str, quantizer: Quantizer, cell: str, schemes: Sequence[Scheme]) -> PtqEvalError | None:
    """The error of a method that is not defined for a cell of the run, whose layers have these schemes."""
    if not refusal(quantizer, schemes):
        return None
    what, allowed = f"{name} is not defined for this number format", ", ".join(quantizer.formats)
    return NumberFormatError(what, got=cell, allowed=allowed, remedy="`ptq-eval formats` lists methods and formats")


def _calibration(quantizer: Quantizer, config: RunConfig) -> str:
    if not quantizer.needs_stats:
        return "none"
    own = config.calibration == "default" or isinstance(quantizer, Foreign)
    return quantizer.default_calibration if own else config.calibration
