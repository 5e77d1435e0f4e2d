"""Laws by their full and short names, with the options of their constructors.

`kumar` and `ptq` both mean equation 2 of Kumar et al.; every installed law goes by its full name as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from ptq_eval import plugins
from ptq_eval.errors import OptionError, UnknownPluginError
from ptq_eval.laws.base import Law
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES
from ptq_eval.laws.formulas.n_eff import PARTS

ALIASES: Mapping[str, str] = {
    "kumar": "kumar_ptq",
    "ptq": "kumar_ptq",
    "delta_ptq": "kumar_ptq",
    "ratio": "kumar_ptq_ratio",
    "neff": "n_eff",
    "kumar_train": "n_eff",
    "unified_ptq": "unified",
    "hoffmann": "chinchilla",
}
"""The entry point behind each short name."""


def names() -> list[str]:
    """Every name that `make_law` knows, sorted."""
    installed = plugins.names("laws")
    return sorted({*installed, *(short for short, name in ALIASES.items() if name in installed)})


def make_law(name: str, options: Mapping[str, Any] | None = None) -> Law:
    """The law called `name`, with `options` for its constructor.

    Raises UnknownPluginError for an unknown name and OptionError for an option that the law lacks.
    """
    known = names()
    if name not in known:
        raise UnknownPluginError.of("law", name, known)
    cls = plugins.get("laws", ALIASES.get(name, name))
    allowed = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
    wrong = next((option for option in options or {} if option not in allowed), None)
    if wrong is not None:
        raise OptionError(f"the law {name} has no option {wrong!r}", allowed=", ".join(allowed) or "none")
    return cls(**(options or {}))


def law_for(name: str, columns: Iterable[str], options: Mapping[str, Any] | None = None) -> Law:
    """The law called `name` with the parts (weights, activations, kv) whose training precisions are among `columns`.

    For a law of training precision alone, a single column of bits is the weights' (eq. 3 of Kumar et al.).
    """
    known, options = set(columns), dict(options or {})
    law = make_law(name, options)
    if "parts" in options or "parts" not in inspect.signature(type(law)).parameters:
        return law
    trained = {part: f"P_{short}" for part, short in PARTS.items()}
    parts = [part for part, column in trained.items() if known & {column, *COLUMN_ALIASES[column]}]
    if not parts and "P" not in law.columns and known & {"P", *COLUMN_ALIASES["P"]}:
        parts = ["weights"]
    return make_law(name, {**options, "parts": tuple(parts)}) if parts else law
