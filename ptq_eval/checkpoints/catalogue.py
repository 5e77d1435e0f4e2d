"""What `ptq-eval suites` shows: the table of suites, and the checkpoints of one model with what they take to fetch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptq_eval import units
from ptq_eval.checkpoints import remote
from ptq_eval.checkpoints.base import read_label
from ptq_eval.checkpoints.hub import model_of
from ptq_eval.checkpoints.suite_rules import Status, Suite
from ptq_eval.checkpoints.suites import SUITES
from ptq_eval.records import Checkpoint

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?[mb])(?![a-z])", re.IGNORECASE)
_RULES = {
    Status.VERIFIED: "step × batch",
    Status.DERIVED: "step × batch",
    Status.LABEL: "in the label",
    Status.ASK: "asked for",
}


@dataclass(frozen=True)
class Entry:
    """A suite as it is listed.

    model: the smallest model that is known by name.  sizes: nominal numbers of parameters, ascending.  tokens: D of the
    first and of the last checkpoint, None where it is not known.  rule: where D comes from.
    """

    suite: Suite
    model: str
    sizes: tuple[int, ...]
    tokens: tuple[int | None, int | None]

    @property
    def tokens_per_param(self) -> tuple[float | None, float | None]:
        """The last D/N of the largest and of the smallest model, by their nominal sizes."""
        last = self.tokens[1]
        return (last / self.sizes[-1], last / self.sizes[0]) if last and self.sizes else (None, None)

    @property
    def rule(self) -> str:
        """How D follows from a revision's name."""
        return "in config.json" if self.suite.path else _RULES[self.suite.status]

    @property
    def command(self) -> str:
        """The one command that measures the smallest model of the suite."""
        return f"ptq-eval run suite:{self.model} --checkpoints 8"

    def cells(self) -> tuple[str, str, str]:
        """Sizes, D and the last D/N as a table shows them: both ends, or what is known of them."""
        sizes = [units.write(size) for size in self.sizes[:: max(1, len(self.sizes) - 1)]]
        tokens = [units.write(count) if count is not None else "?" for count in self.tokens]
        ratios = [f"{ratio:,.0f}" for ratio in self.tokens_per_param if ratio is not None]
        found = [" to ".join(dict.fromkeys(ends)) or "?" for ends in (sizes, tokens, ratios)]
        return found[0], found[1], found[2]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "suite": self.suite.name,
            "repositories": list(self.suite.known),
            "sizes": list(self.sizes),
            "tokens": list(self.tokens),
            "last_tokens_per_param": list(self.tokens_per_param),
            "rule": self.rule,
            "status": self.suite.status.value,
            "schedule": self.suite.schedule,
            "source": self.suite.source,
        }


def entries() -> list[Entry]:
    """Every suite, in the order of the table."""
    return [_entry(suite) for suite in SUITES]


def nominal_size(repository: str) -> int | None:
    """The number of parameters that the name of a repository states; None where it states none."""
    found = _SIZE.search(repository.rpartition("/")[2])
    return units.read(found[1]) if found else None


def _entry(suite: Suite) -> Entry:
    sized = sorted((size, repository) for repository in suite.known if (size := nominal_size(repository)))
    smallest = sized[0][0] if sized else None
    first = next(r for r in suite.known if smallest is None or nominal_size(r) == smallest)
    tokens = tuple(_tokens(first, label) for label in suite.span)
    return Entry(suite, first.rpartition("/")[2], tuple(dict.fromkeys(s for s, _ in sized)), (tokens[0], tokens[1]))


def _tokens(repository: str, label: str) -> int | None:
    position = read_label(repository, label) if label else None
    return position.tokens if position else None


@dataclass(frozen=True)
class Download:
    """What the files of checkpoints take to fetch, in bytes: of each, None where not known, and of all together.

    Files that several checkpoints share, such as their tokenizer, are fetched once.
    """

    each: tuple[int | None, ...]
    total: int | None


def download(checkpoints: Sequence[Checkpoint]) -> Download:
    """The sizes of checkpoints on the hub, whether they are in the cache already or not.  Raises HubError."""
    found = [remote.blobs(model_of(c), c.commit or remote.commit_of(model_of(c), c.revision)) for c in checkpoints]
    each = tuple(None if own is None else sum(own.values()) for own in found)
    together = {blob: size for own in found for blob, size in (own or {}).items()}
    return Download(each, None if None in each else sum(together.values()))


def rows_of(checkpoints: Sequence[Checkpoint], sizes: Download | None) -> list[dict[str, Any]]:
    """One row of plain values per checkpoint; `bytes` is None where it was not asked for or is not known."""
    rows: list[dict[str, Any]] = []
    for place, checkpoint in enumerate(checkpoints):
        size = nominal_size(model_of(checkpoint))
        rows.append(
            {
                "run": checkpoint.run,
                "revision": checkpoint.revision,
                "step": checkpoint.step,
                "tokens": checkpoint.tokens,
                "tokens_note": checkpoint.tokens_note,
                "nominal_tokens_per_param": checkpoint.tokens / size if size and checkpoint.tokens else None,
                "bytes": sizes.each[place] if sizes is not None else None,
            }
        )
    return rows
