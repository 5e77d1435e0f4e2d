"""Until the answers of a plan and the verdicts of a comparison carry values: the sentences that they still hold."""

from __future__ import annotations

from ptq_eval.laws.base import FitResult
from ptq_eval.laws.findings import Finding


def reason(finding: Finding | None) -> str:
    """A reason in words, "" for none."""
    from ptq_eval.report.common.words import reason_text

    return reason_text(finding.to_dict()) if finding else ""


def caution(finding: Finding) -> str:
    """A warning in words."""
    from ptq_eval.report.run.warnings import warning_text

    return warning_text(finding.to_dict())


def coverage(result: FitResult) -> str:
    """What intervals cover, in words."""
    from ptq_eval.report.common.words import coverage_text

    return coverage_text(result.covers.to_dict())


def status(result: FitResult) -> str:
    """A status in words."""
    from ptq_eval.report.common.words import status_text

    return status_text(result.status.to_dict())


def message(result: FitResult) -> str:
    """What is to be said of a fit, in words."""
    from ptq_eval.report.common.words import message_text

    return message_text(result.to_dict())
