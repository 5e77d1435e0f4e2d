"""What a Hugging Face Trainer's `trainer_state.json` says about a checkpoint.

D is `num_input_tokens_seen` where the Trainer counts tokens (it writes 0 otherwise).  Failing that, the
Trainer's `total_flos` is the sum of 6 · (tokens of a batch) · N_hf, N_hf being
`num_parameters(exclude_embeddings=True)`, which keeps an untied output head; so D = total_flos / (6 N_hf).
The real global batch is not stored, and `step × train_batch_size` would be wrong under accumulation or
several processes, so it is not tried.

A counter that starts again when training is resumed shows in the counts of a run: see `token_counter`.

The schedule's phase is read off the logged learning rates up to the checkpoint, unless the file has a
`schedule_phase` of its own.  A learning rate that fell to a tenth of its peak, or is still falling at the
last step of training, counts as annealed.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptq_eval.errors import PtqEvalError
from ptq_eval.models.counts import count_parameters
from ptq_eval.records import Checkpoint, Source

PHASES = ("warmup", "constant", "decay", "annealed")
ANNEALED_SHARE = 0.1
"""A learning rate at or below this share of its peak has been annealed (the usual floor of a cosine)."""


def with_trainer_state(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint completed from `folder/trainer_state.json`, or as it was where there is none."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return checkpoint
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        step = operator.index(state["global_step"])
        counts = {name: operator.index(state.get(name) or 0) for name in ("num_input_tokens_seen", "max_steps")}
        counts["total_flos"] = round(state.get("total_flos") or 0)
        rates = {at: rate for at, rate in map(_rate, state.get("log_history") or ()) if at <= step}
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {error!r}")
    if checkpoint.step is not None and checkpoint.step != step:
        checkpoint = checkpoint.with_problem(
            "step_disagrees",
            f"the folder says step {checkpoint.step}, {path.name} says {step}",
            fatal=True,
        )
    tokens, source, note = _tokens(counts, step, folder)
    if tokens is not None and (source == "explicit" or checkpoint.tokens is None):
        checkpoint = replace(checkpoint, tokens=tokens, tokens_source=source, tokens_note=note)
    last = step > 0 and step == counts["max_steps"]
    return replace(
        checkpoint,
        step=step if checkpoint.step is None else checkpoint.step,
        learning_rate=rates[max(rates)] if rates else None,
        schedule_phase=_written_phase(state) or phase([rates[at] for at in sorted(rates)], last),
    )


def _rate(entry: Any) -> tuple[float, float]:
    """(step, learning rate) of a log entry; the step is infinite in one that says no such thing."""
    try:
        at, rate = float(entry["step"]), float(entry["learning_rate"])
    except (KeyError, TypeError, ValueError):
        return math.inf, 0.0
    return (at, rate) if math.isfinite(rate) else (math.inf, 0.0)


def phase(rates: Sequence[float], last: bool = False) -> str:
    """The schedule's phase after these learning rates; "" where fewer than two are known.

    `last` says that the training ended here.
    """
    if len(rates) < 2:
        return ""
    before, now, peak = rates[-2], rates[-1], max(rates)
    if now > before:
        return "warmup"
    if now == peak:
        return "constant"
    return "annealed" if now <= ANNEALED_SHARE * peak or (last and now < before) else "decay"


def _written_phase(state: dict[str, Any]) -> str:
    written = state.get("schedule_phase", "")
    return written if written in PHASES else ""


def _tokens(counts: dict[str, int], step: int, folder: Path) -> tuple[int | None, Source, str]:
    seen, flos = counts["num_input_tokens_seen"], counts["total_flos"]
    if seen > 0:
        return seen, "explicit", "num_input_tokens_seen of trainer_state.json"
    if step == 0:
        return 0, "derived", "before the first step"
    if flos > 0:
        try:
            n_hf = count_parameters(folder).hf_non_embedding
        except PtqEvalError:
            return None, "unknown", ""
        return round(flos / (6 * n_hf)), "derived", f"total_flos / (6 · N_hf), N_hf = {n_hf:,}"
    return None, "unknown", ""
