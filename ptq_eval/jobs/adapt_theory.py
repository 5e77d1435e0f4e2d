"""What is predicted for the bases of `ptq-eval adapt`, beside what is measured before training: `theory.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ptq_eval.adapt.training import batches_of, noise_batches
from ptq_eval.config.adapt import AdaptConfig
from ptq_eval.config.run import RunConfig
from ptq_eval.corpora.windows import Windows
from ptq_eval.jobs.sensitivity import session_options, ticker
from ptq_eval.measure.session import Session
from ptq_eval.measure.texts import Texts, calibration_requests
from ptq_eval.measure.trials import Workload
from ptq_eval.records import Progress, Trial
from ptq_eval.report.adapt import page
from ptq_eval.sampling import design_of
from ptq_eval.theory import ALL
from ptq_eval.theory.adaptation import damages, gradient_response, with_bounds
from quantizers import Scheme

FORMAT = 2
"""Raised whenever the numbers of `theory.json` change their meaning."""
SHARE_FOR_OUTPUTS = 0.25
"""Of the memory budget, for the outputs of the checkpoint on the evaluation windows, kept from run to run."""
LESS_MEMORY = "fewer --batch-size, a shorter --seq-len, or a device with more memory"


def predict(
    work: Workload,
    texts: Texts,
    config: RunConfig,
    asked: AdaptConfig,
    training: Windows,
    vocab_size: int,
    out: Path,
    said: Progress,
) -> dict[str, Any]:
    """What is predicted for these bases, from `theory.json` if it is there, else computed and written."""
    (wanted,) = calibration_requests(config, work.evaluation.seq_len)
    cut = texts.cut(wanted, work.checkpoint, work.folder, vocab_size)
    trials = work.trials[1:]
    settings = {**asdict(asked), "bits": None}
    identity = [FORMAT, [trial.key() for trial in trials], training.digest, cut.digest, settings]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    known = page.read_theory(out)
    if known is not None and known["key"] == key:
        return known
    windows = torch.tensor(cut.ids, dtype=torch.long)
    designs = design_of(work.evaluation.sample, len(work.evaluation)), design_of(cut.sample, len(cut))
    bases: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    with Session.opened(work, **session_options(config, LESS_MEMORY)) as session:
        groups = session.fitting(trials)
        passes = len(groups) * (3 * len(windows) + 2 * len(work.evaluation)) + 7 * len(trials) * len(work.evaluation)
        tick = ticker(said, f"predicting {work.checkpoint.name}", passes)
        for group in groups:
            made = [pair for pair in zip(group, session.quantized(group)) if not pair[1].failure]
            if not made:
                continue
            variants = [variant for _, variant in made]
            found = damages(
                session.model,
                variants,
                session.evaluation,
                windows,
                rank=asked.rank,
                designs=designs,
                budget=SHARE_FOR_OUTPUTS * session.budget.total,
                tick=tick,
            )
            for (trial, variant), (whole, own) in zip(made, found):
                scheme = variant.scheme
                head: dict[str, Any] = {"quantizer": trial.quantizer, "bits": scheme.bits, "format": scheme.name}
                head["group_size"] = scheme.group_size
                bases.append({**head, "layer": ALL, **whole})
                layers += [{**head, **row} for row in own]
        responses = _responses(session, trials, asked, training)
    record = {"key": key, "bases": with_bounds(bases), "layers": layers, "gradients": responses}
    page.write_theory(out, record)
    return record


def _responses(
    session: Session, trials: Sequence[Trial], asked: AdaptConfig, training: Windows
) -> list[dict[str, Any]]:
    """How gradients respond to noise, for each seed, in the groups of the first integer grid; none without one."""
    integers = [trial.scheme for trial in trials if trial.scheme is not None and trial.scheme.format == "int"]
    if not integers:
        return []
    scheme, found = Scheme(8, integers[0].group_size, integers[0].symmetric), []
    for seed in asked.seeds:
        fixed = noise_batches(asked, batches_of(asked, training.ids, seed), session.model.device)
        shape = {"rank": asked.rank, "alpha": asked.alpha, "seed": seed}
        response = gradient_response(session.model, scheme, fixed, widths=asked.quantized, **shape)
        found.append({"seed": seed, "group_size": scheme.group_size, **response})
    return found
