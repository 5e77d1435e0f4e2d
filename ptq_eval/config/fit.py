"""What a fit to a table can be asked: the options of `ptq-eval fit`, each declared once (see `options`).

This file imports none of the laws, so that help is printed at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptq_eval.config.options import NUMBER, TEXT, Kind, Options, declared, once, option, plain
from ptq_eval.config.run import MAX_BOOTSTRAP
from ptq_eval.errors import OptionError, PtqEvalError
from ptq_eval.records import BITS_AXES, BitsAxis
from ptq_eval.units import COUNT, read_number

LOSSES = ("huber", "squared", "lad", "log-huber", "log-squared", "log-lad", "least-squares")
ONE_LAW = ("law", "formula", "per_category", "intervals", "fixed", "tied", "bounds", "start", "law_options")
"""Options of a fit that a comparison of laws lacks."""
_ON_AXIS = {"effective": "effective_bits", "gaussian": "-0.5*log2(gaussian_mse)"}
TABLE = ("columns", "where", "separator", "decimal", "comment")
"""Options that say how a table is read."""
_COMMA = re.compile(r",(?![^\[]*\])")
"""A comma that is not within brackets, which belong to a name: eff_N[a,b]."""
INTERVALS = ("bootstrap", "profile", "none")


def _pairs(one: Callable[[str, Any, type[PtqEvalError]], Any], example: str, together: type) -> Callable[..., Any]:
    """How `NAME=VALUE` is read: several texts, each perhaps with several joined by commas, or pairs, or a mapping."""

    def read(value: Any, *, name: str, error: type[PtqEvalError]) -> Any:
        if isinstance(value, Mapping):
            value = list(value.items())
        found = []
        for item in [value] if isinstance(value, str) else value or ():
            texts = [part for part in _COMMA.split(item) if part.strip()] if isinstance(item, str) else [item]
            for text in texts:
                pair = _split(text) if isinstance(text, str) else text
                wrong = error(f"{name} is not a pair", got=text, remedy=f"{name} {example}")
                if not isinstance(pair, Sequence) or len(pair) != 2 or not all(str(part).strip() for part in pair):
                    raise wrong
                found.append((str(pair[0]).strip(), one(name, pair[1], error)))
        return once(found, name, error) if together is dict else together(found)

    return read


def _split(text: str) -> tuple[str, str]:
    """NAME and VALUE; an equals sign within brackets belongs to the name."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "=" and depth <= 0:
            return text[:place].strip(), text[place + 1 :].strip()
    return text.strip(), ""


def _value(name: str, value: Any, error: type[PtqEvalError]) -> float:
    return read_number(value, COUNT, name=f"the value of {name}", error=error)


def _name(name: str, value: Any, error: type[PtqEvalError]) -> str:
    return str(value).strip()


def _ends(name: str, value: Any, error: type[PtqEvalError]) -> tuple[float, float]:
    ends = value.split(":") if isinstance(value, str) else value
    if not isinstance(ends, Sequence) or len(ends) != 2:
        raise error(f"{name} has not two ends", got=repr(value), remedy=f"{name} alpha=0.1:0.9")
    low, high = (read_number(end, COUNT, name=f"an end of {name}", error=error) for end in ends)
    return low, high


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """`["offsets=false", "parts=weights+kv"]` as a law's options: true, false, numbers, words joined by `+`.

    Raises OptionError.
    """
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise OptionError("a law's option is not NAME=VALUE", got=repr(text), remedy="--law-option offsets=false")
        found.append((name.strip(), _plain(name.strip(), value.strip())))
    return once(found, "--law-option", OptionError)


def _plain(name: str, text: str) -> Any:
    return tuple(text.split("+")) if name == "parts" or "+" in text else plain(text)


def _law_options(value: Any, *, name: str, error: type[PtqEvalError]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return parse_options([value] if isinstance(value, str) else value or ())


def _columns(value: Any, *, name: str, error: type[PtqEvalError]) -> str | Mapping[str, Any]:
    if not isinstance(value, (str, Mapping)):
        raise error(f"{name} is neither text nor a mapping", got=repr(value), remedy=f"{name} N=params,D=tokens")
    return value


def _per_category(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, str]:
    """The column of each variable; one column alone is N."""
    if isinstance(value, Mapping):
        value = [f"{variable}={column}" for variable, column in value.items()]
    found: dict[str, str] = {}
    for text in [value] if isinstance(value, str) else value or ():
        for part in str(text).split(","):
            variable, equals, column = (piece.strip() for piece in part.partition("="))
            variable, column = (variable, column) if equals else ("N", variable)
            if not variable or not column or variable in found:
                raise error(f"{name} is not a column, or VARIABLE=COLUMN", got=text, remedy=f"{name} format")
            found[variable] = column
    return found


_VALUES = Kind(_pairs(_value, "gamma_N=0.34", dict), "NAME=X")
_TIES = Kind(_pairs(_name, "alpha=beta", tuple), "NAME=NAME")
_BOUNDS = Kind(_pairs(_ends, "alpha=0.1:0.9", dict), "NAME=LOW:HIGH")


@dataclass(frozen=True)
class FitConfig(Options):
    """The options of a fit to a table; of a comparison those that say which rows, columns and losses.

    Raises OptionError.
    """

    laws: str = option("", "Rank these laws on the same records.", metavar="LAW,…")
    by: str = option("", "One fit for each value of a column, such as bits or quantizer.", metavar="COLUMN")
    bits_axis: BitsAxis | None = option(
        None,
        "Which bits laws use: the nominal bits of the code (bits), all stored bits including scales (effective), or "
        "the bits of an ideal code with the same error on Gaussian data (gaussian).",
        TEXT,
        choices=BITS_AXES,
        unset="as in the run for records, the column of bits for a table",
    )
    tests: tuple[tuple[str, str], ...] = option(
        (),
        "Test whether two constants are equal; may be repeated.",
        Kind(_pairs(_name, "gamma_D=gamma_N", tuple), "NAME=NAME"),
        flag="--test",
        repeated=True,
    )
    law: str = option("", "The law to fit to FILE; several are fitted separately.", metavar="LAW,…")
    columns: str | Mapping[str, Any] = option(
        "",
        "The column of each variable, an expression of columns, or numbers for names, as in bits={BF16:16,NVFP4:4}.",
        Kind(_columns, "V=EXPR,…"),
    )
    formula: str = option(
        "",
        "A formula to fit instead of a law, as in 'E + A*N**-alpha'; names that are no columns are constants.",
        metavar="EXPR",
    )
    per_category: Mapping[str, str] = option(
        {},
        "One free efficiency of N for each value of a column, such as format; D=COLUMN for one of D; may be repeated.",
        Kind(_per_category, "COLUMN"),
        repeated=True,
    )
    where: str = option("", "Rows of FILE to use: a condition on its columns.", metavar="EXPR")
    separator: str = option("", "What separates cells of a CSV, such as ';'.", metavar="X", unset="the comma")
    decimal: str = option(".", "The decimal sign of a CSV.", choices=(".", ","))
    comment: str = option("", "What comment lines of a CSV begin with, such as '#'.", metavar="X", unset="none")
    loss: str = option("huber", "Loss function of the residuals.", choices=LOSSES)
    intervals: str = option(
        "bootstrap",
        "Intervals by bootstrap over runs, by profile likelihood of independent points, or none.",
        choices=INTERVALS,
    )
    huber_delta: float | None = option(None, "Where Huber's loss turns linear, in its own unit.", NUMBER, above=0)
    fixed: Mapping[str, float] = option({}, "A constant to keep fixed; may be repeated.", _VALUES, repeated=True)
    tied: tuple[tuple[str, str], ...] = option(
        (), "Two constants that are equal; may be repeated.", _TIES, repeated=True
    )
    bounds: Mapping[str, tuple[float, float]] = option(
        {}, "Bounds instead of the law's own; may be repeated.", _BOUNDS, repeated=True
    )
    start: Mapping[str, float] = option({}, "Where to begin the search; may be repeated.", _VALUES, repeated=True)
    law_options: Mapping[str, Any] = option(
        {},
        "An option of the law, such as offsets=false or parts=weights+kv.",
        Kind(_law_options, "NAME=VALUE"),
        flag="--law-option",
        repeated=True,
    )
    seed: int = option(0, "Seed of the bootstrap.", low=0)
    bootstrap: int = option(200, "Resamples behind each interval.", low=0, high=MAX_BOOTSTRAP)
    level: float = option(0.9, "", NUMBER, above=0, below=1, flag="")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in self.bounds.items():
            if not low < high:
                got = f"{name}={low:g}:{high:g}"
                raise OptionError("--bounds are the wrong way round", got=got, remedy=f"{name}=LOW:HIGH, LOW < HIGH")
            start = self.start.get(name, low)
            if not low <= start <= high:
                got = f"{name}={start:g} with --bounds {name}={low:g}:{high:g}"
                raise OptionError("--start is outside --bounds", got=got, remedy="start within the bounds")
        for flag, others in (("--start", self.start), ("--bounds", self.bounds)):
            if both := [name for name in others if name in self.fixed]:
                remedy = f"omit --fixed or {flag} of {both[0]}"
                raise OptionError(f"{flag} has no effect on a constant that is fixed", got=both[0], remedy=remedy)
        for flag, pairs in (("--tied", self.tied), ("--test", self.tests)):
            if same := [one for one, other in pairs if one == other]:
                remedy = f"{flag} NAME=NAME, with two names"
                raise OptionError(f"{flag} compares a constant with itself", got=same[0], remedy=remedy)

    @property
    def axis_column(self) -> dict[str, str]:
        """What P is in a table on the axis asked for, as a part of the mapping of columns."""
        return {"P": _ON_AXIS[self.bits_axis]} if self.bits_axis in _ON_AXIS else {}

    def changed(self, *names: str) -> list[str]:
        """The flags of those options that are not at their default."""
        plain, specs = FitConfig(), declared(FitConfig)
        return [specs[name].flag or name for name in names if getattr(self, name) != getattr(plain, name)]

    def given(self) -> dict[str, Any]:
        """All options by name."""
        return {name: getattr(self, name) for name in declared(FitConfig)}
