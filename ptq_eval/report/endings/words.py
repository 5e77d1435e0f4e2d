"""What endings, methods and decisions are called, and the sentences of both pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ptq_eval.records import FULL_PRECISION
from ptq_eval.report.common.data import methods, runtime_name
from ptq_eval.report.common.numbers import MISSING, count, plus_minus, short
from ptq_eval.report.gate.names import scheme
from ptq_eval.results.endings import Decision

BEFORE = "before quantization"
TITLES = {"average": "Averages of the last checkpoints", "probe": "Ways to end the run"}
_REFERENCES = {"average": "the last checkpoint", "probe": "the trunk"}
_DECISIONS = {
    Decision.BETTER: "better", Decision.WORSE: "worse", Decision.UNDECIDED: "undecided", Decision.SAME: "the same",
}  # fmt: skip
_ABOUT = {
    "average": """\
Each average is the mean of the weights of the last checkpoints that were saved, in float32, and is compared with the
last of them alone. Averaging needs no training, so both have seen the same tokens.
""",
    "probe": """\
Each way to end the run is compared with the trunk at the same D: a branch that trains on to a step with the trunk that
trains on to that step in the same text, an average with the checkpoint at which it ends.
""",
}
_ERRORS = """\
Losses are in nats per token, after quantization and, in the rows called *before quantization*, in full precision.
*Difference* is the loss minus that of the reference. Its error is that of the paired differences over the windows
together with what chance does to two roundings. A difference is decided if it is at least twice its error and if p,
adjusted over all differences of this table, is at most {level:g}; otherwise it is undecided. Another seed of the run
is not in the error.
"""


def about(record: Mapping[str, Any]) -> str:
    """What the page compares, and what its errors are."""
    return f"{_ABOUT[record['kind']]}\n{_ERRORS.format(level=record['level'])}"


def reference(record: Mapping[str, Any]) -> str:
    """What everything is compared with."""
    return _REFERENCES[record["kind"]]


def method_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`gptq 3 bits` of each row, no longer than needed to tell its configuration from the others."""
    frame = pd.DataFrame(list(rows))
    return [_method(name, row) for name, row in zip(methods(frame), rows)]


def _method(name: str, row: Mapping[str, Any]) -> str:
    if row["quantizer"] == FULL_PRECISION:
        return BEFORE
    parts = [name, scheme(row) if row["bits"] is not None else "", runtime_name(row)]
    return " ".join(filter(None, parts))


def decision(row: Mapping[str, Any]) -> str:
    """What is known of a row's difference; empty for a reference."""
    found = row.get("decision")
    return _DECISIONS[Decision(found)] if found is not None else ""


def span(row: Mapping[str, Any]) -> str:
    """How the model of a row was made: training beyond the checkpoint, or the checkpoints that are averaged."""
    if row.get("checkpoints", 1) > 1:
        return (
            f"from D = {count(row['first_tokens'])}" if row["first_tokens"] is not None else f"from {row['first_step']}"
        )
    return f"{short(row['steps'])} steps" if row.get("steps") else MISSING


def answer(best: Mapping[str, Any], record: Mapping[str, Any], runner_up: Mapping[str, Any] | None) -> str:
    """How the least loss of a configuration differs from that of the reference.

    `runner_up` is the one with the least loss but for the reference.
    """
    one = best if best.get("decision") is not None else runner_up
    if one is None:
        return "nothing to compare with"
    apart, said = plus_minus(abs(one["difference"]), error(one)), reference(record)
    if one is best:
        verdict = "decided" if one["decision"] == Decision.BETTER else "undecided"
        return f"{apart} below {said}: {verdict}"
    verdict = "decided" if one["decision"] == Decision.WORSE else "undecided"
    return f"the next, {one['ending']}, is {apart} above: {verdict}"


def error(row: Mapping[str, Any]) -> float:
    """The whole error of a row's difference."""
    return (row["error"] ** 2 + row["chance"] ** 2) ** 0.5
