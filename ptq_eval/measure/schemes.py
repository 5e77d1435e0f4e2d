"""The schemes of a run: integers of every bit-width asked for, and number formats by name.

One group size serves all integers and all formats that leave it free.  A format with blocks of its own keeps them: the
size asked for where it allows it, else its usual one or, where rows are narrower, the largest that fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ptq_eval import plugins
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import GroupSizeError, NumberFormatError, did_you_mean
from quantizers import FormatError, Quantizer, Scheme, gaussian_mse
from quantizers.formats import FORMATS, Format


def schemes_of(config: RunConfig, group_size: int | None, narrowest: int) -> list[Scheme]:
    """Every scheme of a run for models whose narrowest row has `narrowest` columns; `group_size` is the resolved one.

    Raises NumberFormatError for an unknown format, GroupSizeError for a group size that contradicts all formats of the
    run or a format whose blocks are wider than a row.
    """
    found = [Scheme(bits, group_size, config.symmetric) for bits in config.bits]
    for name in config.formats:
        known = _format(name)
        size = group_size if known is None or not known.blocks else _block(config, known, group_size, narrowest)
        found.append(Scheme.of(name, size))
    return list(dict.fromkeys(found))


def named(name: str, group_size: int | None, narrowest: int) -> Scheme:
    """The scheme of one format that a plan names; blocks of its own as in `schemes_of`.

    Raises NumberFormatError or GroupSizeError.
    """
    known = _format(name)
    return Scheme.of(name, group_size if known is None or not known.blocks else _fitting(known, narrowest))


def refusal(quantizer: Quantizer, schemes: Iterable[Scheme]) -> str:
    """Why a method of this package or of a plug-in is not defined for one of the schemes; empty where it is."""
    for scheme in schemes:
        try:
            quantizer.check_format(scheme)
        except FormatError as error:
            return str(error)
    return ""


def names() -> list[str]:
    """Every name that --formats takes."""
    return [*(f"int{bits}{kind}" for kind in ("", "_half") for bits in range(2, 9)), *FORMATS]


def listing() -> list[dict[str, str]]:
    """What `ptq-eval formats` says of every format, by column."""
    methods = {name: cls.formats for name, cls in plugins.load_all("quantizers").items()}
    return [_listed(Scheme.of(name), methods) for name in names()]


def _listed(scheme: Scheme, methods: Mapping[str, Sequence[str]]) -> dict[str, str]:
    known, error = FORMATS.get(scheme.format), gaussian_mse(scheme)
    sizes = known.blocks if known else ()
    blocks = f"{sizes[0]}{f' ({min(sizes)} to {max(sizes)})' if len(sizes) > 1 else ''}" if sizes else ""
    return {
        "format": scheme.name,
        "bits": str(scheme.bits),
        "block": blocks or f"any ({scheme.group_size})",
        "effective bits": f"{scheme.effective_bits():.5g}",
        "Gaussian MSE": f"{error:.3g}",
        "ideal bits": f"{-0.5 * math.log2(error):.3g}",
        "quantizers": ", ".join(name for name, formats in methods.items() if scheme.format in formats),
        "meaning": known.summary if known else _INTEGERS[scheme.symmetric],
        "source": known.source if known else "Frantar et al. 2022 (arXiv 2210.17323)",
    }


_INTEGERS = {
    False: "integers with a zero point",
    True: "integers, half-step symmetric grid: scale 2·max|w|/(2^b − 1) (--symmetric)",
}


def _format(name: str) -> Format | None:
    """The format of that name, None for integers.  Raises NumberFormatError."""
    try:
        return FORMATS.get(Scheme.of(name).format)
    except FormatError as error:
        remedy = did_you_mean(name, names()) or "`ptq-eval formats` lists them"
        raise NumberFormatError("unknown number format", got=repr(name), remedy=remedy) from error


def _block(config: RunConfig, known: Format, group_size: int | None, narrowest: int) -> int:
    asked = config.group_size != "auto"
    if asked and group_size is not None and group_size in known.blocks:
        return group_size
    free = [name for name in config.formats if (one := _format(name)) is None or not one.blocks]
    if asked and not config.bits and not free:
        raise GroupSizeError(
            f"--group-size contradicts the blocks of {known.name}",
            got="none" if group_size is None else group_size,
            allowed=", ".join(map(str, known.blocks)),
            remedy="omit --group-size",
        )
    return _fitting(known, narrowest)


def _fitting(known: Format, narrowest: int) -> int:
    """The usual block of a format, or the largest that rows of `narrowest` columns can have."""
    fitting = [size for size in known.blocks if size <= narrowest]
    if not fitting:
        raise GroupSizeError(
            f"the blocks of {known.name} are wider than a row",
            got=f"rows of {narrowest} columns",
            allowed=f"rows of at least {min(known.blocks)} columns",
            remedy=f"omit {known.name} from --formats",
        )
    return fitting[0] if known.blocks[0] in fitting else max(fitting)
