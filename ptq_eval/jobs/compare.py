"""Two results side by side: `compare("main:results/embedded", "out")` says whether the second is worse.

Each is an output folder of a run, `REVISION:FOLDER` for one that is stored in git, or a folder of lm-eval with samples.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ptq_eval.config.gate import GateConfig
from ptq_eval.errors import EmptyFolderError, NothingToFitError
from ptq_eval.results.gate import lm_eval, sides
from ptq_eval.results.gate.pairs import pair
from ptq_eval.results.gate.revisions import located
from ptq_eval.results.gate.verdict import Comparison, Origin, judge


def compare(base: str | os.PathLike[str], new: str | os.PathLike[str], **options: Any) -> Comparison:
    """The comparison of two results; `options` are the fields of `config.gate.GateConfig`.

    Raises EmptyFolderError, NothingToFitError and RevisionError where there are no results, OutputMismatchError and
    DataFileError where they are damaged, OptionError.
    """
    config = GateConfig.of(options)
    names = os.fspath(base), os.fspath(new)
    with located(names[0]) as old, located(names[1]) as recent:
        kinds = [lm_eval.is_lm_eval(path) for path in (old, recent)]
        if any(kinds):
            return _documents(old, recent, names, kinds, config)
        mine, others = (sides.read(path, name) for path, name in ((old, names[0]), (recent, names[1])))
    for side in (mine, others):
        if not any(cell.measured for cell in side.cells):
            raise NothingToFitError("no quantized measurement to compare", got=side.name)
    found = pair(mine, others, chance=config.judge == "method")
    rule, cells = judge(found, config.tolerance, config.level)
    return Comparison(
        _origin(mine),
        _origin(others),
        rule,
        config.judge,
        cells,
        tuple(found.mismatches),
        tuple(found.missing),
        tuple(found.added),
    )


def _origin(side: sides.Side) -> Origin:
    versions: dict[str, str] = {}
    for cell in side.cells:
        if cell.row["quantizer_version"]:
            versions[cell.row["quantizer"]] = cell.row["quantizer_version"]
    return Origin(side.name, side.version, versions, side.damaged, side.windows)


def _documents(old: Path, new: Path, names: tuple[str, str], kinds: list[bool], config: GateConfig) -> Comparison:
    if not all(kinds):
        path, name = (old, names[0]) if not kinds[0] else (new, names[1])
        if not path.exists():
            raise EmptyFolderError("there is no such folder of results", got=name)
        other = names[1] if not kinds[0] else names[0]
        raise NothingToFitError(
            "one of the two is of lm-eval, the other is not",
            got=f"{name} beside {other}",
            remedy="compare two of a kind",
        )
    mine, others = lm_eval.read(old, names[0]), lm_eval.read(new, names[1])
    if not mine.cells:
        raise NothingToFitError("no metric has a value per document", got=names[0])
    found = lm_eval.pair(mine, others)
    rule, cells = judge(found, config.tolerance, config.level)
    return Comparison(
        Origin(names[0], mine.version),
        Origin(names[1], others.version),
        rule,
        "model",
        cells,
        tuple(found.mismatches),
        tuple(found.missing),
        tuple(found.added),
        documents=True,
        skipped=tuple(sorted(mine.skipped | others.skipped)),
    )
