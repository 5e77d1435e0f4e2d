"""What a cell of a comparison is called: no longer than needed to tell it from the other cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ptq_eval.results.gate.verdict import Comparison
from ptq_eval.results.points import format_family, format_name

_SOMETIMES = ("options", "group_size", "symmetric", "calibration", "calib_text", "calib_windows", "calib_length")
_WORDS = {
    "calibration": "{} calibration",
    "calib_text": "calibrated on {}",
    "calib_windows": "{} calibration windows",
    "calib_length": "of {} tokens",
}


class Names:
    """Names of the cells of one comparison: options and schemes are part of them where a quantizer has several."""

    def __init__(self, found: Comparison) -> None:
        every = [cell.pair.about for cell in found.cells] + [one.about for one in (*found.mismatches, *found.missing)]
        every += found.added
        self._several = {
            name: {row["quantizer"] for row in every if _values(every, row["quantizer"], name) > 1}
            for name in (_SOMETIMES if every and "quantizer" in every[0] else ())
        }

    def of(self, about: Mapping[str, Any]) -> str:
        """`llama-40k@176 gptq 3 bits`; of lm-eval `arc_easy acc_norm`."""
        return f"{self.place(about)} {self.method(about)}"

    def place(self, about: Mapping[str, Any]) -> str:
        """The checkpoint, or the task."""
        if "task" in about:
            return str(about["task"])
        return f"{about['run']}@{about['step'] if about['step'] is not None else 'only'}"

    def method(self, about: Mapping[str, Any]) -> str:
        """The quantizer and its scheme, or the metric."""
        if "task" in about:
            filtered = "" if about["filter"] == "none" else f" ({about['filter']})"
            return f"{about['metric']}{' in nats' if about['nats'] else ''}{filtered}"
        quantizer = str(about["quantizer"])
        more = [
            _options(about[name]) if name == "options" else _word(name, about[name])
            for name, several in self._several.items()
            if quantizer in several
        ]
        return ", ".join(part for part in (f"{quantizer} {scheme(about)}", *more) if part)


def scheme(about: Mapping[str, Any]) -> str:
    """`3 bits`, or the name of a number format."""
    form, bits = about["format"], about["bits"]
    if form in ("", "int") or bits is None:
        return f"{bits:g} bits" if bits is not None else str(form)
    return format_name(format_family(form), bits, about["symmetric"])


def _values(every: Iterable[Mapping[str, Any]], quantizer: str, name: str) -> int:
    return len({row[name] for row in every if row["quantizer"] == quantizer} - {None, ""})


def _options(text: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in json.loads(text or "{}").items())


def _word(name: str, value: Any) -> str:
    if name == "symmetric":
        return "symmetric" if value else "asymmetric"
    if name == "group_size":
        return f"groups of {value}" if value else "one scale a row"
    return _WORDS[name].format(value) if value not in (None, "") else ""
