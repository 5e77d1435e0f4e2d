"""What a Hugging Face Trainer's `trainer_state.json` says about a checkpoint.

D is `num_input_tokens_seen` where the Trainer counts tokens (it writes 0 otherwise).  Failing that, the
Trainer's `total_flos` is the sum of 6 · (tokens of a batch) · N_hf, N_hf being
`num_parameters(exclude_embeddings=True)`, which keeps an untied output head; so D = total_flos / (6 N_hf).
The real global batch is not stored, and `step × train_batch_size` would be wrong under accumulation or
several processes, so it is not tried.

What is wrong with a counter shows between the checkpoints of a run, see `growth`.

The schedule's phase is read off the logged learning rates up to the checkpoint, unless the file has a
`schedule_phase` of its own.  A learning rate that fell to a tenth of its peak, or is still falling at the
last step of training, counts as annealed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptq_eval import units
from ptq_eval.checkpoints.growth import FLOS, SEEN
from ptq_eval.errors import PtqEvalError, TrajectoryFileError
from ptq_eval.models.json_files import load_json
from ptq_eval.models.parameters import count_parameters
from ptq_eval.records import Checkpoint, Source

PHASES = ("warmup", "constant", "decay", "annealed", "averaged")
ANNEALED_SHARE = 0.1
"""A learning rate at or below this share of its peak has been annealed (the usual floor of a cosine)."""


def with_trainer_state(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint completed from `folder/trainer_state.json`, or as it was where there is none."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return checkpoint
    try:
        state = load_json(path)
        if not isinstance(state, dict) or "global_step" not in state:
            what = "it has no global_step" if isinstance(state, dict) else "it is not a JSON object"
            return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {what}")
        counts = {name: _count(name, state.get(name) or 0) for name in _COUNTS}
        step = counts["global_step"]
        rates = {at: rate for at, rate in map(_rate, state.get("log_history") or ()) if at <= step}
    except TrajectoryFileError as error:
        return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {error.what}, got {error.got}")
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError) as error:
        return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {error!r}")
    if checkpoint.step is not None and checkpoint.step != step:
        checkpoint = checkpoint.with_problem(
            "step_disagrees",
            f"the folder says step {checkpoint.step}, {path.name} says {step}",
            fatal=True,
        )
    tokens, counter, note = _tokens(counts, step, folder)
    if tokens is not None and (counter == SEEN or checkpoint.tokens is None):
        source: Source = "explicit" if counter == SEEN else "derived"
        checkpoint = replace(checkpoint, tokens=tokens, tokens_source=source, tokens_note=note, tokens_counter=counter)
    last = step > 0 and step == counts["max_steps"]
    return replace(
        checkpoint,
        step=step if checkpoint.step is None else checkpoint.step,
        epochs=_epochs(state.get("epoch")),
        learning_rate=rates[max(rates)] if rates else None,
        schedule_phase=_written_phase(state) or phase([rates[at] for at in sorted(rates)], last),
    )


_COUNTS = ("global_step", "num_input_tokens_seen", "max_steps", "total_flos")


def _count(name: str, value: Any) -> int:
    """A whole number, also where another tool wrote it as 200704.0 or "200704"; FLOPs are rounded.

    Raises TrajectoryFileError, also for a negative one: a counter that overflowed.  Negative `max_steps` set no limit.
    """
    if name == FLOS:
        found = round(units.read_number(value, name=name, error=TrajectoryFileError))
    else:
        found = units.read(value, name=name, error=TrajectoryFileError)
    if found < 0 and name != "max_steps":
        raise TrajectoryFileError(f"{name} is negative", got=value)
    return found


def _epochs(value: Any) -> float | None:
    """The Trainer's count of epochs; None for what is no count, since nothing but a remark rests on it."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if known else None


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


def _tokens(counts: dict[str, int], step: int, folder: Path) -> tuple[int | None, str, str]:
    """(D, the counter it comes from, a note); no D where nothing says it."""
    if counts[SEEN] > 0:
        return counts[SEEN], SEEN, f"{SEEN} of trainer_state.json"
    if step == 0:
        return 0, "", "before the first step"
    if counts[FLOS] > 0:
        try:
            n_hf = count_parameters(folder).hf_non_embedding
        except PtqEvalError:
            return None, "", ""
        return round(counts[FLOS] / (6 * n_hf)), FLOS, f"{FLOS} / (6 · N_hf), N_hf = {n_hf:,}"
    return None, "", ""
