r"""Names: of macros, which LaTeX allows letters alone, and of runs, which pdfTeX may be unable to draw.

A macro's name can be read aloud: `\ptqDeltaGptqTwoBitsLlamaOneSixZeroK`.  Numbers are said digit by digit, everything
else that is no letter only separates words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from ptq_eval.report.common.latex import UNKNOWN, escape

PREFIX = "ptq"
"""Of every macro, so that none is LaTeX's own or a package's."""
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def spoken(*words: Any) -> str:
    """The words as one name of letters: `llama-160k` is LlamaOneSixZeroK; "" where no letter or digit is Latin."""
    plain = unicodedata.normalize("NFKD", " ".join(map(str, words)))
    parts = re.findall(r"[A-Za-z]+|[0-9]", "".join(c for c in plain if not unicodedata.combining(c)))
    return "".join(_DIGITS[int(part)] if part.isdigit() else part[0].upper() + part[1:] for part in parts)


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a letter behind it where others have it already."""
    taken, number, found = set(taken), 0, name
    while found in taken:
        number, found = number + 1, f"{name}{_letters(number)}"
    return found


def _letters(number: int) -> str:
    """B, C, …, Z, AA, AB, … from 1 on."""
    found = ""
    while True:
        found, number = chr(ord("A") + number % 26) + found, number // 26 - 1
        if number < 0:
            return found


def drawable(runs: Iterable[str]) -> dict[str, str]:
    """Another name for each run that pdfTeX cannot draw, different from all others: what it can, and a number."""
    runs = list(dict.fromkeys(runs))
    unreadable = [run for run in runs if UNKNOWN in escape(run) and UNKNOWN not in run]
    found: dict[str, str] = {}
    for run in unreadable:
        rest = "".join("" if escape(character) == UNKNOWN else character for character in run).strip(" -_.")
        name = f"run {runs.index(run) + 1}" + (f" ({rest})" if rest else "")
        while name in {*runs, *found.values()}:
            name += "'"
        found[run] = name
    return found


def renamed(data: Any, names: Mapping[str, str]) -> Any:
    """`data` (of JSON) with other names of runs, in keys and in texts that are a name; within a longer text only those
    that pdfTeX cannot draw, since others may be words."""
    within = [name for name in sorted(names, key=len, reverse=True) if UNKNOWN in escape(name)]

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            if value in names:
                return names[value]
            for name in within:
                value = value.replace(name, names[name])
            return value
        if isinstance(value, Mapping):
            return {changed(key): changed(own) for key, own in value.items()}
        return [changed(own) for own in value] if isinstance(value, (list, tuple)) else value

    return changed(data) if names else data
