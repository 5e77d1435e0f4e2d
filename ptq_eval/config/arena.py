"""What `ptq-eval arena` can be asked, and the file that says what its tables are.

The file (TOML) has a section for each table by name: title, source, licence, and how it is read: columns, where, by.

    [hoffmann]
    title = "Training runs read off a figure of Hoffmann et al. 2022"
    source = "epoch-research/analyzing-chinchilla"
    licence = "facts; no licence file"
    columns = "N=`Model Size`,D=`Training FLOP`/(6*N)"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ptq_eval.config.options import TEXT, Options, option
from ptq_eval.errors import DataFileError, OptionError, did_you_mean

_FILLED = 'title = "…", columns = "N=params,D=tokens", where = "…", by = "quantizer"'


@dataclass(frozen=True)
class Source:
    """A table: its name and place, what is to be said of it, and how it is read; `by` are columns, with commas."""

    name: str
    path: str
    title: str = ""
    source: str = ""
    licence: str = ""
    columns: str = ""
    where: str = ""
    by: str = ""

    @property
    def grouped_by(self) -> tuple[str, ...]:
        """The columns of which every combination of values is fitted by itself."""
        return tuple(name.strip() for name in self.by.split(",") if name.strip())

    @property
    def file(self) -> str:
        """The path where it is below the current folder, else the name of the file alone."""
        path = Path(self.path)
        return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


@dataclass(frozen=True)
class ArenaConfig(Options):
    """How laws are scored.  Raises OptionError."""

    laws: str = option("", "Laws instead of every one in the catalogue.", metavar="LAW,…", unset="all")
    tables: str | None = option(None, "A TOML file with a section for each TABLE by name.", TEXT, metavar="FILE")
    by: str = option("", "Columns of a table; each combination of values is fitted by itself.", metavar="COLUMN,…")
    most_points: int = option(1000, "Points of one ranking; of more, whole checkpoints are drawn.", low=20)
    seed: int = option(0, "Seed of that draw and of the search for each fit.", low=0)


def sources(tables: Iterable[str], described: str | None, **usual: str) -> list[Source]:
    """The tables written as PATH or NAME=PATH, with their descriptions; `usual` fills what a description lacks.

    Raises OptionError and DataFileError.
    """
    known = descriptions(described) if described else {}
    found: dict[str, Source] = {}
    for text in map(str, tables):
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = _stem(text), text
        if not name.strip() or not path.strip():
            raise OptionError("a table is neither PATH nor NAME=PATH", got=repr(text), remedy="runs=runs.csv")
        if name in found:
            remedy = f"name one of them: other={path}"
            raise OptionError("two tables have one name", got=name, remedy=remedy)
        found[name] = replace(Source(name, path, **usual), **known.get(name, {}))
    if unused := [name for name in known if name not in found]:
        remedy = did_you_mean(unused[0], found) or f"{unused[0]}=FILE among the tables"
        raise OptionError(
            f"{Path(str(described)).name} describes a table that is not given", got=unused[0], remedy=remedy
        )
    return list(found.values())


def descriptions(path: str) -> Mapping[str, Mapping[str, str]]:
    """The sections of a file of descriptions.  Raises DataFileError and OptionError."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        got = getattr(error, "strerror", None) or error
        raise DataFileError(f"{Path(path).name} cannot be read as TOML", got=got, remedy=f"[NAME] {_FILLED}") from error
    allowed = [one.name for one in fields(Source) if one.name not in ("name", "path")]
    for name, section in content.items():
        if not isinstance(section, dict):
            raise OptionError(f"{Path(path).name}: a table is no section", got=name, remedy=f"[{name}] {_FILLED}")
        for key, value in section.items():
            if key not in allowed or not isinstance(value, str):
                what = "is no text" if key in allowed else "is not known"
                remedy = did_you_mean(key, allowed)
                raise OptionError(
                    f"[{name}] {key} {what}", got=_short(value), allowed=", ".join(allowed), remedy=remedy
                )
    return content


def _stem(path: str) -> str:
    """The name of a folder, or of a file without its endings."""
    return Path(path).name.split(".")[0] or Path(path).resolve().name


def _short(value: Any) -> str:
    return repr(value)[:60]
