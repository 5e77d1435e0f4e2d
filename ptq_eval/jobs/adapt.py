"""Low-rank adaptation of a checkpoint quantized to several widths: `ptq-eval adapt`.

    from ptq_eval.jobs.adapt import adapt

    record, problems = adapt("my-run/checkpoint-1000", "out/", bits=(16, 8, 4), seeds=(0, 1))

    discover → verify → plan → (quantize → train, run by run → metrics_{bits}_{seed}.json) → predict → summary

A run is one base and one seed, and its metrics file the unit of resumption: a command that is repeated, also with more
bits, seeds or quantizers, trains only what has no file.  Bases are quantized by `measure`, so a method of a backend
(`bitsandbytes:nf4`) gives its dequantized weights, and every base is trained by the same arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ptq_eval.adapt.lora import require_peft
from ptq_eval.adapt.training import steps_per_epoch, train
from ptq_eval.checkpoints import Overrides, discover, verify_all
from ptq_eval.config.adapt import FEWER_WINDOWS, SHARED_WINDOWS, UNQUANTIZED_BITS, AdaptConfig
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.corpora.overlap import overlap
from ptq_eval.corpora.windows import Windows
from ptq_eval.errors import (
    MeasurementFailedError,
    NoCheckpointError,
    OptionError,
    OutputMismatchError,
    PtqEvalError,
    TextTooShortError,
    full_disk,
)
from ptq_eval.jobs.adapt_theory import LESS_MEMORY, SHARE_FOR_OUTPUTS, predict
from ptq_eval.jobs.run import default_output
from ptq_eval.jobs.sensitivity import session_options, ticker
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.session import Session
from ptq_eval.measure.texts import Request, Texts
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Progress, Trial
from ptq_eval.report.adapt import page
from ptq_eval.results import adaptation
from ptq_eval.results.adaptation import Run, metrics_name
from ptq_eval.results.manifest import git_state
from ptq_eval.sampling import design_of

FORMAT = 1
"""Raised whenever the numbers of a metrics file change their meaning."""
EMBEDDED = Path(__file__).parents[2] / "examples" / "trajectory" / "llama-160k" / "checkpoint-31288"
"""The checkpoint that is adapted by default, in a copy of the sources."""
SUFFIX = "adapted"
_OF_TRAINING = ("bits", "seeds")
"""Fields of AdaptConfig that name a run within a folder; the others are the same for all its runs."""


@dataclass(frozen=True)
class _Planned:
    """A run that is asked for: its base, the hash of all that decides its numbers, and its file."""

    trial: Trial
    run: Run
    key: str
    path: Path


def adapt(
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[PtqEvalError]]:
    """Train adapters on a checkpoint quantized to several widths; written to the folder `out`.

    `options` are fields of `config.adapt.AdaptConfig` and, for quantizers and texts, of `config.run.RunConfig`.
    Returns the runs with their settings, and the errors of bases that could not be made.  Raises PtqEvalError
    subclasses: MissingPackageError without peft.
    """
    own = {name: options.pop(name) for name in list(options) if name in declared(AdaptConfig)}
    asked = AdaptConfig.of(own)
    overrides = Overrides.take(options, overrides)
    config = _config(options, asked)
    require_peft()
    root = root_of(checkpoint)
    said: Progress = progress or (lambda what, done, total: None)
    work, texts = _workload(root, overrides, config, said)
    out = Path(out) if out is not None else default_output(root, SUFFIX)
    blueprint = LanguageModel.blueprint(work.folder, trust_remote_code=config.trust_remote_code)
    _require_rank(blueprint, asked.rank)
    _require_writable(out)
    training = _training(work, texts, asked, blueprint.vocab_size)
    planned = _planned(work, training, asked, out)
    done = {one.path: found for one in planned if (found := _read(one)) is not None}
    missing = [one for one in planned if one.path not in done]
    problems: list[PtqEvalError] = []
    if missing:
        problems = _train_all(work, config, asked, training, missing, done, said)
    runs = [done[one.path] for one in planned if one.path in done]
    vocab = blueprint.vocab_size
    predicted = predict(work, texts, config, asked, training, vocab, out, said) if asked.quantized else None
    design = design_of(work.evaluation.sample, len(work.evaluation))
    record = {
        **_about(work),
        "settings": asdict(asked),
        "texts": {"training": training.describe(), "evaluation": work.evaluation.describe()},
        "overlap": asdict(overlap(training, work.evaluation, use="training")),
        "runs": runs,
        "epochs": adaptation.epochs(runs, design),
        "summary": adaptation.summary(runs, design),
        "theory": predicted,
    }
    page.write(out, record)
    return record, problems


def root_of(checkpoint: str | Path | None) -> str | Path:
    """What is adapted: a folder or `hub:` id, by default the embedded checkpoint."""
    return EMBEDDED if checkpoint is None else checkpoint


def _config(options: Mapping[str, Any], asked: AdaptConfig) -> RunConfig:
    widths = asked.quantized or (8,)  # a plan needs a width; without one, its trials are not used
    config = RunConfig.of({"quantizers": ("rtn",), "bits": widths, **options}, also=declared(AdaptConfig))
    if config.dtype != "float32":
        raise OptionError("adaptation needs float32", got=config.dtype, remedy="omit --dtype")
    config.require_one_calibration("adaptation uses one draw of calibration windows")
    config.require_weights_only("adaptation is about quantized weights")
    if config.mixed or config.include_embedding or config.precision is not None:
        what = "adaptation knows neither mixed precision, nor a quantized embedding, nor --precision"
        raise OptionError(what, remedy="omit the option")
    config.resolve_device()
    return config


def _workload(
    root: str | Path, overrides: Overrides | None, config: RunConfig, said: Progress
) -> tuple[Workload, Texts]:
    """The only checkpoint at `root`, planned.  Raises OptionError where there are several."""
    if root == EMBEDDED and not EMBEDDED.is_dir():
        remedy = "ptq-eval adapt CHECKPOINT, or a copy of the sources"
        raise NoCheckpointError("the embedded trajectory comes with the sources alone", got=root, remedy=remedy)
    found = discover([root], overrides=overrides)
    if len(found) > 1:
        names = ", ".join(one.name for one in found[-4:])
        remedy = f"for example {found[-1].location if found[-1].format != 'hub' else 'hub:ORG/NAME@REVISION'}"
        raise OptionError("adaptation starts from one checkpoint", got=f"{len(found)}: … {names}", remedy=remedy)
    checkpoints = verify_all(
        found,
        progress=lambda done, total, _name: said("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    texts = Texts(config, said)
    plan = make_plan(checkpoints, config, said, texts)
    if not plan.workloads:
        raise plan.excluded[0][1]
    return plan.workloads[0], texts


def _require_rank(model: LanguageModel, rank: int) -> None:
    """Raise OptionError for an update that is of full rank in every layer."""
    most = max((min(model.weight(name).shape) for name in model.linears()), default=rank)
    if rank > most:
        what = "--rank is larger than every layer, so the update would not be of low rank"
        raise OptionError(what, got=rank, allowed=f"at most {most}", remedy="a smaller --rank")


def _require_writable(out: Path) -> None:
    """Raise OutputFullError or OutputFolderError before anything is trained."""
    with full_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


def _training(work: Workload, texts: Texts, asked: AdaptConfig, vocab_size: int) -> Windows:
    """The training windows, as long as those of evaluation, enough for an epoch and for the batches of the variance.

    Raises TextTooShortError.
    """
    request = Request(asked.train_text, asked.train_windows, work.evaluation.seq_len, "spread", 0)
    found = texts.cut(request, work.checkpoint, work.folder, vocab_size)
    if len(found) < asked.noise_windows:
        got = f"{asked.batches_asked} with {len(found)} windows of {found.seq_len} tokens of {asked.train_text}"
        allowed = f"at least {asked.noise_windows} windows"
        raise TextTooShortError(SHARED_WINDOWS, got=got, allowed=allowed, remedy=f"{FEWER_WINDOWS}, or a longer text")
    return found


def _planned(work: Workload, training: Windows, asked: AdaptConfig, out: Path) -> list[_Planned]:
    """Every run that is asked for, those in full precision first."""
    full, *quantized = work.trials
    settings = {name: value for name, value in asdict(asked).items() if name not in _OF_TRAINING}
    found = []
    for trial in (full, *(quantized if asked.quantized else ())):
        bits = UNQUANTIZED_BITS if trial.scheme is None else trial.scheme.bits
        for seed in asked.seeds:
            run = Run(trial.quantizer, bits, seed)
            text = json.dumps([FORMAT, trial.key(), training.digest, settings, seed], sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:24]
            found.append(_Planned(trial, run, key, out / metrics_name(run)))
    return found


def _read(one: _Planned) -> dict[str, Any] | None:
    """The metrics of a run that is done, None where it is not.  Raises OutputMismatchError for one of other options."""
    found = page.read(one.path)
    if found is not None and found["key"] != one.key:
        what = "the output folder holds a run of another checkpoint, text or options"
        raise OutputMismatchError(
            what, got=one.path, remedy="choose another -o, or repeat with the options in that file"
        )
    return found


def _train_all(
    work: Workload,
    config: RunConfig,
    asked: AdaptConfig,
    training: Windows,
    missing: Sequence[_Planned],
    done: dict[Path, dict[str, Any]],
    said: Progress,
) -> list[PtqEvalError]:
    """Train what is missing and write each run's file; adds to `done`, returns the errors of bases that failed."""
    problems: list[PtqEvalError] = []
    per_run = asked.epochs * steps_per_epoch(asked, training.ids) + asked.epochs + 1
    tick = ticker(said, f"adapting {work.checkpoint.name}", per_run * len(missing))
    with Session.opened(work, **session_options(config, LESS_MEMORY)) as session:
        evaluator = Evaluator(session.model, session.evaluation)
        evaluator.budget = SHARE_FOR_OUTPUTS * session.budget.total
        for trial, variant, seconds in _bases(session, [one.trial for one in missing]):
            own = [one for one in missing if one.trial is trial]
            if variant is not None and variant.failure:
                what = f"the base {own[0].run.base} cannot be made"
                problems.append(MeasurementFailedError(what, got=variant.failure, remedy="the others are trained"))
                tick(per_run * len(own))
                continue
            for one in own:
                rows, cost = train(
                    session.model,
                    variant.weights if variant else {},
                    asked,
                    training.ids,
                    evaluator,
                    one.run.seed,
                    tick,
                )
                cost["seconds_quantizing"] = seconds / len(own)
                content = {"key": one.key, **asdict(one.run), **_about(work), **_base_facts(variant), "cost": cost}
                provenance = {**session.provenance(cost["seconds"]), "git": git_state()}
                done[one.path] = {**content, "settings": asdict(asked), "epochs": rows, "provenance": provenance}
                page.write_metrics(one.path, done[one.path])
    return problems


def _bases(session: Session, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Variant | None, float]]:
    """Each base once, with the seconds that quantizing took; None for the checkpoint as it is."""
    distinct = list({id(trial): trial for trial in trials}.values())
    yield from ((trial, None, 0.0) for trial in distinct if trial.scheme is None)
    for group in session.fitting([trial for trial in distinct if trial.scheme is not None]):
        started = time.monotonic()
        variants = session.quantized(group)
        seconds = (time.monotonic() - started) / len(group)
        yield from ((trial, variant, seconds) for trial, variant in zip(group, variants))


def _base_facts(variant: Variant | None) -> dict[str, Any]:
    if variant is None:
        return {"format": None, "group_size": None, "bits_per_weight": None, "layers_skipped": {}}
    scheme = variant.scheme
    facts = {"format": scheme.name, "group_size": scheme.group_size, "bits_per_weight": variant.bits_per_weight}
    return {**facts, "layers_skipped": dict(variant.skipped)}


def _about(work: Workload) -> dict[str, Any]:
    """What a file says of the checkpoint; no path, so that folders can be compared."""
    names = ("run", "step", "tokens", "params", "params_total", "weights_sha")
    return {"checkpoint": {name: getattr(work.checkpoint, name) for name in names}}
