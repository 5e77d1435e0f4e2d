"""The lines that a watch prints: sentences for people, JSON objects for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ptq_eval.errors import PtqEvalError
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.alerts import Alert
from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.records import FULL_PRECISION, Checkpoint
from ptq_eval.report.common.numbers import OPEN, count, ratio, short
from ptq_eval.report.common.tables import delta_cells
from ptq_eval.report.common.words import plural
from ptq_eval.results.points import is_runtime, rows_of

_ROW = ("quantizer", "bits", "format", "loss_fp", "loss_q", "delta", "delta_se", "noise_floor", "status")
_LOGGED = ("delta", "delta_se", "loss_q")
_ANSWER = ("quantizer", "bits", "verdict_kind", "answer", "verdict")


def measured_rows(checkpoint: Checkpoint, table: pd.DataFrame) -> list[dict[str, Any]]:
    """What was measured of one checkpoint: a JSON object for each quantizer and scheme of weights alone."""
    rows = rows_of(_rows(checkpoint, table), _ROW)
    return [{key: finite_or_none(v) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


def _rows(checkpoint: Checkpoint, table: pd.DataFrame) -> pd.DataFrame:
    step = table["step"].isna() if checkpoint.step is None else table["step"] == checkpoint.step
    rows = table.loc[(table["run"] == checkpoint.run) & step & (table["quantizer"] != FULL_PRECISION)]
    return rows.loc[[not is_runtime(row) for row in rows_of(rows)]]


def answers_of(checkpoint: Checkpoint, fit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of D_crit of the checkpoint's run: a JSON object for each quantizer and bit-width."""
    own = [entry for entry in fit["critical_tokens"] if entry["run"] == checkpoint.run]
    return [{name: entry[name] for name in _ANSWER} for entry in own]


def started_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The object of a checkpoint that is being measured."""
    return {"event": "started", **_place(checkpoint)}


def measured_json(
    checkpoint: Checkpoint, table: pd.DataFrame, fit: Mapping[str, Any], seconds: float, spent: float
) -> dict[str, Any]:
    """The object of a measured checkpoint."""
    return {
        "event": "measured",
        **_place(checkpoint),
        "tokens_per_param": checkpoint.tokens_per_param,
        "seconds": round(seconds, 1),
        "spent": round(spent, 1),
        "rows": measured_rows(checkpoint, table),
        "critical_tokens": answers_of(checkpoint, fit),
    }


def unmeasured_json(checkpoint: Checkpoint, error: PtqEvalError) -> dict[str, Any]:
    """The object of a checkpoint that cannot be measured."""
    return {"event": "unmeasured", **_place(checkpoint), "error": str(error)}


def uncopied_json(folder: Path, error: Exception) -> dict[str, Any]:
    """The object of a checkpoint that a monitor cannot copy."""
    return {"event": "unmeasured", "location": str(folder), "error": f"it cannot be copied: {error}"}


def ended_json(code: int, log: Path) -> dict[str, Any]:
    """The object of a watch, started by a monitor, that has failed with an exit code; its last lines are in `log`."""
    return {"event": "ended", "code": code, "error": f"measuring ended with exit code {code}, see {log}"}


def alert_json(alert: Alert) -> dict[str, Any]:
    """The object of an alert."""
    return {"event": "alert", **alert.to_dict(), "text": alert_text(alert)}


def _place(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in ("run", "step", "tokens", "params", "location")}


def measured_text(checkpoint: Checkpoint, table: pd.DataFrame, seconds: float) -> str:
    """One line with the deltas of a checkpoint."""
    rows = _rows(checkpoint, table)
    written = zip(rows_of(rows), delta_cells(rows))
    cells = [f"{row['quantizer']} {_scheme(row)} {cell}" for row, cell in written]
    return f"{_name(checkpoint)}: δ {', '.join(cells)}; {seconds:.0f} s"


def unmeasured_text(checkpoint: Checkpoint, error: PtqEvalError) -> str:
    """One line with the reason."""
    return f"{checkpoint.name}: not measured: {error}"


def waiting_text(checkpoints: int, incomplete: int, beyond_budget: int) -> str:
    """What a watch waits for."""
    notes = [f"{incomplete} incomplete"] * bool(incomplete) + [f"{beyond_budget} beyond the budget"] * bool(
        beyond_budget
    )
    return f"waiting; {plural(checkpoints, 'checkpoint')} known" + "".join(f", {note}" for note in notes)


def alert_text(alert: Alert) -> str:
    """The sentence of an alert."""
    where = f"{alert.run}, {alert.quantizer} at {short(alert.bits)} bits"
    if alert.kind is VerdictKind.OBSERVED:
        return f"{where}: more data already harms; the loss after quantization was least at D = {_tokens(alert)}"
    if not math.isfinite(alert.low) or alert.low < alert.tokens:
        begins = f"the present D, {count(alert.tokens)}, is already inside its {short(100 * alert.level)} % interval"
    else:
        begins = f"its {short(100 * alert.level)} % interval begins at D = {count(alert.low)}"
    return f"{where}: more data will soon harm: D_crit is forecast at {_tokens(alert)} ({begins}; {_end(alert)})"


def _end(alert: Alert) -> str:
    return f"it ends at {count(alert.high)}" if math.isfinite(alert.high) else OPEN


def _tokens(alert: Alert) -> str:
    share = alert.value / alert.params if alert.params else math.nan
    return f"{count(alert.value)} tokens" + (f" (D/N = {ratio(share)})" if math.isfinite(share) else "")


def _name(checkpoint: Checkpoint) -> str:
    share = checkpoint.tokens_per_param
    return checkpoint.name + (f" (D/N = {ratio(share)})" if share is not None else "")


def warning_text(event: Mapping[str, Any]) -> str:
    """The warning of an event that keeps a checkpoint from being measured."""
    return " ".join(filter(None, ("ptq-eval:", event.get("location"), event["error"])))


def left_text(copy: str, process: int, out: Path) -> str:
    """The warning of a monitor that ends before the last checkpoint is measured."""
    return (
        f"ptq-eval: training has ended, and measuring {copy} goes on in process {process}; results will be in {out} "
        "(wait=math.inf waits for them)"
    )


def raised_text(function: str, error: Exception) -> str:
    """The warning of a user's function that has raised an error."""
    return f"ptq-eval: {function} raised {error!r}, and is not called again"


def metrics(measured: Mapping[str, Any], prefix: str = "ptq/") -> dict[str, float]:
    """Numbers by name for a logger, from `measured_json`: D/N, δ and loss of each method, what is known of D_crit."""
    found: dict[str, float] = {}
    if measured["tokens_per_param"] is not None:
        found[f"{prefix}tokens_per_param"] = measured["tokens_per_param"]
    for row in measured["rows"]:
        method = f"{row['quantizer']}_{_scheme(row)}"
        found |= {f"{prefix}{what}/{method}": row[what] for what in _LOGGED if row[what] is not None}
    for entry in measured["critical_tokens"]:
        method = f"{entry['quantizer']}_{entry['bits']:g}bit"
        ends = {name: value for name, value in (entry["answer"] or {}).items() if name != "level" and value is not None}
        found |= {f"{prefix}critical_tokens_{name}/{method}": value for name, value in ends.items()}
    return found


def _scheme(row: Mapping[str, Any]) -> str:
    named = row["format"]
    return named if isinstance(named, str) and named not in ("", "int") else f"{row['bits']:g}bit"
