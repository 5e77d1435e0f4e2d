"""Public suites by name: `suite:pythia-70m` is every checkpoint of EleutherAI/pythia-70m on the hub.

The table of suites says whose repository a model is and which of its revisions are checkpoints; the hub says which
revisions there are, or offline its cache.  A name is a repository's, or the only known one that begins with it:
`suite:SmolLM2-135M`.  Names that the table does not list are taken too if they are of a suite's pattern, since new
models appear.
"""

from __future__ import annotations

from pathlib import Path

from ptq_eval.checkpoints.base import CheckpointFormat
from ptq_eval.checkpoints.hub import listed
from ptq_eval.checkpoints.suite_rules import Suite
from ptq_eval.checkpoints.suites import SUITES
from ptq_eval.errors import HubError, NoCheckpointError, did_you_mean
from ptq_eval.records import Checkpoint

_SHOWN = 12
"""Models of a suite that an error names."""


class NamedSuite(CheckpointFormat):
    """`suite:` and the name of a model; its checkpoints are those of `hub:`."""

    name = "suite"
    looks_like = "suite:MODEL"
    scheme = "suite"

    def discover(self, root: Path | str) -> list[Checkpoint]:
        """The revisions of the model that its suite calls checkpoints.

        Raises NoCheckpointError for an unknown name, HubError where the hub cannot be asked.
        """
        suite, repository = resolve(str(root).removeprefix("suite:"))
        return checkpoints_of(suite, repository)


def resolve(name: str) -> tuple[Suite, str]:
    """The suite and the repository of a model's name.  Raises NoCheckpointError, with the nearest known name."""
    short, at, revision = name.strip().rpartition("/")[2].partition("@")
    if at:
        suite, repository = resolve(short)
        what, allowed = "a suite is read by its checkpoints, not by a revision", f"suite:{_model(repository)}"
        remedy = f"for the one revision write hub:{repository}@{revision}"
        raise NoCheckpointError(what, got=repr(name), allowed=allowed, remedy=remedy)
    every = [(suite, repository) for suite in SUITES for repository in suite.known]
    exact = [pair for pair in every if _model(pair[1]).lower() == short.lower()]
    begins = [pair for pair in every if pair[0].has_model(short) and _model(pair[1]).lower().startswith(short.lower())]
    for found in (exact, begins):
        if len(found) == 1:
            return found[0]
    suite = next((suite for suite in SUITES if suite.has_model(short)), None)
    if suite is not None:
        return suite, f"{suite.organisation}/{short}"
    of_suite = next((suite for suite in SUITES if suite.name.lower() == short.lower()), None)
    if of_suite is not None:
        names = [_model(repository) for repository in of_suite.known]
        if len(names) == 1:
            return of_suite, of_suite.known[0]
        allowed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        what = "a suite of several models"
        raise NoCheckpointError(what, got=repr(name), allowed=allowed, remedy=f"name one: suite:{names[0]}")
    near = did_you_mean(short, [*(_model(repository) for _, repository in every), *(suite.name for suite in SUITES)])
    remedy = near or "`ptq-eval suites` lists them; for another repository write hub:ORG/NAME@*"
    raise NoCheckpointError("no suite has a model of this name", got=repr(name), remedy=remedy)


def checkpoints_of(suite: Suite, repository: str) -> list[Checkpoint]:
    """The checkpoints of a suite's repository.  Raises HubError, and NoCheckpointError where it has none."""
    model = _model(repository)
    try:
        found = listed(repository, lambda revision: suite.names(model, revision))
    except HubError as error:
        near = "" if repository in suite.known else did_you_mean(model, map(_model, suite.known))
        raise HubError(error.what, got=error.got, allowed=error.allowed, remedy=near or error.remedy) from error
    if not found:
        what = f"{repository} has no revision that {suite.name} calls a checkpoint"
        raise NoCheckpointError(
            what, allowed=f"as {suite.check.label}", remedy="name revisions: hub:ORG/NAME@{REV,REV}"
        )
    return found


def _model(repository: str) -> str:
    return repository.rpartition("/")[2]
