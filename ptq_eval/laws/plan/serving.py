"""The number format of a served model, for laws that depend on more than a number of bits.

Chen's law holds for one number of bits and depends on how many numbers share a scale; Sun's also depends on exponent
and mantissa bits, and describes models that are *trained* in the format that they are served in.  The other laws depend
on bits alone.  An option that a law has no variable for is refused rather than ignored: an answer must not look as if
it took the option into account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptq_eval.config.plan import FULL_BITS, SERVED_BITS
from ptq_eval.errors import BitsError, OptionError, PlanError
from ptq_eval.laws.arguments import format_of
from ptq_eval.laws.base import Law

EXAMPLE = "--serve-format E4M3 --group-size 128"
_MEASURED = re.compile(r"i?q\d_\w+|(mx|nv|nf|int)\w*\d\w*", re.IGNORECASE)
"""Names of formats with codes or blocks of their own: types of llama.cpp, such as q4_k, block floats and integers."""

_GROUPS = ("G", "B_g")
"""The variables that are a number of weights per scale, by law."""


@dataclass(frozen=True)
class Serving:
    """group_size: how many numbers share one scale.  formats: by their bits, one format for each: {8.0: "E4M3"}.

    runtime: for laws of three precisions, the bits of activations ("P_a") and cache ("P_kv"), 16 in full precision.
    """

    group_size: float | None = None
    formats: Mapping[float, str] = field(default_factory=dict)
    runtime: Mapping[str, float] = field(default_factory=dict)

    def label(self, bits: float) -> str:
        """`4 bits`, the format that has them, or `W4A8KV4`."""
        if self.runtime:
            parts = {"W": bits, "A": self.runtime["P_a"], "KV": self.runtime["P_kv"]}
            return "".join(f"{name}{P:g}" for name, P in parts.items() if name == "W" or P < FULL_BITS)
        return self.formats.get(float(bits), f"{bits:g} bit{'s' * (bits != 1)}")

    def variables(self, bits: Any) -> dict[str, Any]:
        """The columns that laws know of this; `bits` is one number where there are formats."""
        if self.runtime:
            return {**self.runtime, "P_w": bits}
        found: dict[str, Any] = {} if self.group_size is None else dict.fromkeys(_GROUPS, float(self.group_size))
        return found | (format_of(self.formats[float(bits)]) if self.formats else {})


def read_formats(names: Sequence[str]) -> dict[float, str]:
    """Formats such as "E4M3" by their bits, sign included.

    Raises OptionError for a name that is not a floating-point format, BitsError for more than 16 bits, PlanError for
    two formats of the same bits.
    """
    found: dict[float, str] = {}
    for name in names:
        try:
            bits = 1 + sum(format_of(name).values())
        except OptionError as error:
            what = "--serve-format is not a floating-point format"
            allowed = "at least 1 exponent bit, and mantissa bits, such as E4M3"
            remedy = "--serve-format E4M3"
            if _MEASURED.fullmatch(name):
                what = f"--serve-format {name} has no exponent and mantissa bits of its own"
                remedy = f"measure it (`ptq-eval run --formats {name}`), then `plan --fit OUT --number-format {name}`"
            raise OptionError(what, got=repr(name), allowed=allowed, remedy=remedy) from error
        if bits > SERVED_BITS[1]:
            allowed = f"at most {SERVED_BITS[1]:g} bits, one of them the sign"
            raise BitsError("--serve-format is too wide", got=f"{name}, {bits:g} bits", allowed=allowed)
        if found.setdefault(bits, name.upper()) != name.upper():
            what = f"two formats of {bits:g} bits in one plan"
            raise PlanError(what, got=f"{found[bits]} and {name}", remedy="plan for one of them at a time")
    return found


def settle(law: Law | None, only: float | None, asked: Any) -> tuple[Serving, tuple[float, ...]]:
    """The format in which the model of a question serves under `law`, and the serving bits; empty if any will do.

    law: the degradation law, if one is known.  only: the one number of bits that its constants hold for, if that is
    known.  asked: the question.  Raises PlanError for an option that the law has no variable for, and for one that the
    law needs and the question lacks.
    """
    columns, name = (law.columns, law.name) if law is not None else ((), "")
    _refuse(columns, name, asked)
    runtime = {"P_a": asked.activation_bits or FULL_BITS, "P_kv": asked.kv_bits or FULL_BITS}
    serving = Serving(asked.group_size, read_formats(asked.serve_format), runtime if "P_w" in columns else {})
    lacking = ["a floating-point format"] * ("E_bits" in columns and not serving.formats)
    lacking += ["the group size"] * (bool(set(_GROUPS) & set(columns)) and asked.group_size is None)
    if lacking:
        remedy = EXAMPLE if "E_bits" in columns else "--group-size 128"
        raise PlanError(f"the law {name} needs {' and '.join(lacking)}", remedy=remedy)
    if "E_bits" in columns:
        return serving, tuple(sorted(serving.formats))
    bits = tuple(dict.fromkeys(float(b) for b in asked.serve_bits))
    return serving, _one_width(name, only, bits) if "G" in columns else bits


def _refuse(columns: Sequence[str], name: str, asked: Any) -> None:
    """Raises PlanError for an option whose variable is none of `columns`."""
    bits = f"--serve-bits {','.join(f'{b:g}' for b in asked.serve_bits)}"
    if "E_bits" in columns and asked.serve_bits:
        raise PlanError(
            f"the law {name} knows floating-point formats, not numbers of bits",
            got=bits,
            allowed="exponent and mantissa bits",
            remedy=EXAMPLE,
        )
    without = f"the law {name} has none" if name else "these constants are of no degradation law"
    for flag, column in (("activation-bits", "P_a"), ("kv-bits", "P_kv")):
        value = getattr(asked, flag.replace("-", "_"))
        if value is not None and column not in columns:
            raise PlanError(
                f"no --{flag} can be given: {without}",
                got=f"{value:g}",
                allowed="constants of a run that quantized them together with the weights",
                remedy=f"ptq-eval run … --{flag}, then plan --fit OUT",
            )
    if asked.serve_format and "E_bits" not in columns:
        raise PlanError(
            f"no floating-point format can be given: {without}",
            got=f"--serve-format {','.join(asked.serve_format)}",
            allowed="--serve-bits",
            remedy=f"--serve-bits 4, or --preset SUN_2025 {EXAMPLE}",
        )
    if asked.group_size is not None and not set(_GROUPS) & set(columns):
        raise PlanError(
            f"no group size can be given: {without}",
            got=f"--group-size {asked.group_size:g}",
            allowed="the laws chen and sun have",
            remedy="omit it, or --preset EPOCH_2024,CHEN_2025",
        )


def _one_width(name: str, only: float | None, bits: tuple[float, ...]) -> tuple[float, ...]:
    """The one number of bits that constants without a variable for it hold for."""
    if only is None and len(bits) != 1:
        raise PlanError(
            f"the law {name} holds for one number of bits, and the fit does not say which",
            got=", ".join(f"{b:g}" for b in bits) or "none",
            allowed="one number",
            remedy="--serve-bits 4, if that is what was measured",
        )
    if only is not None and set(bits) - {only}:
        raise PlanError(
            f"these constants of the law {name} hold for one number of bits",
            got=f"--serve-bits {','.join(f'{b:g}' for b in bits)}",
            allowed=f"{only:g}",
            remedy=f"--serve-bits {only:g}",
        )
    return bits if only is None else (only,)
