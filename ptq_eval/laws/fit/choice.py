"""Which laws the main job fits to a folder: those that a user names, or its own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Law
from ptq_eval.laws.catalogue import make_law

COLUMNS = {"delta": ("N", "D", "P"), "loss": ("N", "D")}
"""What the records of every folder give to a law, by its response."""
_COMPARE = "ptq-eval fit OUT --laws LAW,… compares any laws"


@dataclass(frozen=True)
class Choice:
    """A law of degradation and one of the full-precision loss; None: the main job chooses by the data."""

    delta: Law | None = None
    loss: Law | None = None


def chosen(names: Sequence[str]) -> Choice:
    """The laws called `names`, at most one of each response; any that is installed and whose columns a folder has.

    Raises UnknownPluginError, and OptionError for laws that cannot serve the main job.
    """
    found: dict[str, Law] = {}
    for name in names:
        law = make_law(name)
        allowed = COLUMNS.get(law.response, ())
        if lacking := [column for column in law.columns if column not in allowed]:
            what = f"--laws: the records of a run lack what the law {name} reads"
            raise OptionError(what, got=", ".join(lacking), allowed=", ".join(allowed), remedy=_COMPARE)
        if law.response == "loss" and not {"B", "beta"} <= {parameter.name for parameter in law.parameters}:
            raise OptionError(f"--laws: the law {name} has no B and beta, which D_crit needs", remedy=_COMPARE)
        if found.setdefault(law.response, law) is not law:
            got = f"{found[law.response].name}, {name}"
            raise OptionError(f"--laws takes one law of {law.response}", got=got, remedy=_COMPARE)
    return Choice(**found)
