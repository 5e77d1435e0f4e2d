"""What `run.json` says of the texts of a run."""

from __future__ import annotations

from typing import Any

from ptq_eval.corpora.overlap import overlap
from ptq_eval.corpora.windows import Windows


def describe_windows(windows: Windows) -> dict[str, Any]:
    """A text's entry in `run.json`: its protocol, digests and notes."""
    return {
        "spec": windows.spec,
        "protocol": windows.protocol,
        "digest": windows.digest,
        "text_digest": windows.text_digest,
        "windows": len(windows.ids),
        "selection": windows.sample.selection,
        "available": windows.total_windows,
        "documents": len(set(windows.sample.documents)) or None,
        "notes": list(windows.notes),
    }


def describe_overlap(calibration: Windows, evaluation: Windows) -> dict[str, Any]:
    """The entry in `run.json` of how much of the evaluation text occurs in the calibration text."""
    found = overlap(calibration, evaluation)
    return {
        "share_of_windows": found.share_of_windows,
        "share_of_ngrams": found.share_of_ngrams,
        "flagged": found.flagged,
        "message": found.message,
    }
