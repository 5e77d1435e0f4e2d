"""How activations and the cache of a run are rounded: every combination of what its options ask for.

Integers of --activation-bits and --kv-bits have a zero point; symmetric ones are formats by name.  Full precision is
always among the combinations, so that each part is measured alone too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError
from ptq_eval.measure.schemes import named
from ptq_eval.runtime import Cache, Per, Rounding
from quantizers import FormatError
from quantizers.tensors import check


def is_static(config: RunConfig) -> bool:
    """Whether a run needs calibration windows for a static range."""
    activations = bool(config.activation_bits or config.activation_formats) and config.activation_range == "static"
    return activations or (bool(config.kv_bits or config.kv_formats) and config.kv_range == "static")


def roundings_of(config: RunConfig, windows: str = "") -> list[dict[str, Any]]:
    """The fields `activations` and `cache` of the trials of one weight scheme, the first with neither.

    `windows` is the digest of the calibration windows, for static ranges.
    Raises NumberFormatError for an unknown format, OptionError for one that cannot be used as asked.
    """
    _require_ranges(config, "activation", "activation_per")
    _require_ranges(config, "kv", "key_per", "value_per")
    inputs = [
        _rounding(config, "activation", name, "activation_per", windows).to_dict()
        for name in _names(config.activation_bits, config.activation_formats)
    ]
    caches = [
        Cache(
            _rounding(config, "kv", name, "key_per", windows),
            _rounding(config, "kv", name, "value_per", windows),
            config.key_rope,
        ).to_dict()
        for name in _names(config.kv_bits, config.kv_formats)
    ]
    return [
        {**({"activations": own} if own else {}), **({"cache": cache} if cache else {})}
        for own in [{}, *inputs]
        for cache in [{}, *caches]
    ]


def _require_ranges(config: RunConfig, what: str, *names: str) -> None:
    """Raise OptionError for a static range where all that could have one is rounded per token."""
    if getattr(config, f"{what}_range") == "static" and all(getattr(config, name) == "token" for name in names):
        flags = [declared(RunConfig)[name].flag for name in names]
        raise OptionError(
            f"--{what}-range static is a range per channel or per tensor",
            got=", ".join(f"{flag} token" for flag in flags),
            remedy=f"{flags[0]} tensor, or --{what}-range dynamic",
        )


def _names(bits: tuple[int, ...], formats: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys([*(f"int{width}" for width in bits), *formats]))


def _rounding(config: RunConfig, what: str, name: str, option: str, windows: str) -> Rounding:
    scheme = named(name, None, 2**31)
    per: Per = getattr(config, option)
    static = getattr(config, f"{what}_range") == "static" and per != "token"
    flag = declared(RunConfig)[option].flag
    try:
        check(scheme, per, static)
    except FormatError as error:
        raise OptionError(str(error), got=f"{flag} {per}", remedy=f"{flag} token, or another format") from error
    seen = Rounding(scheme.name, scheme.bits, per)
    return replace(seen, range="static", windows=windows) if static else seen
