"""Laws of three precisions: which form describes weights, activations and cache together, and its D_crit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptq_eval.laws.base import FitKind
from ptq_eval.laws.fit.precisions import SUM
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.numbers import MISSING, estimate, number, ratio, short, tokens_estimate
from ptq_eval.report.common.words import interval_text, poor_text, reason_text, scatter_text, status_text

FORMS = {"n_eff_ptq": "N_eff", "product_ptq": "product", SUM: "sum"}
"""The forms as the report calls them."""
_HEADER = ("form", "constants [interval]", "scatter", "R², weighted", "held-out error", "ΔAICc", "status")
_TURNS = ("weights, activations, cache", "D_crit", "D_crit/N")
_WORDS = {"worse": "significantly worse", "indistinguishable": "not distinguishable", "contradictory": "contradictory"}


def name_of(bits: Mapping[str, Any]) -> str:
    """`W4A8KV4`, without the parts in full precision."""
    parts = {"W": "bits", "A": "activation_bits", "KV": "kv_bits"}
    known = {prefix: number(bits.get(name)) for prefix, name in parts.items()}
    return "".join(f"{prefix}{value:g}" for prefix, value in known.items() if value == value)


def text(study: Study, trajectory: str) -> str:
    """The laws of one trajectory in Markdown; "" where none was fitted."""
    found = [entry for entry in study.fit.get("precisions") or () if str(entry["trajectory"]) == trajectory]
    return "".join(_of(study.label_of(entry), entry) for entry in found)


def _of(label: str, entry: Mapping[str, Any]) -> str:
    forms = entry["forms"]
    usable = [form for form in forms if form["status_kind"] != FitKind.NOT_IDENTIFIED]
    written = f"**{tables.cell(label)}, laws of three precisions.** {_ranking(usable)}\n\n"
    written += tables.markdown(_HEADER, [_row(form) for form in forms], left=2)
    if usable:
        written += f"\nIntervals: {interval_text(usable[0])}. Held-out errors are relative, of the largest D.\n"
    if entry.get("poor"):
        written += (
            f"\nThe law describes these deltas poorly ({poor_text(entry['poor'])}): an order of magnitude at best.\n"
        )
    return written + "\n" + _turns(entry)


def _ranking(usable: Sequence[Mapping[str, Any]]) -> str:
    """Which form is ranked first, and whether the others are distinguishable from it."""
    if not usable:
        return "None could be fitted."
    first, *others = usable
    words = f"The {FORMS[first['form']]} form is ranked first"
    said = [f"the {FORMS[one['form']]} form is {_WORDS[one['outcome']]}" for one in others if one.get("outcome")]
    return f"{words}; {' and '.join(said)}." if said else f"{words}."


def _row(form: Mapping[str, Any]) -> list[str]:
    constants = ", ".join(
        f"{name} = {estimate(value, at_bound=name in (form.get('at_bound') or ()))}"
        for name, value in (form.get("parameters") or {}).items()
        if name not in (form.get("fixed") or {})
    )
    behind = number(form.get("delta_aicc"))
    numbers = [short(form.get("r2_weighted")), short(form.get("held_out_error"))]
    numbers.append(f"{behind:.1f}" if behind == behind else MISSING)
    return [FORMS[form["form"]], constants or MISSING, scatter_text(form), *numbers, status_text(form)]


def _turns(entry: Mapping[str, Any]) -> str:
    """D_crit of every combination that has one, and why others have none."""
    N = number(entry["ranges"]["N"][0])
    known = [turn for turn in entry["critical_tokens"] if turn["predicted"]]
    rows = [[name_of(t), tokens_estimate(t["predicted"]), ratio(number(t["predicted"]["value"]) / N)] for t in known]
    written = tables.markdown(_TURNS, rows) + "\n" if rows else ""
    reasons: dict[str, list[str]] = {}
    for turn in entry["critical_tokens"]:
        if not turn["predicted"]:
            reasons.setdefault(reason_text(turn["reason"]), []).append(name_of(turn))
    for reason, names in reasons.items():
        written += f"No D_crit for {', '.join(names)}: {reason}.\n\n"
    return written
