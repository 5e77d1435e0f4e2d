"""Options, each declared once: a dataclass field that carries its default, kind, bounds, choices, help and flag.

From that one declaration come the check of a value, the flag of the command line with its help, and the message for a
wrong value, so that they cannot disagree.  A value may be written as on the command line ("2,3,4", "8GB", "all") or be
a Python object; one function reads both, and everything it does not understand is a PtqEvalError.

`quantizers.base` does the same for the options of a quantizer, on a smaller scale: that package imports none of this.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, ClassVar, TypeVar

from ptq_eval import units
from ptq_eval.errors import OptionError, PtqEvalError, UnitsError, did_you_mean

_Self = TypeVar("_Self", bound="Options")


@dataclass(frozen=True)
class Kind:
    """How a value is read, as `read(value, name=…, error=…)`, what the help calls it, and how it is written again."""

    read: Callable[..., Any]
    metavar: str
    write: Callable[[Any], str] | None = None


def _text(value: Any, *, name: str, error: type[PtqEvalError]) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise error(f"{name} is not text", got=repr(value))
    return str(os.fspath(value))


def _switch(value: Any, *, name: str, error: type[PtqEvalError]) -> bool:
    found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise error(f"{name} is neither true nor false", got=repr(value), allowed="true, false")
    return found


COUNT = Kind(units.read, "N")
BITS = Kind(partial(units.read, unit=units.BITS), "B")
SIZE = Kind(partial(units.read, unit=units.BYTES), "BYTES")
NUMBER = Kind(units.read_number, "X")
TEXT = Kind(_text, "TEXT")
SWITCH = Kind(_switch, "")
_KINDS = {bool: SWITCH, int: COUNT, float: NUMBER, str: TEXT}


MAX_COUNT = 2**63 - 1
"""What a whole number may be at most, to be stored in 64 bits."""


@dataclass(frozen=True)
class Plausible:
    """The plausible range of a count; outside it, the user meant another unit: 7 for 7B.

    `suffix` is the unit that a smaller count was probably meant in, `mistaken` its name; without a suffix the
    remedy is the example.  `zero` allows 0 too.
    """

    least: float
    most: float
    suffix: str
    mistaken: str
    example: str
    zero: bool = False

    def require(self, found: float, value: Any, name: str, error: type[PtqEvalError]) -> None:
        """Raises UnitsError, or `error` unless that is an OptionError."""
        if self.least <= found <= self.most or (self.zero and found == 0):
            return
        error = UnitsError if issubclass(error, OptionError) else error
        allowed = f"{self.least:g} to {self.most:g}" + ", or 0" * self.zero
        if found > self.most:
            raise error(f"{name} is too large", got=value, allowed=allowed, remedy=f"such as {self.example}")
        what, meant = f"{name} looks like a number of {self.mistaken}", f"{found:g}{self.suffix}"
        remedy = f"did you mean {meant}?" if found > 0 and self.suffix else f"such as {self.example}"
        raise error(what, got=value, allowed=allowed, remedy=remedy)

    def require_below(self, found: float, name: str) -> None:
        """Raises UnitsError for a count that was computed and is too large."""
        if found > self.most:
            raise UnitsError(f"{name} is too large", got=f"{found:.3g}", allowed=f"at most {self.most:g}")


PARAMS = Plausible(units.MIN_COUNT, 1e16, "B", "millions or billions", "1B")
TOKENS = Plausible(units.MIN_COUNT, 1e18, "B", "billions", "20B", zero=True)
TOKENS_PER_STEP = Plausible(32, 1e12, "M", "thousands or millions", "2M")
MEMORY = Plausible(1e3, 1e18, "GB", "gigabytes", "8GB")


@dataclass(frozen=True)
class Option:
    """What is known of one option; made by `option`, found by `declared`."""

    default: Any
    help: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    many: bool = False
    by_step: bool = False
    repeated: bool = False
    files: bool = False
    plausible: Plausible | None = None
    flag: str | None = None
    off: str = ""
    metavar: str = ""
    unset: str = ""
    shown: str = ""
    error: type[PtqEvalError] = OptionError
    name: str = ""

    def read(self, value: Any, name: str = "", error: type[PtqEvalError] | None = None) -> Any:
        """`value` as this option keeps it.  Raises the option's error, or `error`, with a line about `name`."""
        name, error = name or self.flag or self.name, error or self.error
        if value is None and (self.default is None or None in self.words.values()):
            return None
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        if self.by_step and isinstance(value, Mapping):
            steps = {step: COUNT.read(step, name=f"a step of {name}", error=error) for step in value}
            if twice := [step for step, n in Counter(steps.values()).items() if n > 1]:
                raise error(f"{name} has two values for one step", got=twice[0], remedy="keep one of the two")
            return {steps[step]: self._one(item, f"{name} of step {step}", error) for step, item in value.items()}
        if self.many:
            items = _items(value, self.files)
            if isinstance(value, str) and "" in items:
                raise error(
                    f"an entry of {name} is empty", got=repr(value), remedy="write one value between two commas"
                )
            return tuple(self._one(item, f"an entry of {name}", error) for item in items)
        return self._one(value, name, error)

    def _one(self, value: Any, name: str, error: type[PtqEvalError]) -> Any:
        try:
            found = self.kind.read(value, name=name, error=error)
        except error as problem:
            limits = self.limits()
            form = problem.allowed if self.plausible or not limits else ""
            allowed = self._allowed(", ".join(self.choices or filter(None, (limits, form))))
            raise error(problem.what, got=problem.got, allowed=allowed, remedy=problem.remedy) from None
        if self.choices and found not in self.choices:
            raise error(
                f"{name} has an unknown value",
                got=repr(found),
                allowed=", ".join(self.choices),
                remedy=did_you_mean(found, self.choices),
            )
        small = (self.low is not None and found < self.low) or (self.above is not None and found <= self.above)
        large = (self.high is not None and found > self.high) or (self.below is not None and found >= self.below)
        if small or large:
            raise error(
                f"{name} is too {'small' if small else 'large'}", got=value, allowed=self._allowed(self.limits())
            )
        if self.plausible is not None:
            self.plausible.require(found, value, name, error)
        elif isinstance(found, int) and found > MAX_COUNT:
            raise error(f"{name} is too large", got=value, allowed=f"at most {MAX_COUNT:.2g}")
        return found

    def _allowed(self, values: str) -> str:
        """`values` and the words that are allowed beside them."""
        return "; or ".join(filter(None, [values, ", ".join(self.words)]))

    def limits(self) -> str:
        """The bounds in words; empty if there are none."""
        if self.low is not None and self.high is not None:
            return f"{_bound(self.low)} to {_bound(self.high)}"
        ends = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return ", ".join(f"{word} {_bound(end)}" for word, end in ends.items() if end is not None)

    def written(self, value: Any) -> str:
        """A value as it would be given on the command line; `unset` for None without a word of its own."""
        for word, meant in self.words.items():
            if value == meant:
                return word
        if value in (None, (), {}):
            return self.unset
        if self.kind.write is not None:
            return self.kind.write(value)
        if self.many:
            return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        return self.shown or (f"{value:g}" if isinstance(value, float) else str(value))

    def arguments(self, value: Any) -> list[str]:
        """A value that `read` has returned, as arguments of the command line; nothing where only the default can be."""
        if self.kind is SWITCH:
            return [self.flag or ""] if value else [self.off] * bool(self.off)
        if isinstance(value, Mapping) and self.kind.write is None:
            pairs = [(key, own) for key, options in value.items() for own in options.items()]
            return [part for key, (name, own) in pairs for part in (self.flag or "", f"{key}.{name}={own}")]
        text = self.written(value)
        return [self.flag or "", text] if text != self.unset else []


def _bound(end: float) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"


def option(default: Any, help: str, kind: Kind | None = None, **more: Any) -> Any:
    """A dataclass field that is an option; the kind follows from a default that is a bool, int, float or str.

    low, high, above, below: bounds, the last two exclusive.  choices: the values allowed.  words: words for particular
    values, such as {"all": None}.  many: several, written with commas.  by_step: also a mapping from steps.  repeated:
    the flag may be given several times.  files: names of files, which may hold commas.  plausible: the range of a count
    beyond which it was written in another unit.  flag: another flag than --name, or "" for none; off: the flag for
    False.  unset: what None means, for the help; shown: the default as the help writes it.  error: what a wrong value
    raises.
    """
    spec = Option(default, help, kind or _KINDS[type(default)], **more)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"option": spec})
    return field(default=default, metadata={"option": spec})


class Options:
    """Base of frozen dataclasses whose fields are options: every one is read when an object is made."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        for name, spec in declared(type(self)).items():
            object.__setattr__(self, name, spec.read(getattr(self, name)))

    @classmethod
    def of(cls: type[_Self], values: Mapping[str, Any], also: Iterable[str] = ()) -> _Self:
        """The object of named values; an unknown name raises OptionError with the nearest, of `also` too."""
        own = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in own:
                known = [*own, *also]
                remedy = did_you_mean(name, known)
                raise OptionError("unknown option", got=name, allowed=", ".join(known), remedy=remedy)
        return cls(**values)


def plain(text: str) -> Any:
    """A bool or a number that is written as text; other text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = units.read_number(text, units.COUNT)
    except OptionError:
        return text
    return int(number) if number.is_integer() else number


def once(found: Iterable[tuple[str, Any]], name: str, error: type[PtqEvalError]) -> dict[str, Any]:
    """The mapping of these pairs.  Raises `error` for a key that occurs twice, whose last value would win silently."""
    pairs = list(found)
    keys = [key for key, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        got = " and ".join(str(value) for key, value in pairs if key == twice)
        raise error(f"{name} sets {twice} twice", got=got, remedy="keep one of the two")
    return dict(pairs)


@cache
def declared(cls: type) -> dict[str, Option]:
    """The options of a dataclass by name, in their order."""
    found = {spec.name: spec.metadata["option"] for spec in fields(cls) if "option" in spec.metadata}
    flags = {n: f"--{n.replace('_', '-')}" if o.flag is None else o.flag for n, o in found.items()}
    return {name: replace(spec, name=name, flag=flags[name]) for name, spec in found.items()}


def _items(value: Any, files: bool = False) -> list[Any]:
    """The entries of a list: of text between commas, of any collection, or one value alone.

    Of names of `files`, the longest that exists is taken first: a name may hold commas.
    """
    if isinstance(value, str):
        parts, found = value.split(",") if value.strip() else [], []
        while parts:
            ends = range(len(parts), 1, -1) if files else ()
            end = next((end for end in ends if os.path.exists(",".join(parts[:end]).strip().partition("#")[0])), 1)
            found.append(",".join(parts[:end]).strip())
            parts = parts[end:]
        return found
    return [*value] if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)) else [value]
