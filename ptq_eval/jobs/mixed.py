"""From sensitivities to plans: a number format for each layer under a budget, and what it costs when it is measured.

    sensitivity.json → choose, by the KL of each layer alone → quantize the mixed and the uniform models → evaluate
                     → mixed.json, and mixed/NAME.json for `ptq-eval run --mixed` and `export --mixed`

Layers that are fed the same tensor, such as query, key and value, share a format: serving engines fuse them, and AWQ
scales them together.  With `--include-embedding` the embedding is a part of its own, and a tied head belongs to it.
What is chosen is measured on the same windows as the uniform models, so that the difference between two models of equal
size has the error of a paired difference.  The choice rests on the same windows too, which favours it by little: a KL
has an error of a few per cent, and formats differ by factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.config.run import RunConfig
from ptq_eval.config.study import Budget
from ptq_eval.errors import OptionError
from ptq_eval.measure import mixtures
from ptq_eval.measure.calibration import input_groups
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.foreign.quantizer import method_of
from ptq_eval.measure.mixtures import Mixture
from ptq_eval.measure.schemes import refusal
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.session import Session
from ptq_eval.measure.trials import Workload
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Progress, Trial
from ptq_eval.report.mixed import page
from ptq_eval.sampling import Design, design_of, mean_and_error
from ptq_eval.theory import ALL, FULL_BYTES
from ptq_eval.theory.allocation import Choice, choose
from ptq_eval.theory.sensitivity import damage
from quantizers import Scheme

FORMAT = 1
"""Raised whenever the numbers of a record change their meaning."""


@dataclass(frozen=True)
class Sizes:
    """Shapes of the layers [out, in] that are quantized, and the bytes of everything else at 16 bits per weight."""

    shapes: Mapping[str, tuple[int, int]]
    rest: int

    @classmethod
    def of(cls, model: LanguageModel) -> Sizes:
        """Those of a model, a tied tensor counted once."""
        shapes = {name: (model.weight(name).shape[0], model.weight(name).shape[1]) for name in model.matrices()}
        total = sum(parameter.numel() for parameter in model.module.parameters())
        return cls(shapes, FULL_BYTES * (total - sum(rows * columns for rows, columns in shapes.values())))

    @property
    def weights(self) -> int:
        """How many weights are quantized."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def bits(self, layers: Mapping[str, Scheme]) -> int:
        """Stored bits of these layers."""
        return sum(scheme.bits_stored(*self.shapes[name]) for name, scheme in layers.items())

    def facts(self, layers: Mapping[str, Scheme]) -> dict[str, float]:
        """The size of a model with all layers in these schemes."""
        bits = self.bits(layers)
        return {"bits_per_weight": bits / self.weights, "bytes": self.rest + bits / 8}


def budgets_of(asked: Sequence[Budget], sizes: Sizes, schemes: Sequence[Scheme]) -> dict[str, int]:
    """Bits that the quantized layers may take, by the name of the budget.

    Raises OptionError for a budget below what the smallest of the `schemes` takes.
    """
    uniform = {f"size of {one.name}": sizes.bits(dict.fromkeys(sizes.shapes, one)) for one in schemes}
    fewest = sum(min(one.bits_stored(*shape) for one in schemes) for shape in sizes.shapes.values())
    found: dict[str, int] = {}
    for budget in asked:
        if budget.unit == "uniform":
            found |= dict(sorted(uniform.items(), key=lambda item: item[1])[1:-1])
            continue
        bits = int(budget.value * sizes.weights if budget.unit == "bits" else 8 * (budget.value - sizes.rest))
        if bits < fewest:
            enough = (
                f"{fewest / sizes.weights:.3f}bits, or {(sizes.rest + fewest / 8) / 1e6:.4g}MB with the other weights"
            )
            what = "--budget is below what the fewest bits of --bits take"
            raise OptionError(
                what, got=budget.name, allowed=f"at least {enough}", remedy="a larger budget, or fewer bits"
            )
        found[budget.name] = bits
    return found


def refuse_early(works: Sequence[Workload], config: RunConfig, asked: Sequence[Budget]) -> None:
    """Raises OptionError for what is known to be impossible before anything is measured."""
    for work in works:
        for name, own in _by_quantizer(work).items():
            schemes = [_scheme(trial) for trial in own]
            if why := refusal(method_of(name, **own[0].options), schemes):
                raise OptionError(why, remedy=f"omit {name}, or that format")
            if len(schemes) < 2:
                raise OptionError(
                    "--budget chooses among several formats", got=schemes[0].name, remedy="--bits 2,3,4,8"
                )
            options: dict[str, Any] = {"include_head": config.include_head, "name": work.checkpoint.name}
            options["include_embedding"] = config.include_embedding
            options |= {"trust_remote_code": config.trust_remote_code}
            budgets_of(asked, Sizes.of(LanguageModel.blueprint(work.folder, **options)), schemes)


def _by_quantizer(work: Workload) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in work.trials[1:]:
        found.setdefault(trial.quantizer, []).append(trial)
    return found


def _scheme(trial: Trial) -> Scheme:
    assert trial.scheme is not None
    return mixtures.schemes_of(trial.scheme)[0]


def measured(
    work: Workload,
    session: Session,
    entry: Mapping[str, Any],
    asked: Sequence[Budget],
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The plans of one checkpoint, which are written below `out`, and the uniform models beside them.

    `entry` is the checkpoint's in `sensitivity.json`.
    """
    sizes = Sizes.of(session.model)
    groups = input_groups(session.model, session.evaluation[:1])
    if session.model.embedding is not None:
        groups.append((session.model.embedding,))
    record: dict[str, Any] = {"uniform": [], "plans": [], "bits": {}}
    for quantizer, trials in _by_quantizer(work).items():
        schemes = [_scheme(trial) for trial in trials]
        record["bits"] |= {scheme.name: scheme.bits for scheme in schemes}
        what = f"mixed precision of {work.checkpoint.name}"
        full, uniform_scores, embedding_scores = _scored(session, trials, what, progress)
        paired = _Paired(full, work.evaluation.ids.shape[1] - 1, design_of(work.evaluation.sample, len(full.nll)))
        embedding = [
            {"key": trial.key(), "layer": session.model.embedding, **paired.damage(score)}
            for trial, score in zip(trials, embedding_scores)
        ]
        alone = _alone([*entry["rows"], *embedding], trials, sizes)
        uniform = {one.name: dict.fromkeys(sizes.shapes, one) for one in schemes}
        chosen = {
            budget: _chosen(groups, alone, uniform, sizes, bits)
            for budget, bits in budgets_of(asked, sizes, schemes).items()
        }
        mixed = [replace(trials[0], scheme=mixtures.recorded(Mixture(one))) for one in chosen.values()]
        scores = [*uniform_scores, *_scored(session, mixed, what, progress)[1]]
        models = {**uniform, **chosen}
        rows = [
            {"quantizer": quantizer, **sizes.facts(own), **_predicted(own, alone), **paired.damage(score)}
            for own, score in zip(models.values(), scores)
        ]
        plain = [{"scheme": name, **row} for name, row in zip(uniform, rows)]
        record["uniform"] += plain
        for (budget, own), row, score in zip(chosen.items(), rows[len(plain) :], scores[len(plain) :]):
            plan = {"budget": budget, **row, **_against(row, plain, scores, score, paired)}
            plan["layers"] = {name: scheme.name for name, scheme in own.items()}
            plan["file"] = page.write_plan(out, plan, work.checkpoint, trials[0], sizes.shapes)
            record["plans"].append(plan)
    return record


def head(trial: Trial) -> dict[str, Any]:
    """The columns by which rows of `sensitivity.json` call the quantizer and scheme of a trial."""
    scheme = _scheme(trial)
    if scheme.format == "int":
        return {"quantizer": trial.quantizer, "bits": trial.bits}
    return {"quantizer": f"{trial.quantizer} {scheme.name}", "bits": trial.bits, "format": scheme.format}


def _alone(rows: Sequence[Mapping[str, Any]], trials: Sequence[Trial], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """{name of a scheme: {layer: row of the layer quantized alone}}.  Raises OptionError where a layer was skipped."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        scheme = _scheme(trial)
        own = {row["layer"]: row for row in rows if row["key"] == trial.key()}
        own.pop(ALL, None)
        if not own:
            what = f"{trial.quantizer} could not be measured under a format, whose price is unknown"
            raise OptionError(what, got=scheme.name, remedy=f"omit {scheme.name}, or {trial.quantizer}")
        if missing := [name for name in sizes.shapes if name not in own]:
            what = f"{trial.quantizer} left a layer in full precision, whose price is unknown"
            raise OptionError(what, got=missing[0], remedy=f"omit {scheme.name}, or {trial.quantizer}")
        found[scheme.name] = own
    return found


def _chosen(
    groups: Sequence[Sequence[str]],
    alone: Mapping[str, Mapping[str, Any]],
    schemes: Mapping[str, Mapping[str, Scheme]],
    sizes: Sizes,
    budget: int,
) -> dict[str, Scheme]:
    """The scheme of each layer: the least KL whose layers take at most `budget` bits."""
    units = [
        [
            Choice(
                sizes.bits({layer: own[layer] for layer in group}),
                sum(alone[name][layer]["kl"] for layer in group),
            )
            for name, own in schemes.items()
        ]
        for group in groups
    ]
    places = choose(units, budget)
    names = list(schemes)
    found = {layer: schemes[names[place]][layer] for group, place in zip(groups, places) for layer in group}
    return {layer: found[layer] for layer in sizes.shapes}


def _scored(
    session: Session, trials: Sequence[Trial], what: str, progress: Progress
) -> tuple[Scores, list[Scores], list[Scores]]:
    """Scores in full precision, of each trial, and of each trial's embedding alone, on the evaluation windows.

    There are none of the embedding where it is not quantized.
    """
    name = session.model.embedding
    done, total = 0.0, len(session.evaluation) * len(trials) * (1 if name is None else 2)

    def tick(amount: float) -> None:
        nonlocal done
        done += amount
        progress(what, min(done, total), total)

    full, scores, embedding = Scores(), [], []
    for group in session.fitting(trials):
        weights = [one.weights for one in session.quantized(group)]
        alone = [] if name is None else [{name: own[name]} for own in weights]
        full, own = evaluate(session.model, session.evaluation, [*weights, *alone], tick=tick)
        scores += own[: len(weights)]
        embedding += own[len(weights) :]
    return full, scores, embedding


@dataclass(frozen=True)
class _Paired:
    """Scores in full precision of windows with so many scored tokens each, and how the windows were drawn."""

    full: Scores
    tokens: int
    design: Design | None

    def damage(self, score: Scores) -> dict[str, float]:
        """Measured δ and KL, with their standard errors (_se)."""
        found = {}
        for key, (mean, error) in damage(self.full, score, self.tokens, self.design).items():
            found |= {key: mean, f"{key}_se": error}
        return found

    def difference(self, one: Scores, other: Scores) -> dict[str, float]:
        """By how much `one` is damaged more than the `other`."""
        found = {}
        for key, mine, theirs in (("delta", one.nll, other.nll), ("kl", one.kl, other.kl)):
            values, weights = np.asarray(mine) - np.asarray(theirs), np.full(len(mine), self.tokens)
            mean, error = mean_and_error(values, weights, self.design)
            found |= {f"{key}_difference": mean, f"{key}_difference_se": error}
        return found


def _predicted(own: Mapping[str, Scheme], alone: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The sum over layers quantized alone.

    Its error is the sum of their errors, which is an upper bound: all are of the same windows.
    """
    rows = [alone[scheme.name][layer] for layer, scheme in own.items()]
    return {f"predicted_{key}": sum(row[key] for row in rows) for key in ("delta", "delta_se", "kl", "kl_se")}


def _against(
    row: Mapping[str, Any],
    uniform: Sequence[Mapping[str, Any]],
    scores: Sequence[Scores],
    score: Scores,
    paired: _Paired,
) -> dict[str, Any]:
    """The difference from the uniform model of the nearest size; `scores` begin with the uniform ones."""
    place = min(range(len(uniform)), key=lambda place: abs(uniform[place]["bytes"] - row["bytes"]))
    return {"against": uniform[place]["scheme"], **paired.difference(score, scores[place])}
