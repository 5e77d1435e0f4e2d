"""From options and checkpoints to the list of numbers to measure.

Everything that can be wrong with a request is found here, before any weight is loaded: text too short, a group
larger than a row, fused experts, a missing tokenizer.  Checkpoints that are wrong themselves do not stop the
others; they are set aside with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_eval import corpora, records
from ptq_eval.checkpoints import error_for, local_path, tokenizer_folder
from ptq_eval.config import DEFAULT_SEQ_LEN, FULL_PRECISION, RunConfig
from ptq_eval.corpora.base import Text
from ptq_eval.corpora.overlap import overlap
from ptq_eval.corpora.windows import Windows, make_windows
from ptq_eval.errors import MissingTokenizerError, OptionError, PtqEvalError
from ptq_eval.models import LanguageModel
from ptq_eval.records import Checkpoint, Trial
from quantizers import Quantizer, get_quantizer

_SPARE_CHARS = 16
"""Characters read for each token asked for; more than any tokenizer in use needs on average."""

_CROP_CHARS = 512
"""The same where crops are drawn: they come from a stretch that is 32 times as long."""


@dataclass(frozen=True)
class Workload:
    """One checkpoint with its texts and all its trials, the full-precision one first."""

    checkpoint: Checkpoint
    folder: Path
    evaluation: Windows
    calibration: Windows | None
    trials: tuple[Trial, ...]


@dataclass
class Plan:
    """What a run will do, and what a reader of its results must know."""

    workloads: list[Workload] = field(default_factory=list)
    excluded: list[tuple[Checkpoint, PtqEvalError]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def quantizers_of(config: RunConfig) -> dict[str, Quantizer]:
    """The quantizers of a run with their options.  Raises OptionError."""
    try:
        return {name: get_quantizer(name, **config.options.get(name, {})) for name in config.quantizers}
    except ValueError as error:
        raise OptionError("a quantizer's option is wrong", got=error) from error


def make_plan(checkpoints: Sequence[Checkpoint], config: RunConfig) -> Plan:
    """The plan for verified checkpoints.  Raises the PtqEvalError of whatever is wrong with the request."""
    return _Planner(config).plan(checkpoints)


class _Planner:
    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.quantizers = quantizers_of(config)
        self.device = config.resolve_device().split(":")[0]
        self._windows: dict[tuple[str, str, int, int], Windows] = {}
        self._texts: dict[tuple[str, int | None], Text] = {}
        self._blueprints: dict[str, LanguageModel] = {}

    def plan(self, checkpoints: Sequence[Checkpoint]) -> Plan:
        plan = Plan()
        plan.excluded = [(c, error_for(c, c.fatal[0])) for c in checkpoints if c.fatal]
        sound = [(c, local_path(c)) for c in checkpoints if not c.fatal]
        models = [self._blueprint(checkpoint, folder) for checkpoint, folder in sound]
        # One group size and one window length for all runs: deltas of other ones could not be compared.
        widths = {f"{c.run}: {n}": m.weight(n).shape[1] for (c, _), m in zip(sound, models) for n in m.linears()}
        group_size = self.config.resolve_group_size(widths) if widths else None
        seq_len = self._seq_len(models)
        for (checkpoint, folder), model in zip(sound, models):
            evaluation = self._cut("evaluation", checkpoint, folder, model, seq_len)
            calibration = self._calibration(checkpoint, folder, model, seq_len)
            if checkpoint.run not in plan.models:
                plan.models[checkpoint.run] = {**model.describe(), "group_size": group_size, "seq_len": seq_len}
                self._note(plan, checkpoint.run, evaluation, calibration)
            trials = tuple(self._trials(checkpoint, evaluation, calibration, group_size))
            plan.workloads.append(Workload(checkpoint, folder, evaluation, calibration, trials))
        index, count = self.config.shard
        plan.workloads = plan.workloads[index - 1 :: count]
        return plan

    def _calibration(self, checkpoint: Checkpoint, folder: Path, model: LanguageModel, seq_len: int) -> Windows | None:
        if not any(quantizer.needs_stats for quantizer in self.quantizers.values()):
            return None
        return self._cut("calibration", checkpoint, folder, model, seq_len)

    def _blueprint(self, checkpoint: Checkpoint, folder: Path) -> LanguageModel:
        content = (folder / "config.json").read_text(encoding="utf-8")
        if content not in self._blueprints:
            self._blueprints[content] = LanguageModel.blueprint(
                folder,
                include_head=self.config.include_head,
                trust_remote_code=self.config.trust_remote_code,
                name=checkpoint.name,
            )
        return self._blueprints[content]

    def _seq_len(self, models: Sequence[LanguageModel]) -> int:
        longest = min((m.max_length for m in models if m.max_length is not None), default=None)
        if self.config.seq_len is None:
            return min(DEFAULT_SEQ_LEN, longest or DEFAULT_SEQ_LEN)
        if longest is not None and self.config.seq_len > longest:
            raise OptionError(
                "--seq-len is longer than the model's context", got=self.config.seq_len, allowed=f"2 to {longest}"
            )
        return self.config.seq_len

    def _cut(self, role: str, checkpoint: Checkpoint, folder: Path, model: LanguageModel, seq_len: int) -> Windows:
        key = (role, checkpoint.tokenizer_sha, seq_len, model.vocab_size)
        if key not in self._windows:
            calibrating = role == "calibration"
            count = self.config.calib_windows if calibrating else self.config.eval_windows
            seed = self.config.calib_seed if calibrating else None
            room = _SPARE_CHARS if seed is None else _CROP_CHARS
            max_chars = None if count is None else room * seq_len * count + 100_000
            text = self._text(self.config.calib_text if calibrating else self.config.eval_text, max_chars)
            tokenizer = None if text.ids is not None else _tokenizer(folder, self.config.trust_remote_code, checkpoint)
            self._windows[key] = make_windows(
                text, tokenizer, seq_len=seq_len, count=count, seed=seed, vocab_size=model.vocab_size
            )
        return self._windows[key]

    def _text(self, spec: str, max_chars: int | None) -> Text:
        if (spec, max_chars) not in self._texts:
            self._texts[spec, max_chars] = corpora.read(spec, max_chars=max_chars)
        return self._texts[spec, max_chars]

    def _note(self, plan: Plan, run: str, evaluation: Windows, calibration: Windows | None) -> None:
        for role, windows in (("evaluation", evaluation), ("calibration", calibration)):
            if windows is None:
                continue
            plan.texts.setdefault(run, {})[role] = {
                "spec": windows.spec,
                "protocol": windows.protocol,
                "digest": windows.digest,
                "text_digest": windows.text_digest,
                "windows": len(windows.ids),
                "available": windows.total_windows,
                "notes": list(windows.notes),
            }
            plan.notes += [f"{role} text: {note}" for note in windows.notes]
        if calibration is not None:
            found = overlap(calibration, evaluation)
            plan.overlaps[run] = {
                "share_of_windows": found.share_of_windows,
                "share_of_ngrams": found.share_of_ngrams,
                "flagged": found.flagged,
                "message": found.message,
            }
        plan.notes = list(dict.fromkeys(plan.notes))

    def _trials(
        self, checkpoint: Checkpoint, evaluation: Windows, calibration: Windows | None, group_size: int | None
    ) -> list[Trial]:
        common: dict[str, Any] = {
            "checkpoint": checkpoint,
            "corpus": evaluation.digest,
            "protocol": evaluation.protocol,
            "dtype": self.config.dtype,
            "device": self.device,
            "include_head": self.config.include_head,
        }
        trials = [Trial(quantizer=FULL_PRECISION, **common)]
        for name, quantizer in self.quantizers.items():
            mode = _calibration(quantizer, self.config)
            for bits in self.config.bits:
                trials.append(
                    Trial(
                        quantizer=name,
                        quantizer_version=quantizer.version,
                        options=quantizer.options(),
                        scheme=records.Scheme(bits, group_size, self.config.symmetric),
                        calibration=mode,
                        calibration_corpus=calibration.digest if calibration and mode != "none" else "",
                        **common,
                    )
                )
        return trials


def _calibration(quantizer: Quantizer, config: RunConfig) -> str:
    if not quantizer.needs_stats:
        return "none"
    return quantizer.default_calibration if config.calibration == "default" else config.calibration


def _tokenizer(folder: Path, trust: bool, checkpoint: Checkpoint) -> Callable[..., Mapping[str, Any]]:
    home = tokenizer_folder(folder)
    remedy = "put the tokenizer's files beside the weights, or give token ids (.bin, .npy) as text"
    if home is None:
        raise MissingTokenizerError(f"{checkpoint.name} has no tokenizer", got=folder.name, remedy=remedy)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(home, trust_remote_code=trust, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise MissingTokenizerError(
            f"{checkpoint.name}: its tokenizer cannot be loaded",
            got=str(error).splitlines()[0][:200],
            remedy=remedy,
        ) from error
