"""Notes on the records of an output folder, one sentence each: what was excluded, superseded or is still missing."""

from __future__ import annotations

from collections.abc import Iterator

from ptq_eval.results.load import Results
from ptq_eval.results.points import Skipped

_REASONS = {
    Skipped.NOT_MEASURED: "status other than ok or partial",
    Skipped.TOKENS_UNKNOWN: "tokens unknown",
    Skipped.PARAMS_UNKNOWN: "parameters unknown",
}


def notes(results: Results) -> list[str]:
    """What a reader must know of the records behind a report, and the warnings of the run that measured them."""
    overlaps = [o["message"] for o in results.run.get("overlap", {}).values() if o["flagged"]]
    own = [*_excluded(results), *_versions(results), *_unmeasured(results)]
    return [*own, *results.run.get("warnings", []), *_conflicts(results), *dict.fromkeys(overlaps)]


def _excluded(results: Results) -> Iterator[str]:
    for why, count in results.excluded.items():
        yield f"{count} row{'s' * (count != 1)} not fitted: {_REASONS[why]}"


def _versions(results: Results) -> Iterator[str]:
    if total := sum(results.superseded.values()):
        pairs = sorted(results.superseded.items())
        which = ", ".join(f"{count} of {name} version {version}" for (name, version), count in pairs)
        yield f"{total} record{'s' * (total != 1)} superseded by a newer version of the quantizer: {which}"
    for name, found in sorted(results.versions.items()):
        if len(found) > 1:
            mixed = f"{name}: the table mixes rows of versions {' and '.join(found)} (column quantizer_version)"
            yield f"{mixed}; repeat the whole command to measure the older ones again"


def _unmeasured(results: Results) -> Iterator[str]:
    missing = results.n_sound - results.n_measured
    if missing > 0:
        yield f"{missing} of {results.n_sound} checkpoints are not measured yet: this report is partial"


def _conflicts(results: Results) -> Iterator[str]:
    for _, other in results.conflicts:
        name = f"{other.trial.checkpoint.name} {other.trial.quantizer} {other.trial.key()}"
        yield f"two records of one trial differ, the first is used: {name}"
